// A GPU of one CPU thread: what kernels/portable.h asks for, on a host C++17 compiler.
//
// The threads of a block are fibers, and the machine below decides who runs. A thread runs until it needs others, in a
// barrier or a shuffle, and then gives way. A wave goes as far as it can before the next one starts, and the order of
// waves, of lanes and of blocks is drawn anew from a seed each time: a kernel that lacks a barrier reads what another wave
// has not written yet, or has written already, and its result changes with the seed.
//
// Stricter than a GPU, which lets much pass that it does not promise: all lanes of a wave must take part in a shuffle or
// a vote, and all threads of a block in a barrier, at the same line; anything else ends the program with a message.
#pragma once
#include <math.h>
#include <string.h>

#undef UNROLL
#undef UNROLL_SOME
#undef ROLLED
#define UNROLL
#define UNROLL_SOME
#define ROLLED
#define DEVICE static inline
// Blocks run one after the other, so static storage serves as shared memory. Before every other block, by chance, it is
// filled with garbage; the others find what the block before them left.
#define SHARED static
#define GLOBAL
// Compilers do not know the attribute; tests/standin reads it.
#define KERNEL(threads, blocks) extern "C" __attribute__((block(threads))) void

// A place in a kernel. The default arguments below are evaluated where the caller stands.
struct Site {
    const char *file;
    int line;
};
#define SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// What a thread waits for. `operand` differs from lane to lane, `argument` (a mask, a distance) must not.
enum Wait { BARRIER, SHUFFLE_XOR, SHUFFLE_UP, VOTE, WAVE_BARRIER, FINISHED };

// Implemented by the machine (machine.h).
u32 thread_index();
u32 block_index();
u32 block_index_y();
void wait_for_block(Site site);
u64 wait_for_wave(Wait what, Site site, u32 operand, u32 argument);

DEVICE void barrier(SITE) { wait_for_block({file, line}); }
DEVICE void wave_barrier(SITE) { wait_for_wave(WAVE_BARRIER, {file, line}, 0, 0); }
DEVICE u32 shuffle_xor(u32 x, u32 mask, SITE) { return (u32)wait_for_wave(SHUFFLE_XOR, {file, line}, x, mask); }
DEVICE u32 shuffle_up(u32 x, u32 delta, SITE) { return (u32)wait_for_wave(SHUFFLE_UP, {file, line}, x, delta); }
DEVICE u64 vote(bool x, SITE) { return wait_for_wave(VOTE, {file, line}, x, 0); }
// Only one thread runs at a time, but that these may meet has to show (races.h).
DEVICE u32 atomic_add(u32 *p, u32 x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
DEVICE u32 atomic_add_on_device(u32 *p, u32 x) { return atomic_add(p, x); }
DEVICE u64 atomic_add_on_device(u64 *p, u64 x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
// The host may take a token as soon as it is there, so it must not be written again.
DEVICE void write_for_host(u32 *to, u32 x) {
#ifdef FILLED
    if (*to != FILLED * 0x01010101u) {
        fprintf(stderr, "twice: a token is written where there is one\n");
        exit(3);
    }
#endif
    *to = x;
}
#define HAS_WRITE_FOR_HOST
DEVICE u32 uniform(u32 x) { return x; }
DEVICE u32 opaque(u32 x) { return x; }
DEVICE u32 count_bits(u64 x) { return (u32)__builtin_popcountll(x); }
DEVICE u32 lowest_bit(u64 x) { return (u32)__builtin_ctzll(x); }
DEVICE u32 highest_bit(u64 x) { return 63 - (u32)__builtin_clzll(x); }

DEVICE float absolute(float x) { return fabsf(x); }
DEVICE float at_least(float x, float least) { return x > least ? x : least; }
DEVICE float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE u32 round_u32(float x) { return (u32)rintf(x); }
DEVICE float exp2_about(float x) { return exp2f(x); }
DEVICE u32 bits_of(float x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
DEVICE float float_of(u32 bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
DEVICE u64 mul_hi(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
DEVICE double divide_f64(double a, double b) { return a / b; }
DEVICE float half_to_float(u16 h) {
    // The exponents differ by 112; multiplying makes subnormals right as well, but not infinities and NaN.
    u32 magnitude = h & 0x7fffu, sign = (u32)(h & 0x8000u) << 16;
    float finite = float_of(magnitude << 13) * float_of(0x77800000u);
    float special = float_of(0x7f800000u | magnitude << 13);
    return float_of(sign | bits_of(finite < 65536.0f ? finite : special));
}
