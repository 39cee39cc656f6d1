// What the waves of one block do together: sums and maxima through shared memory.
#pragma once
#include "slice.h"

// The host compiles what draws for few rows, whose blocks have the GPU to themselves, for some, and for many: then blocks are half as large, which takes
// longer, and a multiprocessor has twice as many of them.
#define FEW_ROWS 0
#define SOME_ROWS 1
#define MANY_ROWS 2
#ifndef ROWS
#define ROWS FEW_ROWS
#endif
#define BLOCK (ROWS == MANY_ROWS ? 256u : 512u)
#define WAVES (BLOCK / WAVE)
// Of so many things a block has each in a register: a thread one of every BLOCK.
#define SLOTS 512u
#define EACH (SLOTS / BLOCK)

#define MAX_SUMS 4u

// Room for a few words a wave. The two halves take turns, so that one barrier a call is enough: who writes a half again has
// passed the barrier of the call between, and so has everyone who read it.
struct Scratch {
    u64 words[2][MAX_SUMS * WAVES];
};

struct Block {
    Scratch *scratch;
    u32 turn;
};

DEVICE u64 *next_words(Block &b) { return b.scratch->words[b.turn ^= 1]; }

// The sums of `n` values over all threads, for all threads.
template <u32 n, typename W>
DEVICE void block_sums(Block &b, W *x) {
    u64 *words = next_words(b);
    UNROLL for (u32 i = 0; i < n; i++) {
        W sum = wave_sum(x[i]);
        if (lane_index() == 0) words[i * WAVES + wave_index()] = sum;
    }
    barrier();
    UNROLL for (u32 i = 0; i < n; i++) x[i] = wave_sum(lane_index() < WAVES ? (W)words[i * WAVES + lane_index()] : 0);
}

// Of how many threads it holds.
DEVICE u32 block_count(Block &b, bool x) {
#ifdef HAS_COUNT_AT_BARRIER
    (void)b;
    return count_at_barrier(x);
#else
    u32 count = x;
    block_sums<1>(b, &count);
    return count;
#endif
}

DEVICE u64 block_sum(Block &b, u64 x) {
    block_sums<1>(b, &x);
    return x;
}

// The largest of each of `n` values, of 32 or 64 bits.
template <u32 n, typename W>
DEVICE void block_maxes(Block &b, W *x) {
    u64 *words = next_words(b);
    UNROLL for (u32 i = 0; i < n; i++) {
        W most = wave_max(x[i]);
        if (lane_index() == 0) words[i * WAVES + wave_index()] = most;
    }
    barrier();
    UNROLL for (u32 i = 0; i < n; i++) x[i] = wave_max(lane_index() < WAVES ? (W)words[i * WAVES + lane_index()] : 0);
}

DEVICE u64 block_max(Block &b, u64 x) {
    block_maxes<1>(b, &x);
    return x;
}

// The sum over the threads before this one; and over all of them, where that is wanted.
DEVICE u64 block_prefix(Block &b, u64 x, u64 *total = 0) {
    static_assert(WAVES <= WAVE, "a lane for each wave");
    u64 *words = next_words(b), through = wave_prefix(x);
    if (lane_index() == WAVE - 1) words[wave_index()] = through;
    barrier();
    u64 waves = lane_index() < WAVES ? words[lane_index()] : 0;
    if (total) *total = wave_sum(waves);
    return through - x + wave_sum(lane_index() < wave_index() ? waves : 0);
}
