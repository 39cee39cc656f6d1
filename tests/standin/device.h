// The GPUs that are pretended to be there. STANDIN_DEVICES lists them, as target:wave: "gfx1100:32,gfx90a:64".
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "codes.h"

inline std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        size_t end = text.find(separator, begin);
        if (end == std::string::npos) end = text.size();
        if (end > begin) parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

inline std::string environment(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

struct Device {
    std::string target;     // gfx90a
    std::string full_name;  // gfx90a:sramecc+:xnack-, as HIP reports it and as a target ID
    unsigned wave;
    int lost = Success;  // after an operation failed: what every call reports

    bool is_gfx9() const { return target.size() == 6 && target[3] == '9'; }
    // gfx90a is 9.0, gfx1100 is 11.0.
    int major() const { return atoi(target.substr(3, target.size() - 5).c_str()); }
    int minor() const { return (int)strtol(target.substr(target.size() - 2, 1).c_str(), nullptr, 16); }

    explicit Device(const std::string &listed) {
        std::vector<std::string> parts = split(listed, ':');
        target = full_name = parts[0];
        if (target.size() < 6 || target.compare(0, 3, "gfx")) die("STANDIN_DEVICES: %s is no target", listed.c_str());
        wave = parts.size() > 1 ? (unsigned)atoi(parts[1].c_str()) : is_gfx9() ? 64 : 32;
        if (wave != 32 && wave != 64) die("STANDIN_DEVICES: %s has waves of %u", listed.c_str(), wave);
        if (is_gfx9()) full_name += target < "gfx906" ? ":xnack-" : ":sramecc+:xnack-";
    }

    // Code for a target ID runs on the same processor, where the features that the ID mentions are set as it says.
    bool runs(const std::string &id) const {
        std::vector<std::string> wanted = split(id, ':');
        if (wanted.empty() || wanted[0] != target) return false;
        for (size_t i = 1; i < wanted.size(); i++)
            if ((full_name + ":").find(":" + wanted[i] + ":") == std::string::npos) return false;
        return true;
    }
};

inline std::vector<Device> listed_devices() {
    std::vector<Device> devices;
    for (const std::string &listed : split(environment("STANDIN_DEVICES", ""), ',')) devices.emplace_back(listed);
    return devices;
}

// Whether the compiler knows a target ID: one of these processors, with features that it has.
inline bool is_target(const std::string &id) {
    std::vector<Device> known;
    for (const char *target : {"gfx900", "gfx906", "gfx908", "gfx90a", "gfx940", "gfx942", "gfx950", "gfx1010",
                               "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150", "gfx1151", "gfx1200", "gfx1201"})
        known.emplace_back(target);
    std::vector<std::string> parts = split(id, ':');
    for (const Device &device : known) {
        if (parts.empty() || parts[0] != device.target) continue;
        for (size_t i = 1; i < parts.size(); i++) {
            char sign = parts[i].back();
            std::string feature = ":" + parts[i].substr(0, parts[i].size() - 1);
            if ((sign != '+' && sign != '-') || (device.full_name.find(feature + "+") == std::string::npos &&
                                                 device.full_name.find(feature + "-") == std::string::npos))
                return false;
        }
        return true;
    }
    return false;
}

// ---- Properties. The struct changed between ROCm 5 and 6; what the stand-in does not know is zero. -----------------

struct Properties5 {
    char name[256];
    size_t total_memory, shared_memory;
    int registers, wave, threads, block[3], grid[3], clocks[3];
    size_t constant_memory;
    int major, minor, processors, others[6], pci_domain, pci_bus, pci_device;
    size_t processor_memory;
    int flags[3];
    char target[256];
    char rest[140];
};
static_assert(offsetof(Properties5, target) == 396 && sizeof(Properties5) == 792, "hipDeviceProp_t of ROCm 5.2");

struct Properties6 {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t total_memory, shared_memory;
    int registers, wave;
    size_t pitch;
    int threads, block[3], grid[3], clock;
    size_t constant_memory;
    int major, minor;
    size_t texture[2];
    int overlap, processors;
    char others[768], target[256], rest[56];
};
static_assert(offsetof(Properties6, target) == 1160 && sizeof(Properties6) == 1472, "hipDeviceProp_tR0600");

#define PROCESSORS 40
#define MAX_THREADS 1024
#define SHARED_MEMORY (64u << 10)

template <class Properties>
void fill_properties(Properties *p, const Device &device, size_t memory) {
    memset((void *)p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Stand-in %s", device.target.c_str());
    snprintf(p->target, sizeof p->target, "%s", device.full_name.c_str());
    p->total_memory = memory;
    p->shared_memory = SHARED_MEMORY;
    p->wave = (int)device.wave;
    p->threads = MAX_THREADS;
    p->major = device.major();
    p->minor = device.minor();
    p->processors = PROCESSORS;
}
