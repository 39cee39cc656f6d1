// A row's few tokens that matter, in shared memory, and the one question that sampling asks of them: in this order, at
// which token does the running sum pass x? With ones for weights that is the k-th token, with masses the last of the
// nucleus, and in the order of ids it is the token drawn.
//
// The answer is found by dual-pivot search (Ye et al., "Sorting-Free GPU Kernels for LLM Sampling", FlashInfer, 2025): keep a
// place below and one above, look at the sums above two pivots between them, keep the third that holds the answer. Pivots are
// places in a total order, and sums are integers, so there is nothing to break ties for and nothing that rounds.
#pragma once
#include "block.h"

#define CAPACITY 3584u
#define COUNT_BITS 12u  // CAPACITY fits
// Of this many the answer is found by comparing each with each.
#define FEW 128u
#define TEAM (BLOCK / FEW)

struct Candidates {
    u32 count;  // of those that were added; if above CAPACITY, some are missing
    u32 few;
    u64 found;
    alignas(16) u64 keys[CAPACITY];
    alignas(8) u32 masses[CAPACITY];  // packed; after weigh_list
    u64 few_keys[FEW], few_weights[FEW];
};

// A token's mass is its weight, below 2^28, shifted from the slice's unit to the row's; with the shift to the left it fits 32 bits.
struct Shift {
    u32 right, left;
};

DEVICE Shift shift_of(SliceScale s, u32 row_unit) {
    u32 down = row_unit - s.unit;
    if (down <= HEADROOM) return {0, HEADROOM - down};
    return {down - HEADROOM < 31 ? down - HEADROOM : 31, 0};
}

DEVICE u32 pack_mass(u32 weight, Shift shift) { return weight >> shift.right << 4 | shift.left; }
DEVICE u64 unpack_mass(u32 packed) { return (u64)(packed >> 4) << (packed & 15u); }

// Room in a list for what the lanes have, each so many: where a lane's begin. The list is the block's, or the device's.
DEVICE u32 claim(u32 *length, u32 mine) {
    u32 prefix = wave_prefix(mine), all = wave_max(prefix);
    return wave_max(lane_index() == 0 ? atomic_add(length, all) : 0) + prefix - mine;
}

DEVICE u32 claim_on_device(u32 *length, u32 mine) {
    u32 prefix = wave_prefix(mine), all = wave_max(prefix);
    return wave_max(lane_index() == 0 ? atomic_add_on_device(length, all) : 0) + prefix - mine;
}

enum Sequence { BY_KEY, BY_ID };
enum Weigh { BY_COUNT, BY_MASS, NEITHER };

// Descending values are ascending places in the order.
DEVICE u64 value_of(u64 key, Sequence order) { return order == BY_ID ? (u32)key : key; }

DEVICE u64 weight_of(const Candidates &list, u32 i, Weigh weigh) {
    return weigh == BY_COUNT ? 1 : unpack_mass(list.masses[i]);
}

// The candidates above `low`: how many, and their mass.
struct Total {
    u64 mass;
    u32 count;
};

DEVICE Total total_above(const Candidates &list, Block &b, u64 low) {
    u64 sums[2] = {0, 0};
    ROLLED for (u32 i = thread_index(); i < uniform(list.count); i += BLOCK) {
        bool above = list.keys[i] > low;
        sums[0] += above ? unpack_mass(list.masses[i]) : 0;
        sums[1] += above;
    }
    block_sums<2>(b, sums);
    return {sums[0], (u32)sums[1]};
}

// What the few that come before this thread's weigh: TEAM threads have one of them, and compare it with a share of the others each.
DEVICE u64 few_before(const Candidates &list, const u64 *weights, u32 few, Sequence order) {
    u32 mine = thread_index() / TEAM;
    u64 before = 0, value = mine < few ? value_of(list.few_keys[mine], order) : ~(u64)0;
    UNROLL_SOME for (u32 i = thread_index() % TEAM; i < few; i += TEAM)
        before += value_of(list.few_keys[i], order) > value ? weights[i] : 0;
    ROLLED for (u32 mask = 1; mask < TEAM; mask *= 2) before += shuffle_xor_u64(before, mask);
    return before;
}

// Of the `inside` candidates above `low`, whose values are all in (bottom, top]: the key of the one at which the running sum exceeds `x`
// (it does). It may be near `guess`, if that is not 0.
DEVICE u64 crossing(Candidates &list, Block &b, Sequence order, Weigh weigh, u64 low, u32 inside, u64 bottom, u64 top,
                    u64 guess, u64 x) {
    u64 above_top = 0;
    u32 count = uniform(list.count), outside = 0;  // above the top
    ROLLED while (uniform(inside > FEW)) {
        u64 third = (top - bottom) / 3, low_pivot = bottom + third, high_pivot = top - third;
        if (guess > bottom && guess < top) {
            high_pivot = guess;
            low_pivot = bottom + (guess - bottom) / 2;
        }
        guess = 0;
        // Sums above the pivots, and counts in the low bits: a list's mass is below 2^51.
        u64 above[2] = {0, 0};
        UNROLL_SOME for (u32 i = thread_index(); i < count; i += BLOCK) {
            u64 key = list.keys[i], value = key > low ? value_of(key, order) : 0;
            u64 weight = weight_of(list, i, weigh) << COUNT_BITS | 1;
            above[0] += value > low_pivot ? weight : 0;
            above[1] += value > high_pivot ? weight : 0;
        }
        block_sums<2>(b, above);
        u32 above_low = above[0] & ((1u << COUNT_BITS) - 1), above_high = above[1] & ((1u << COUNT_BITS) - 1);
        above[0] >>= COUNT_BITS;
        above[1] >>= COUNT_BITS;
        if (uniform(x < above[1])) {
            bottom = high_pivot;
            inside = above_high - outside;
        } else if (uniform(x < above[0])) {
            top = high_pivot;
            bottom = low_pivot;
            above_top = above[1];
            inside = above_low - above_high;
            outside = above_high;
        } else {
            top = low_pivot;
            above_top = above[0];
            inside -= above_low - outside;
            outside = above_low;
        }
    }

    // The few that are left, each against each.
    if (thread_index() == 0) list.few = 0;
    barrier();
    ROLLED for (u32 i = thread_index(); i < count; i += BLOCK) {
        u64 key = list.keys[i], value = value_of(key, order);
        if (key <= low || value <= bottom || value > top) continue;
        u32 at = atomic_add(&list.few, 1);
        list.few_keys[at] = key;
        list.few_weights[at] = weight_of(list, i, weigh);
    }
    barrier();
    u64 before = above_top + few_before(list, list.few_weights, list.few, order);
    u32 mine = thread_index() / TEAM;
    if (mine < list.few && before <= x && x - before < list.few_weights[mine]) list.found = list.few_keys[mine];
    barrier();
    return list.found;
}
