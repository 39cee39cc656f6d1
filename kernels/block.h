// What the waves of one block do together: sums and maxima through shared memory.
#pragma once
#include "slice.h"

#define BLOCK 512u
#define WAVES (BLOCK / WAVE)

// The sum over all threads, for all threads. `scratch` holds WAVES + 1 words; calls may follow each other, because
// the second barrier comes after the first thread has read and before anyone can write again.
DEVICE u64 block_sum(u64 x, u64 *scratch) {
    x = wave_sum(x);
    if (lane_index() == 0) scratch[wave_index()] = x;
    barrier();
    u64 total = 0;
    for (u32 w = 0; w < WAVES; w++) total += scratch[w];
    barrier();
    return total;
}

DEVICE u64 block_max(u64 x, u64 *scratch) {
    x = wave_max(x);
    if (lane_index() == 0) scratch[wave_index()] = x;
    barrier();
    u64 most = 0;
    for (u32 w = 0; w < WAVES; w++) most = scratch[w] > most ? scratch[w] : most;
    barrier();
    return most;
}

// The sum over the threads before this one.
DEVICE u64 block_prefix_before(u64 x, u64 *scratch) {
    u64 prefix = wave_prefix(x);
    if (lane_index() == WAVE - 1) scratch[wave_index()] = prefix;
    barrier();
    u64 before = 0;
    for (u32 w = 0; w < wave_index(); w++) before += scratch[w];
    barrier();
    return before + prefix - x;
}
