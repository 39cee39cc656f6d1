// A stand-in for libhiprtc, AMD's run-time compiler: kernels become a library for the host's CPU, see README.md.
//
// The host's compiler gets the source as it is, and behind it the machine of tests/harness and a table of the kernels.
// Which kernels there are, the preprocessor tells: after it, KERNEL(…) is extern "C" void.
#define STANDIN_HIPRTC
#include <elf.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>

#include "device.h"
#include "gate.h"
#include "kernels.h"

extern char **environ;

enum Result {
    RTC_SUCCESS = 0,
    RTC_PROGRAM_CREATION_FAILURE = 2,
    RTC_INVALID_INPUT = 3,
    RTC_INVALID_PROGRAM = 4,
    RTC_COMPILATION = 6,
    RTC_INTERNAL_ERROR = 11,
};

struct Program {
    std::string source, name, log, code;
};

// ---- Files and processes. -----------------------------------------------------------------------------------------

struct Folder {
    std::string path;
    Folder() {
        path = environment("TMPDIR", "/tmp") + "/standin-hiprtc-XXXXXX";
        if (!mkdtemp(path.data())) path.clear();
    }
    ~Folder() {
        std::error_code ignored;
        if (!path.empty()) std::filesystem::remove_all(path, ignored);
    }
    std::string operator/(const char *file) const { return path + "/" + file; }
};

static std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

static void write_file(const std::string &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

// Runs a program, its messages going to a file; whether it succeeded.
static bool run(std::vector<std::string> words, const std::string &messages) {
    std::vector<char *> pointers;
    for (std::string &word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, messages.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int error = posix_spawnp(&child, pointers[0], &actions, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error) return write_file(messages, "error: cannot run " + words[0] + "\n"), false;
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && !WEXITSTATUS(status);
}

// ---- Compilation. -------------------------------------------------------------------------------------------------

struct Options {
    std::string target;
    std::vector<std::string> defines;
};

// What hipRTC's clang takes, as far as kernels here need it; everything else is a mistake.
static bool read_options(int count, const char **given, Options *options, std::string *log) {
    const std::vector<std::string> known = {"-std=c++17", "--std=c++17", "-O3", "-ffp-contract=off"};
    const std::string arch = "--offload-arch=";
    for (const std::string &option : std::vector<std::string>(given, given + count)) {
        if (!option.compare(0, arch.size(), arch)) {
            options->target = option.substr(arch.size());
        } else if (option.size() > 2 && !option.compare(0, 2, "-D")) {
            options->defines.push_back(option);
        } else if (std::find(known.begin(), known.end(), option) == known.end()) {
            return *log = "error: unknown argument: '" + option + "'\n", false;
        }
    }
    if (options->target.empty()) {
        std::vector<Device> devices = listed_devices();
        if (devices.empty()) return *log = "error: no target and no device\n", false;
        options->target = devices[0].full_name;
    }
    if (!is_target(options->target)) return *log = "error: invalid target ID '" + options->target + "'\n", false;
    return true;
}

// The kernels' names, and the threads of their blocks if the source says so: what follows `extern "C" void` in preprocessed text, in the parts
// that come from `file` itself.
static std::map<std::string, std::string> find_kernels(const std::string &text, const std::string &file) {
    std::istringstream lines(text);
    std::string own, line;
    bool is_own = false;
    while (std::getline(lines, line)) {
        // # 12 "file" flags
        if (line.size() > 2 && line[0] == '#' && line[1] == ' ')
            is_own = line.find(" \"" + file + "\"") != std::string::npos;
        else if (is_own)
            own += line + "\n";
    }
    static const std::regex definition(
        "extern \"C\"\\s+(?:__attribute__\\(\\(block\\(([\\w\\s?:()=]+?)\\)\\)\\)\\s+)?void\\s+(\\w+)\\s*\\(");
    std::map<std::string, std::string> kernels;
    for (std::sregex_iterator match(own.begin(), own.end(), definition), end; match != end; ++match)
        kernels[(*match)[2]] = (*match)[1].length() ? (*match)[1].str() : "BLOCK";
    return kernels;
}

// What stands behind the kernels.
static std::string table_of(const std::map<std::string, std::string> &kernels) {
    std::string text = "\n#include \"trampolines.h\"\nstatic const Kernel standin_kernels[] = {\n";
    for (const auto &[kernel, threads] : kernels)
        text += "Trampoline<" + kernel + ">::describe(\"" + kernel + "\", " + threads + "),\n";
    return text +
           "{}};\n"
           "extern \"C\" __attribute__((visibility(\"default\"))) const Code standin_code;\n"
           "const Code standin_code = {WAVE, sizeof standin_kernels / sizeof(Kernel) - 1, standin_kernels, "
           "start_kernels, stop_kernels};\n";
}

static std::string code_object(std::string library, const std::string &target) {
    Trailer trailer = {};
    memcpy(trailer.magic, MAGIC_OF_CODE, sizeof trailer.magic);
    snprintf(trailer.target, sizeof trailer.target, "%s", target.c_str());
    ((Elf64_Ehdr *)library.data())->e_flags = (Elf64_Word)library.size();
    trailer.checksum = checksum_of(library.data(), library.size());
    return library.append((const char *)&trailer, sizeof trailer);
}

static int compile(Program *program, int count, const char **given) {
    Options options;
    program->code.clear();
    program->log.clear();
    if (!read_options(count, given, &options, &program->log)) return RTC_COMPILATION;
    Folder folder;
    const std::string harness = environment("STANDIN_HARNESS", "");
    if (folder.path.empty() || harness.empty()) {
        program->log = "error: no temporary folder, or no STANDIN_HARNESS\n";
        return RTC_INTERNAL_ERROR;
    }
    const std::string source = folder / "source.cpp", messages = folder / "messages", library = folder / "library.so";
    const std::string preprocessed = folder / "preprocessed";
    const std::string begin = "#include \"prelude.h\"\n#line 1 \"" + program->name + "\"\n" + program->source + "\n";
    // machine.h includes it, and the source has had it already.
    write_file(folder / "block.h", "");
    write_file(source, begin);

    std::vector<std::string> words = split(environment("CXX", "c++"), ' ');
    for (const char *word : {"-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-w"}) words.push_back(word);
    for (const std::string &path : {folder.path, harness, harness + "/../standin"}) words.push_back("-I" + path);
    words.insert(words.end(), options.defines.begin(), options.defines.end());
    words.push_back(source);
    auto compiler = [&](std::vector<std::string> more) {
        more.insert(more.begin(), words.begin(), words.end());
        return run(more, messages);
    };
    bool done = compiler({"-E", "-o", preprocessed});
    if (done) {
        std::map<std::string, std::string> kernels = find_kernels(read_file(preprocessed), program->name);
        write_file(source, begin + "#line 1 \"table\"\n" + table_of(kernels));
        // Modules must not share their machines, nor stay loaded for the sake of a symbol that others might use.
        done = compiler({"-shared", "-fvisibility=hidden", "-Wl,-Bsymbolic", "-o", library});
        // A mistake in the kernels is one in the table, too: leave that out of the log.
        if (!done) {
            write_file(source, begin);
            if (compiler({"-fsyntax-only"})) write_file(messages, "error: the kernels compile, their table does not\n");
        }
    }
    program->log = read_file(messages);
    if (!done) return RTC_COMPILATION;
    program->code = code_object(read_file(library), options.target);
    return RTC_SUCCESS;
}

// ---- The API. -----------------------------------------------------------------------------------------------------

#define ENTER \
    if (int status = standin_enter(__func__)) return status

API const char *hiprtcGetErrorString(int result) {
    static const char *const names[] = {
        "HIPRTC_SUCCESS",
        "HIPRTC_ERROR_OUT_OF_MEMORY",
        "HIPRTC_ERROR_PROGRAM_CREATION_FAILURE",
        "HIPRTC_ERROR_INVALID_INPUT",
        "HIPRTC_ERROR_INVALID_PROGRAM",
        "HIPRTC_ERROR_INVALID_OPTION",
        "HIPRTC_ERROR_COMPILATION",
        "HIPRTC_ERROR_BUILTIN_OPERATION_FAILURE",
        "HIPRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
        "HIPRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
        "HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID",
        "HIPRTC_ERROR_INTERNAL_ERROR",
    };
    // ROCm 5.2 returns a null pointer for others.
    return result >= 0 && result < 12 ? names[result] : nullptr;
}

API int hiprtcVersion(int *major, int *minor) {
    ENTER;
    if (!major || !minor) return RTC_INVALID_INPUT;
    *major = 9;  // ROCm 5.2.3 says 9.0
    *minor = 0;
    return RTC_SUCCESS;
}

API int hiprtcCreateProgram(Program **program, const char *source, const char *name, int headers, const char **,
                            const char **) {
    ENTER;
    if (!program || !source) return RTC_INVALID_INPUT;
    if (headers) return RTC_PROGRAM_CREATION_FAILURE;
    std::string plain = name ? name : "program";
    plain.erase(std::remove_if(plain.begin(), plain.end(), [](char c) { return strchr("\"\\\n", c); }), plain.end());
    *program = new Program{source, plain, "", ""};
    return RTC_SUCCESS;
}

API int hiprtcCompileProgram(Program *program, int count, const char **options) {
    ENTER;
    if (!program) return RTC_INVALID_PROGRAM;
    if (count < 0 || (count && !options)) return RTC_INVALID_INPUT;
    return compile(program, count, options);
}

API int hiprtcGetCodeSize(Program *program, size_t *bytes) {
    ENTER;
    if (!program || program->code.empty()) return RTC_INVALID_PROGRAM;
    if (!bytes) return RTC_INVALID_INPUT;
    *bytes = program->code.size();
    return RTC_SUCCESS;
}

API int hiprtcGetCode(Program *program, char *code) {
    ENTER;
    if (!program || program->code.empty()) return RTC_INVALID_PROGRAM;
    if (!code) return RTC_INVALID_INPUT;
    memcpy(code, program->code.data(), program->code.size());
    return RTC_SUCCESS;
}

// The log ends with a NUL, which counts.
API int hiprtcGetProgramLogSize(Program *program, size_t *bytes) {
    ENTER;
    if (!program) return RTC_INVALID_PROGRAM;
    if (!bytes) return RTC_INVALID_INPUT;
    *bytes = program->log.size() + 1;
    return RTC_SUCCESS;
}

API int hiprtcGetProgramLog(Program *program, char *log) {
    ENTER;
    if (!program) return RTC_INVALID_PROGRAM;
    if (!log) return RTC_INVALID_INPUT;
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return RTC_SUCCESS;
}

API int hiprtcDestroyProgram(Program **program) {
    ENTER;
    if (!program || !*program) return RTC_INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return RTC_SUCCESS;
}
