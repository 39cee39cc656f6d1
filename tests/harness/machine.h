// The machine behind host.h: fibers, the order in which they run, and the rules that they must keep.
#pragma once
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <vector>

#include "block.h"
#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#define ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADDRESS_SANITIZER 1
#endif
#endif

#ifdef ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
// The kernels are on trial, not the machine, which would take longer than they do.
#define UNCHECKED __attribute__((no_sanitize_address, no_sanitize_undefined))
#else
#ifdef RACES
#define UNCHECKED __attribute__((no_sanitize("thread")))
#else
#define UNCHECKED
#endif
static void __sanitizer_start_switch_fiber(void **, const void *, size_t) {}
static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) {}
#endif

// ---- Stacks. swapcontext asks the kernel for the signal mask each time, and a row of 151,936 tokens takes millions of
// switches; saving the registers that a function must preserve is all that is needed.

#ifndef __x86_64__
#error "switch_stack is written for x86-64"
#endif

extern "C" void switch_stack(void **save, void *load);
asm(R"(
    .text
    .globl switch_stack
    .type switch_stack, @function
switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size switch_stack, .-switch_stack
)");

#define STACK_BYTES (64u << 10)
// A block has no business behind this many barriers.
#define MAX_BARRIERS 10000u

struct Fiber {
    u64 *stack;     // as long as the program runs
    void *pointer;  // where the stack stood when the fiber gave way
    void *fake_stack = nullptr;
    Wait wait;
    Site site;
    u32 operand, argument;
    u64 answer;
};

struct Machine {
    Fiber threads[BLOCK];
    std::function<void()> kernel;
    u32 thread, block, block_y;
    u64 random;
    // A barrier that does nothing, to see whether it would be missed.
    Site without;

    void *pointer, *fake_stack;
    const void *stack;
    size_t stack_bytes;

    struct Memory {
        u64 *words;
        size_t count;
    };
    std::vector<Memory> shared;
};

inline Machine machine;

u32 thread_index() { return machine.thread; }
u32 block_index() { return machine.block; }
u32 block_index_y() { return machine.block_y; }

// xorshift64* (Vigna, 2016).
UNCHECKED inline u64 next_random() {
    u64 &x = machine.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return x * 0x2545F4914F6CDD1Dull;
}

// A random order of 0 … n − 1, n a power of two: an odd stride visits everything once.
struct Order {
    u32 n, start, stride;
    UNCHECKED explicit Order(u32 n) : n(n), start((u32)(next_random() >> 32)), stride((u32)(next_random() >> 32) | 1) {}
    UNCHECKED u32 operator[](u32 i) const { return (start + i * stride) % n; }
};

// ---- A thread's side. ---------------------------------------------------------------------------------------------

UNCHECKED inline void give_way(Wait what, Site site) {
    Fiber &self = machine.threads[machine.thread];
    self.wait = what;
    self.site = site;
    __sanitizer_start_switch_fiber(&self.fake_stack, machine.stack, machine.stack_bytes);
    switch_stack(&self.pointer, machine.pointer);
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
}

UNCHECKED inline bool is_left_out(Site site) {
    return site.line == machine.without.line && strstr(site.file, machine.without.file);
}

UNCHECKED void wait_for_block(Site site) {
    if (is_left_out(site)) return;
    give_way(BARRIER, site);
}

UNCHECKED u64 wait_for_wave(Wait what, Site site, u32 operand, u32 argument) {
    Fiber &self = machine.threads[machine.thread];
    if (what == WAVE_BARRIER && is_left_out(site)) return 0;
    self.operand = operand;
    self.argument = argument;
    give_way(what, site);
    return self.answer;
}

// A fiber outlives its block: it runs the kernel again for the next one.
inline void fiber_main() {
    __sanitizer_finish_switch_fiber(nullptr, &machine.stack, &machine.stack_bytes);
    for (;;) {
        machine.kernel();
        give_way(FINISHED, {"the end", 0});
    }
}

inline void make_fibers() {
    for (Fiber &f : machine.threads) {
        f.stack = new u64[STACK_BYTES / sizeof(u64)];
        // What switch_stack pops: six registers, then where to begin; no one returns to the last word.
        u64 *top = f.stack + STACK_BYTES / sizeof(u64);
        top -= (u64)top % 16 / sizeof(u64);
        top[-1] = 0;
        top[-2] = (u64)&fiber_main;
        f.pointer = top - 8;
    }
}

// ---- The scheduler's side. ----------------------------------------------------------------------------------------

UNCHECKED inline void resume(u32 thread) {
    Fiber &f = machine.threads[thread];
    machine.thread = thread;
    now_runs(thread);
    __sanitizer_start_switch_fiber(&machine.fake_stack, f.stack, STACK_BYTES);
    switch_stack(&machine.pointer, f.pointer);
    __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
}

// Threads `first` and `other` wait for each other, and must have come to the same place.
UNCHECKED inline void must_agree(const char *group, u32 first, u32 other) {
    static_assert(FINISHED == 5, "one name for each kind of wait");
    const char *names[] = {"a barrier", "shuffle_xor", "shuffle_up", "a vote", "a barrier of its wave", "its end"};
    const Fiber &a = machine.threads[first], &b = machine.threads[other];
    bool same_argument = a.wait == BARRIER || a.wait == FINISHED || a.argument == b.argument;
    bool same_file = a.site.file == b.site.file || !strcmp(a.site.file, b.site.file);
    if (a.wait == b.wait && a.site.line == b.site.line && same_file && same_argument) return;
    fprintf(stderr, "diverged: block %u, one %s: thread %u is at %s (%s:%d), thread %u at %s (%s:%d)\n", machine.block,
            group, first, names[a.wait], a.site.file, a.site.line, other, names[b.wait], b.site.file, b.site.line);
    exit(3);
}

// Lets a wave run until all its lanes wait for the block or have finished.
UNCHECKED inline void run_wave(u32 wave) {
    Fiber *lanes = &machine.threads[wave * WAVE];
    for (;;) {
        Order order(WAVE);
        for (u32 i = 0; i < WAVE; i++) resume(wave * WAVE + order[i]);
        for (u32 l = 1; l < WAVE; l++) must_agree("wave", wave * WAVE, wave * WAVE + l);
        Wait wait = lanes[0].wait;
        if (wait == BARRIER || wait == FINISHED) return;
        wave_has_met(wave);
        u64 ballot = 0;
        for (u32 l = 0; l < WAVE; l++) ballot |= (u64)(lanes[l].operand & 1) << l;
        for (u32 l = 0; l < WAVE; l++) {
            u32 argument = lanes[l].argument;
            u32 from = wait == SHUFFLE_XOR ? l ^ argument : l < argument ? l : l - argument;
            lanes[l].answer = wait == VOTE ? ballot : lanes[from].operand;
        }
    }
}

// The linker's table of symbols tells where the SHARED variables are: they alone are local to a function (_ZZ…) and
// writable. The table is in the file of the program, or of the library that the kernels were made into.
inline void find_shared_memory() {
    struct Object {
        u64 base;
        const char *path;
    } object = {};
    auto find_own = [](dl_phdr_info *info, size_t, void *found) {
        for (u32 i = 0; i < info->dlpi_phnum; i++) {
            const Elf64_Phdr &part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD || (u64)&machine - info->dlpi_addr - part.p_vaddr >= part.p_memsz) continue;
            *(Object *)found = {info->dlpi_addr, info->dlpi_name};
            return 1;
        }
        return 0;
    };
    dl_iterate_phdr(find_own, &object);
    std::ifstream own(*object.path ? object.path : "/proc/self/exe", std::ios::binary);
    std::vector<char> file((std::istreambuf_iterator<char>(own)), std::istreambuf_iterator<char>());
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file.data();
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file.data() + elf->e_shoff);
    for (u32 i = 0; i < elf->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const char *names = file.data() + sections[sections[i].sh_link].sh_offset;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file.data() + sections[i].sh_offset);
        for (u64 s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); s++)
            if (symbols[s].st_info == ELF64_ST_INFO(STB_LOCAL, STT_OBJECT) &&
                !strncmp(names + symbols[s].st_name, "_ZZ", 3) && sections[symbols[s].st_shndx].sh_flags & SHF_WRITE)
                machine.shared.push_back(
                    {(u64 *)(object.base + symbols[s].st_value), symbols[s].st_size / sizeof(u64)});
    }
}

// Unchecked, because a symbol's size includes AddressSanitizer's red zone.
UNCHECKED inline void fill_shared_memory() {
    for (const Machine::Memory &m : machine.shared)
        for (size_t i = 0; i < m.count; i++) m.words[i] = next_random();
}

inline void start_machine(u64 seed, Site without) {
    machine.random = seed * 0x9E3779B97F4A7C15ull + 1;
    machine.without = without;
    make_fibers();
    find_shared_memory();
    for (const Machine::Memory &m : machine.shared) watch_shared_memory(m.words, m.count * sizeof(u64));
}

// kernel<<<dim3(columns, rows), threads>>>.
inline void launch(u32 columns, u32 rows, u32 threads, std::function<void()> kernel) {
    machine.kernel = kernel;
    u32 in_block = threads / WAVE;
    u32 blocks = columns * rows;
    std::vector<u32> order(blocks);
    for (u32 i = 0; i < blocks; i++) {
        u32 other = (u32)(next_random() % (i + 1));
        order[i] = order[other];
        order[other] = i;
    }
    for (u32 block : order) {
        block_has_met();
        machine.block = block % columns;
        machine.block_y = block / columns;
        // A block finds what an earlier one has left, or something that nobody wrote.
        if (next_random() >> 63) fill_shared_memory();
        u32 rounds = 0;
        do {
            if (++rounds > MAX_BARRIERS) {
                fprintf(stderr, "block %u does not end\n", block);
                exit(3);
            }
            block_has_met();
            Order waves(in_block);
            for (u32 w = 0; w < in_block; w++) run_wave(waves[w]);
            for (u32 w = 1; w < in_block; w++) must_agree("block", 0, w * WAVE);
        } while (machine.threads[0].wait == BARRIER);
    }
}
