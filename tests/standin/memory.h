// Device memory that only the device can touch, and pinned host memory.
//
// An allocation has its own pages between guard pages and ends as close to the second as its alignment allows; what is
// left over holds a pattern that must not change. The pages of device memory are closed to everyone but while an
// operation of their device is executed, so a host that follows a device pointer faults, and so does a kernel on
// another device. Addresses are never used twice: who uses memory after freeing it faults, too.
#pragma once
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>
#include <map>

#include "codes.h"

#define ALIGNMENT 256u
#define PAGE 4096u
// Fresh memory, what a copy has not filled yet, and the pattern around allocations.
#define GARBAGE 0xa5
#define AROUND 0xc3

// In place of a device's number.
#define PINNED (-1)

struct Region {
    char *pages;  // after the first guard page
    size_t length;
    char *start;
    size_t bytes;
    int device;
    bool live;
    unsigned readers;  // queued copies that have yet to read it

    bool holds(const void *p, size_t count) const {
        const char *first = (const char *)p;
        return live && first >= start && count <= bytes && (size_t)(first - start) <= bytes - count;
    }

    void permit(int protection) const {
        if (mprotect(pages, length, protection)) die("mprotect failed");
    }

    // The pages must be open.
    void check(const char *after) const {
        for (const char *p = pages; p < pages + length; p++) {
            if (p == start) p += bytes;
            if (p < pages + length && *p != (char)AROUND)
                die("%s wrote %td bytes from the start of an allocation of %zu", after, p - start, bytes);
        }
    }
};

struct Memory {
    std::map<uintptr_t, Region> regions;  // all there ever were, by the address of the first guard page
    const char *running = nullptr;        // the operation in progress

    // The region around `p`, guard pages included.
    Region *find(const void *p) {
        auto after = regions.upper_bound((uintptr_t)p);
        if (after == regions.begin()) return nullptr;
        Region &region = std::prev(after)->second;
        return (const char *)p < region.pages + region.length + PAGE ? &region : nullptr;
    }

    size_t used(int device) const {
        size_t sum = 0;
        for (auto &[key, r] : regions) sum += r.live && r.device == device ? r.bytes : 0;
        return sum;
    }

    void *allocate(size_t bytes, int device) {
        size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        size_t length = (rounded + PAGE - 1) / PAGE * PAGE;
        void *map = mmap(nullptr, length + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) return nullptr;
        char *pages = (char *)map + PAGE;
        Region region = {pages, length, pages + length - rounded, bytes, device, true, 0};
        region.permit(PROT_READ | PROT_WRITE);
        memset(pages, AROUND, length);
        memset(region.start, GARBAGE, bytes);
        if (device != PINNED) region.permit(PROT_NONE);
        regions[(uintptr_t)map] = region;
        report_faults();
        return region.start;
    }

    void release(Region &region) {
        region.permit(PROT_READ | PROT_WRITE);
        region.check("someone");
        region.live = false;
        // The contents go, the addresses stay taken.
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        if (mmap(region.pages, region.length, PROT_NONE, flags, -1, 0) == MAP_FAILED) die("mmap failed");
    }

    // ---- A word about a fault before the program dies of it.
    struct sigaction before;
    bool reporting = false;

    void report_faults() {
        if (reporting) return;
        reporting = true;
        struct sigaction action = {};
        action.sa_sigaction = report;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before);
    }

    static void report(int, siginfo_t *info, void *);
};

inline Memory &memory = *new Memory;

inline void Memory::report(int, siginfo_t *info, void *) {
    const char *who = memory.running ? memory.running : "the host";
    if (const Region *r = memory.find(info->si_addr)) {
        const char *kind = !r->live ? "freed" : r->device == PINNED ? "pinned" : "device";
        fprintf(stderr, "stand-in: %s touched %s memory, %td bytes from the start of an allocation of %zu\n", who, kind,
                (char *)info->si_addr - r->start, r->bytes);
    } else if (memory.running) {
        fprintf(stderr, "stand-in: %s touched %p, which is no device memory\n", who, info->si_addr);
    }
    // Returning repeats the access, this time for the handler that was there before.
    sigaction(SIGSEGV, &memory.before, nullptr);
}

// While this lives, an operation of the device is in progress.
struct Access {
    int device;
    const char *name;
    Access(int device, const char *name) : device(device), name(name) {
        permit(PROT_READ | PROT_WRITE);
        memory.running = name;
    }
    ~Access() {
        memory.running = nullptr;
        for (auto &[key, r] : memory.regions)
            if (r.live && r.device == device) r.check(name);
        permit(PROT_NONE);
    }
    void permit(int protection) {
        for (auto &[key, r] : memory.regions)
            if (r.live && r.device == device) r.permit(protection);
    }
};
