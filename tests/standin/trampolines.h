// Compiled behind the kernels: from an array of pointers, as hipModuleLaunchKernel takes it, to a call of a
// kernel with its types, in every thread of a grid. The types are read off the kernel; nobody lists them.
#pragma once
#include <stddef.h>

#include <tuple>
#include <type_traits>
#include <utility>

// Sources that have no such thing.
#ifndef WAVE
#define WAVE 32u
#endif
#ifndef BLOCK
#define BLOCK WAVE
#define WAVES 1u
#endif
#include "kernels.h"
#include "machine.h"

template <auto kernel>
struct Trampoline;

template <class... T, void (*kernel)(T...)>
struct Trampoline<kernel> {
    static_assert((std::is_trivially_copyable_v<T> && ...), "arguments travel to a GPU as bytes");
    using Arguments = std::tuple<T...>;

    template <size_t... I>
    static void *copy([[maybe_unused]] void **parameters, std::index_sequence<I...>) {
        return new Arguments(*(const T *)parameters[I]...);
    }
    static void *bind(void **parameters) { return copy(parameters, std::index_sequence_for<T...>()); }
    static void run(const void *arguments, unsigned columns, unsigned rows, unsigned block) {
        launch(columns, rows, block, [=] { std::apply(kernel, *(const Arguments *)arguments); });
    }
    static void drop(const void *arguments) { delete (const Arguments *)arguments; }

    static constexpr Kernel describe(const char *name, unsigned block) { return {name, sizeof...(T), block, bind, run, drop}; }
};

static void start_kernels(uint64_t seed) { start_machine(seed, Site{"", 0}); }

static void stop_kernels() {
    for (Fiber &fiber : machine.threads) delete[] fiber.stack;
}
