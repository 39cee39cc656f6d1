// Compiled kernels, loaded into the process, and launches.
#pragma once
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "kernels.h"
#include "stream.h"

struct Module;

struct Function {
    Module *module;
    const Kernel *kernel;
};

struct Module {
    int device;
    void *library;
    const Code *code;
    std::vector<Function> functions;
};

inline std::vector<std::unique_ptr<Module>> &modules = *new std::vector<std::unique_ptr<Module>>;

inline bool is_mapped(const void *p, size_t bytes) {
    uintptr_t first = (uintptr_t)p / PAGE * PAGE;
    return !msync((void *)first, (uintptr_t)p + bytes - first, MS_ASYNC);
}

// Each load is a library of its own, with its own SHARED variables, so each needs a file of its own.
inline int open_library(Module *module, const void *bytes, size_t count) {
    std::string path = environment("TMPDIR", "/tmp") + "/standin-module-XXXXXX";
    int file = mkstemp(path.data());
    if (file < 0) return OperatingSystem;
    bool written = write(file, bytes, count) == (ssize_t)count;
    close(file);
    module->library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    int status = module->library ? Success : OperatingSystem;
    if (module->library) {
        module->code = (const Code *)dlsym(module->library, "standin_code");
        // The machine looks for the SHARED variables in the file.
        if (module->code->wave == devices[module->device].wave)
            module->code->start(scheduler.random);
        else
            status = NoBinaryForGpu;
        if (status) dlclose(module->library);
    }
    unlink(path.c_str());
    return status;
}

inline int load_module(Module **result, const void *image, int device) {
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)image;
    if (!is_mapped(image, sizeof *elf) || memcmp(elf->e_ident, ELFMAG, SELFMAG)) return NoBinaryForGpu;
    const char *end = (const char *)image + elf->e_flags;
    Trailer trailer;
    if (!is_mapped(image, elf->e_flags + sizeof trailer)) return NoBinaryForGpu;
    memcpy(&trailer, end, sizeof trailer);
    if (memcmp(trailer.magic, MAGIC_OF_CODE, sizeof trailer.magic)) return NoBinaryForGpu;
    if (trailer.checksum != checksum_of(image, elf->e_flags)) return NoBinaryForGpu;
    if (!devices[device].runs(trailer.target)) return NoBinaryForGpu;
    auto module = std::make_unique<Module>(Module{device, nullptr, nullptr, {}});
    if (int status = open_library(module.get(), image, elf->e_flags)) return status;
    const Code *code = module->code;
    for (unsigned i = 0; i < code->kernels; i++) module->functions.push_back({module.get(), code->kernel + i});
    *result = module.get();
    modules.push_back(std::move(module));
    return Success;
}

inline Module *find_module(const void *handle) {
    for (auto &module : modules)
        if (module.get() == handle) return module.get();
    return nullptr;
}

// Nothing of the module may be queued any more.
inline void unload_module(Module *module) {
    module->code->stop();
    dlclose(module->library);
    for (size_t i = 0; i < modules.size(); i++)
        if (modules[i].get() == module) return (void)modules.erase(modules.begin() + (ptrdiff_t)i);
}

inline const Function *find_function(const void *handle) {
    for (auto &module : modules)
        for (const Function &function : module->functions)
            if (&function == handle) return &function;
    return nullptr;
}

struct Launch {
    unsigned grid[3], block[3], shared;
    void **parameters, **extra;
};

inline int launch_kernel(const Function &function, const QueuePointer &queue, const Launch &l) {
    const Kernel *kernel = function.kernel;
    unsigned block = kernel->block;
    if (l.block[0] != block || l.block[1] != 1 || l.block[2] != 1 || l.shared || l.extra) return InvalidValue;
    if (l.grid[0] < 1 || l.grid[0] > 0x7fffffff || l.grid[1] < 1 || l.grid[1] > 0xffff || l.grid[2] != 1) return InvalidValue;
    // HIP counts threads where CUDA counts blocks.
    if ((uint64_t)l.grid[0] * block > 0xffffffff) return InvalidValue;
    if (kernel->parameters && !l.parameters) return InvalidValue;
    std::shared_ptr<void> arguments(kernel->bind(l.parameters), kernel->drop);
    unsigned columns = l.grid[0], rows = l.grid[1];
    scheduler.add(queue, kernel->name, [=] { kernel->run(arguments.get(), columns, rows, block); });
    return Success;
}
