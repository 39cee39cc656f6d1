// HIP's error codes. Their numbers, names and texts (which repeat the names) are those of ROCm 5.2.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define CODES(X)                 \
    X(1, InvalidValue)           \
    X(2, OutOfMemory)            \
    X(3, NotInitialized)         \
    X(4, Deinitialized)          \
    X(35, InsufficientDriver)    \
    X(98, InvalidDeviceFunction) \
    X(100, NoDevice)             \
    X(101, InvalidDevice)        \
    X(200, InvalidImage)         \
    X(201, InvalidContext)       \
    X(209, NoBinaryForGpu)       \
    X(214, ECCNotCorrectable)    \
    X(300, InvalidSource)        \
    X(301, FileNotFound)         \
    X(304, OperatingSystem)      \
    X(400, InvalidHandle)        \
    X(401, IllegalState)         \
    X(500, NotFound)             \
    X(600, NotReady)             \
    X(700, IllegalAddress)       \
    X(701, LaunchOutOfResources) \
    X(702, LaunchTimeOut)        \
    X(709, ContextIsDestroyed)   \
    X(710, Assert)               \
    X(719, LaunchFailure)        \
    X(801, NotSupported)         \
    X(999, Unknown)

enum Status {
    Success = 0,
#define CODE(number, name) name = number,
    CODES(CODE)
#undef CODE
};

inline const char *code_name(int code) {
    switch (code) {
    case Success: return "hipSuccess";
#define CODE(number, name) \
    case number: return "hipError" #name;
        CODES(CODE)
#undef CODE
    default: return "hipErrorUnknown";
    }
}

// For what no error code tells: the program under test has done something that would go unnoticed on a GPU, or worse.
[[noreturn, gnu::format(printf, 1, 2)]] inline void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("stand-in: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
    abort();
}
