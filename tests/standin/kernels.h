// What compiled kernels and those who load them agree on.
#pragma once
#include <stdint.h>

// One kernel, behind functions that know its parameters' types.
struct Kernel {
    const char *name;
    unsigned parameters, block;  // `block`: threads
    void *(*bind)(void **parameters);  // copies the arguments
    void (*run)(const void *arguments, unsigned columns, unsigned rows, unsigned block);
    void (*drop)(const void *arguments);
};

// The symbol `standin_code` of a compiled library.
struct Code {
    unsigned wave, kernels;
    const Kernel *kernel;
    void (*start)(uint64_t seed);
    void (*stop)();
};

// A code object is an ELF library, its length in the header's e_flags (x86-64 has no use for them, and
// hipModuleLoadData is told no length), followed by this.
struct Trailer {
    char magic[8];
    uint64_t checksum;  // of the library
    char target[64];
};
#define MAGIC_OF_CODE "standin"

// FNV-1a.
inline uint64_t checksum_of(const void *data, size_t bytes) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3ull;
    return hash;
}
