// The way of rows whose kept tokens the summaries do not tell: dual-pivot search on the row itself. Two pivots are set around the place where
// the last kept token may be (aim.h); one look at the row sums what is above them and lists what is between (look.h); if the place is among
// these, they decide, and if not, it is known on which side it is, and the next pivots are closer.
#pragma once
#include "aim.h"
#include "look.h"

#define ROOM_WORDS (LOOK_WORDS > AIM_WORDS ? LOOK_WORDS : AIM_WORDS)
// After so many looks the pivots are thirds of what is left, which comes to an end whatever the row.
#define LOOKS_BY_SAMPLE 4u

template <typename T>
DEVICE u64 kept_mass(Row<T> &row) {
    u64 sum = 0;
    ROLLED for (u32 j = thread_index(); j < row.shared->slices; j += BLOCK) sum += row.shared->kept[j];
    return block_sum(row.block, sum);
}

// Pivots that come to an end whatever the row: thirds of what is left.
DEVICE void aim_at_thirds(Seen &seen) {
    if (thread_index() == 0) {
        u64 third = (seen.ceiling - seen.bottom) / 3;
        // Whether there is such a place at all is to be found out first.
        seen.low = seen.bottom + (seen.known ? third : 0);
        seen.high = seen.ceiling - third;
    }
    barrier();
}

// Begins the search for the last of the top k, or of the nucleus, among the tokens above `lowest`, whose count or mass is `of`. One thread's.
DEVICE void begin(State &state, const RowParams &p, Weigh weigh, u64 lowest, u64 of) {
    state.weigh = weigh;
    state.x = weigh == BY_COUNT ? p.top_k - 1 : nucleus_limit(p.top_p, of) - 1;
    state.lowest = state.bottom = lowest;
    state.ceiling = state.top;
    state.above_bottom = of;
    state.above_ceiling = 0;
    state.looks = state.known = 0;
}

// What a look says instead of a place: look again, from other pivots.
#define AGAIN 0

// Takes the tokens that a look has listed for candidates.
template <typename T>
DEVICE void load_listed(Row<T> &row) {
    Candidates &list = row.shared->list;
    u32 listed = uniform(row.shared->tally.listed);
    ROLLED for (u32 start = thread_index(); start < listed; start += BLOCK * AT_ONCE) {
        u64 key[AT_ONCE];
        u32 mass[AT_ONCE];
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 i = start + q * BLOCK < listed ? start + q * BLOCK : start;
            key[q] = row.shared->wide->keys[i];
            mass[q] = row.shared->wide->masses[i];
        }
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 i = start + q * BLOCK;
            if (i < listed) {
                list.keys[i] = key[q];
                list.masses[i] = mass[q];
            }
        }
    }
    if (thread_index() == 0) list.count = listed;
    barrier();
}

// Adds the masses of those listed tokens that come before `end`, or are there, to those of their slices: by halves, in shared memory.
template <typename T>
DEVICE void keep_listed(Row<T> &row, u32 count, u64 end) {
    Shared &shared = *row.shared;
    const Seen &seen = shared;
    u32 *sums = (u32 *)shared.list.keys;
    ROLLED for (u32 begin = 0; begin < shared.slices; begin += CAPACITY) {
        u32 slices = shared.slices - begin < CAPACITY ? shared.slices - begin : CAPACITY;
        ROLLED for (u32 i = thread_index(); i < 2 * slices; i += BLOCK) sums[i] = 0;
        barrier();
        ROLLED for (u32 start = thread_index(); start < count; start += BLOCK * AT_ONCE) {
            u64 key[AT_ONCE], mass[AT_ONCE];
            read_tokens<AT_ONCE>(seen, start, count, BY_MASS, key, mass);
            UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
                u32 j = key_id(key[q]) / SLICE - begin;
                if (start + q * BLOCK >= count || key[q] < end || j >= slices) continue;
                add_by_halves(sums, slices, j, mass[q], BY_MASS);
            }
        }
        barrier();
        ROLLED for (u32 j = thread_index(); j < slices; j += BLOCK) shared.kept[begin + j] += both_halves(sums, slices, j);
    }
}

// What a look from row.low and row.high has found decides, of the tokens above row.lowest, the place below the one at which the running sum
// exceeds row.x; or row.lowest, if it does not. What is above the place is kept, and its mass left, slice by slice, in row.kept.
template <typename T>
DEVICE u64 judge(Row<T> &row, Weigh weigh) {
    Shared &shared = *row.shared;
    u64 above_low = weigh == BY_COUNT ? (u32)shared.tally.counts : shared.tally.masses[0];
    u64 above_high = weigh == BY_COUNT ? shared.tally.counts >> 32 : shared.tally.masses[1];
    bool over = shared.x < above_high, below = shared.x >= above_low;
    // There are not so many. To leave their masses takes a look from below all of them, which is the next.
    bool all = below && shared.low == shared.lowest;
    if (uniform(all && shared.high == shared.lowest)) {
        barrier();
        return shared.lowest;
    }
    if (uniform(!over && !below && shared.tally.listed <= LISTED)) {
        u32 count = uniform(shared.tally.listed);
        const Seen &seen = shared;
        u64 low = shared.low, x = shared.x - above_high;
        u64 end = crossing<AT_ONCE>(seen, count, shared.list, row.block, BY_KEY, weigh, low, low, shared.high, x).key;
        keep_listed(row, count, end);
        return end - 1;
    }
    if (thread_index() == 0) {
        if (!below) {
            shared.bottom = over ? shared.high : shared.low;
            shared.above_bottom = over ? above_high : above_low;
            shared.known = true;
        }
        if (!over) {
            shared.ceiling = below ? shared.low : shared.high;
            shared.above_ceiling = below ? above_low : above_high;
        }
        shared.looks = all ? LOOKS_BY_SAMPLE : shared.looks + 1;
    }
    barrier();
    return AGAIN;
}
