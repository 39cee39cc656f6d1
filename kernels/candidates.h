// A row's few tokens that matter, in shared memory, and the one question that sampling asks of them: in this order, at
// which token does the running sum pass x? With ones for weights that is the k-th token, with masses the last of the
// nucleus, and in the order of ids it is the token drawn.
//
// The answer is found by division: sum the tokens' weights by bins of the order, keep the bin that holds the answer; of a few tokens, compare
// each with each. Sums are integers and no two tokens have the same place, so there is nothing to break ties for and nothing that rounds.
#pragma once
#include "block.h"

#define CAPACITY 3584u
// Of this many the answer is found by comparing each with each.
#define FEW 128u
#define TEAM (BLOCK / FEW)
// A list of this many is drawn from by rank (draw.h).
#define RANKED 256u
// Room for a list in device memory.
#define LISTED 5632u
// Bins, and the bits of a mass that go to the first of a bin's two sums. A mass is below 2^38.51, and LISTED times either part fits 32 bits.
#define BINS 256u
#define LOW_BITS 19u

// Reads that a lane waits for together.
#define AT_ONCE 4u

struct Candidates {
    u32 count;  // of those that were added; if above CAPACITY, some are missing
    u32 few;
    u32 bin;
    u64 above;           // the bin
    u64 found, through;  // a token's key, and the sum up to it
    alignas(16) u64 keys[CAPACITY];
    alignas(8) u32 masses[CAPACITY];  // packed; after weigh_list
    u64 few_keys[FEW], few_weights[FEW];  // next to each other
};

// A token's mass is its weight, below 2^28, shifted from the slice's unit to the row's; with the shift to the left it fits 32 bits.
struct Shift {
    u32 right, left;
};

DEVICE Shift shift_of(SliceScale s, u32 row_unit) {
    u32 down = orders_down(s, row_unit);
    if (down <= HEADROOM) return {0, HEADROOM - down};
    return {down - HEADROOM < 31 ? down - HEADROOM : 31, 0};
}

DEVICE u32 pack_mass(u32 weight, Shift shift) { return weight >> shift.right << 4 | shift.left; }
DEVICE u64 unpack_mass(u32 packed) { return (u64)(packed >> 4) << (packed & 15u); }

// Room in a list in device memory for what the lanes have, each so many: where a lane's begins. One lane asks for all.
DEVICE u32 claim_on_device(u32 *length, u32 mine) {
    u32 prefix = wave_prefix(mine), all = wave_max(prefix);
    return wave_max(lane_index() == 0 ? atomic_add_on_device(length, all) : 0) + prefix - mine;
}

enum Sequence { BY_KEY, BY_ID };
enum Weigh { BY_COUNT, BY_MASS, NEITHER };

// Descending values are ascending places in the order.
DEVICE u64 value_of(u64 key, Sequence order) { return order == BY_ID ? (u32)key : key; }

// What `crossing` asks of a list: this one, or (row.h) that in device memory.
DEVICE u64 key_at(const Candidates &list, u32 i) { return list.keys[i]; }
DEVICE u64 mass_at(const Candidates &list, u32 i) { return unpack_mass(list.masses[i]); }

// What the candidates above `low` weigh.
DEVICE u64 mass_above(const Candidates &list, Block &b, u64 low) {
    u64 sum = 0;
    ROLLED for (u32 i = thread_index(); i < uniform(list.count); i += BLOCK) sum += list.keys[i] > low ? unpack_mass(list.masses[i]) : 0;
    return block_sum(b, sum);
}

// What the few that come before this thread's weigh: TEAM threads have one of them, and compare it with a share of the others each.
DEVICE u64 few_before(const Candidates &list, u32 few, Sequence order) {
    u32 mine = thread_index() / TEAM;
    u64 before = 0, value = mine < few ? value_of(list.few_keys[mine], order) : ~(u64)0;
    // Waves without a token of their own leave the time to others.
    if (uniform(wave_index() * WAVE / TEAM < few)) {
        UNROLL_SOME for (u32 i = thread_index() % TEAM; i < few; i += TEAM)
            before += value_of(list.few_keys[i], order) > value ? list.few_weights[i] : 0;
    }
    ROLLED for (u32 mask = 1; mask < TEAM; mask *= 2) before += shuffle_xor_u64(before, mask);
    return before;
}

// How what is in (bottom, top] is divided: by logits, which is more even, or by places, which always divides.
struct Bins {
    u64 bottom, top;
    float most, each;  // each is 0 for places
    u32 shift;
};

// Of a range of logits that is not smaller, bins to a logit: a power of two, so that the range has 128 to 256 of them.
#define SMALLEST_RANGE 1e-30f
DEVICE float bins_to_a_logit(float range) { return float_of((254 + 7 - (bits_of(range) >> 23)) << 23); }

DEVICE Bins divided(u64 bottom, u64 top, bool by_logit) {
    float most = key_logit(top), range = most - key_logit(bottom);
    u32 bits = highest_bit(top - bottom) + 1;
    by_logit = by_logit && range > SMALLEST_RANGE && range < POS_INF;
    return {bottom, top, most, by_logit ? bins_to_a_logit(range) : 0.0f, bits > 8 ? bits - 8 : 0};
}

// Bins descend as values do. What is not in (bottom, top] has none.
DEVICE u32 bin_of(const Bins &bins, u64 key, u64 value) {
    if (value <= bins.bottom || value > bins.top) return BINS;
    float down = (bins.most - key_logit(key)) * bins.each;
    if (bins.each > 0.0f) return down < BINS - 1.0f ? (u32)down : BINS - 1;
    return (u32)((bins.top - value) >> bins.shift);
}

// A thread's next `n` tokens of a list, each a block further on; where there are none, the first again.
template <u32 n, typename List>
DEVICE void read_tokens(const List &tokens, u32 start, u32 count, Weigh weigh, u64 *key, u64 *weight) {
    UNROLL for (u32 q = 0; q < n; q++) {
        u32 i = start + q * BLOCK < count ? start + q * BLOCK : start;
        key[q] = key_at(tokens, i);
        weight[q] = weigh == BY_COUNT ? 1 : mass_at(tokens, i);
    }
}

// Sums of masses, in two halves: sums[i] and sums[apart + i].
DEVICE void add_by_halves(u32 *sums, u32 apart, u32 i, u64 weight, Weigh weigh) {
    atomic_add(&sums[i], (u32)weight & ((1u << LOW_BITS) - 1));
    if (weigh != BY_COUNT) atomic_add(&sums[apart + i], (u32)(weight >> LOW_BITS));
}

DEVICE u64 both_halves(const u32 *sums, u32 apart, u32 i) { return sums[i] + ((u64)sums[apart + i] << LOW_BITS); }

struct Crossing {
    u64 key, through;
};

// Of the `count` tokens of a list, those above `low` whose values are in (bottom, top]: the one at which the running sum exceeds `x` (it
// does), and the sum with it. A thread reads `at_once` tokens before it looks at one: a list in shared memory needs no more than one.
template <u32 at_once, typename List>
DEVICE Crossing crossing(const List &tokens, u32 count, Candidates &list, Block &b, Sequence order, Weigh weigh, u64 low, u64 bottom, u64 top,
                         u64 x) {
    u32 bin = 0, *sums = (u32 *)list.few_keys;
    u64 above = 0;
    Bins bins = divided(bottom, top, order == BY_KEY);
    for (bool all = count <= FEW;; all = false) {
        if (!all) {
            ROLLED for (u32 i = thread_index(); i < 2 * BINS; i += BLOCK) sums[i] = 0;
            barrier();
            ROLLED for (u32 start = thread_index(); start < count; start += BLOCK * at_once) {
                u64 key[at_once], weight[at_once];
                read_tokens<at_once>(tokens, start, count, weigh, key, weight);
                UNROLL for (u32 q = 0; q < at_once; q++) {
                    u32 at = bin_of(bins, key[q], value_of(key[q], order));
                    if (start + q * BLOCK >= count || key[q] <= low || at == BINS) continue;
                    add_by_halves(sums, BINS, at, weight[q], weigh);
                }
            }
            barrier();
            u64 sum = 0;
            if (thread_index() < BINS) sum = both_halves(sums, BINS, thread_index());
            u64 before = above + block_prefix(b, sum);
            if (before <= x && x - before < sum) {
                list.bin = thread_index();
                list.above = before;
            }
        }
        if (thread_index() == 0) list.few = 0;
        barrier();
        if (!all) {
            bin = list.bin;
            above = list.above;
        }
        ROLLED for (u32 start = thread_index(); start < count; start += BLOCK * at_once) {
            u64 key[at_once];
            u32 mask = 0;
            UNROLL for (u32 q = 0; q < at_once; q++) key[q] = key_at(tokens, start + q * BLOCK < count ? start + q * BLOCK : start);
            UNROLL for (u32 q = 0; q < at_once; q++) {
                u32 at = bin_of(bins, key[q], value_of(key[q], order));
                bool inside = start + q * BLOCK < count && key[q] > low && at != BINS && (all || at == bin);
                mask |= (u32)inside << q;
            }
            ROLLED for (; mask; mask &= mask - 1) {
                u32 i = start + lowest_bit(mask) * BLOCK, place = atomic_add(&list.few, 1);
                if (place >= FEW) break;
                list.few_keys[place] = key_at(tokens, i);
                list.few_weights[place] = weigh == BY_COUNT ? 1 : mass_at(tokens, i);
            }
        }
        barrier();
        if (uniform(list.few <= FEW)) break;
        // Too many in one bin: divide that, from its first token to its last.
        u64 first = 0, last = 0;
        ROLLED for (u32 i = thread_index(); i < count; i += BLOCK) {
            u64 key = key_at(tokens, i), value = value_of(key, order);
            if (key <= low || bin_of(bins, key, value) != bin) continue;
            first = value > first ? value : first;
            last = ~value > last ? ~value : last;
        }
        first = block_max(b, first);
        bins = divided(~block_max(b, last) - 1, first, false);
    }
    u64 before = above + few_before(list, list.few, order);
    u32 mine = thread_index() / TEAM;
    if (mine < list.few && before <= x && x - before < list.few_weights[mine]) {
        list.found = list.few_keys[mine];
        list.through = before + list.few_weights[mine];
    }
    barrier();
    return {list.found, list.through};
}
