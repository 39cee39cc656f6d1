// A second look at a row: what the slices' summaries leave open about two places in the order. Only slices whose largest logit is
// above the lower one are read again.
#pragma once
#include "row.h"

// What a look finds: the tokens above its two places, and how many are between. Those are in row.wide, if they fit.
struct Look {
    Total low, high;
    u32 listed;
};

DEVICE Look look_of_others(const GLOBAL Wide *wide) {
    return {{wide->masses[0], wide->counts[0]}, {wide->masses[1], wide->counts[1]}, wide->listed};
}

// A place in the order, as one slice sees it: its tokens above the place are those with a larger logit than `threshold`, less, in the
// slice of the place itself, those that tie with it and have ids from `ties` on.
struct Cut {
    float threshold, logit;
    u32 ties;
};
#define NO_TIES 0xffffffffu

DEVICE Cut cut_of(u64 place, u32 j) {
    u32 id = key_id(place), first = j * SLICE;
    if (id <= first) return {key_logit(place), 0.0f, NO_TIES};
    return {key_previous(place), key_logit(place), id < first + SLICE ? id : NO_TIES};
}

// What a lane has found in a slice: a bit for each of its tokens above the low place and for each above the high one, and what the latter
// weigh. (What is between weighs little, and is summed when it is listed.)
struct Found {
    u32 low, high;
    u32 mass;
};

// A lane's share of a slice, so many reads of four tokens in flight; `ties` is known to the compiler, because few slices have any and the
// others should not ask.
template <typename T, u32 in_flight, bool ties>
DEVICE Found find_in_slice(const Seen &seen, u32 j, SliceScale s, u32 shift, Cut lower, Cut upper) {
    Found found = {0, 0, 0};
    ROLLED for (u32 start = 0; start < STEPS; start += 4 * in_flight) {
        Four<T> four[in_flight];
        UNROLL for (u32 q = 0; q < in_flight; q++)
            four[q] = read_four((const T *)seen.logits, seen.vocab, j * SLICE + place_of(start + 4 * q));
        UNROLL for (u32 i = 0; i < 4 * in_flight; i++) {
            float z = widen(four[i / 4].x[i % 4]);
            u32 w = weight(s, z) >> shift;
            bool low = z > lower.threshold, high = z > upper.threshold;
            if (ties) {
                u32 id = j * SLICE + place_of(start + i);
                low = low && !(id >= lower.ties && z == lower.logit);
                high = high && !(id >= upper.ties && z == upper.logit);
            }
            found.low |= low ? 1u << (start + i) : 0;
            found.high |= high ? 1u << (start + i) : 0;
            found.mass += high ? w : 0;
        }
    }
    return found;
}

// Lists those of a wave's tokens that have a bit, and sums what a lane's weigh. They are few, and to read them again is less than to keep
// them all in registers.
template <typename T>
DEVICE u32 list_again(const Seen &seen, u32 first, u32 bits, SliceScale s, u32 shift) {
    u32 at = claim_on_device((u32 *)&seen.wide->listed, count_bits(bits)), sum = 0;
    ROLLED for (; bits; bits &= bits - 1) {
        u32 id = first + place_of(lowest_bit(bits));
        float z = widen(((const T *)seen.logits)[id]);
        sum += weight(s, z) >> shift;
        if (at < CAPACITY) seen.wide->keys[at++] = key_of(z, id);
    }
    return sum;
}

// This block's part of a look at the places seen.low and seen.high: its waves take every `step`-th slice from `first` on. Counts and sums
// the tokens above; leaves each slice's mass above the high place in row.mass.
template <typename T, u32 in_flight, bool few_ties>
DEVICE Look look_at(Seen &seen, u32 first, u32 step) {
    // Each wave's own, in shared memory: registers are short here.
    u64(*sums)[WAVES] = seen.sums;
    u32 wave = wave_index();
    if (lane_index() < 4) sums[lane_index()][wave] = 0;
    ROLLED for (u32 j = uniform(first + wave); j < seen.slices; j += step) {
        u64 above_high = 0;
        Cut lower = cut_of(seen.low, j), upper = cut_of(seen.high, j);
        if (uniform(seen.largest[j] > lower.threshold)) {
            SliceScale s = scale_of(seen, j);
            Shift shift = shift_of(s, seen.unit);
            bool ties = !few_ties || uniform(lower.ties != NO_TIES || upper.ties != NO_TIES);
            Found found = ties ? find_in_slice<T, in_flight, true>(seen, j, s, shift.right, lower, upper)
                               : find_in_slice<T, in_flight, false>(seen, j, s, shift.right, lower, upper);
            u32 between = found.low & ~found.high, mass = 0;
            if (vote(between != 0)) mass = list_again<T>(seen, j * SLICE, between, s, shift.right);
            if (!s.some) found.mass = mass = 0;
            above_high = wave_sum_wide(found.mass) << shift.left;
            u64 above_low = above_high + (wave_sum_wide(mass) << shift.left);
            u32 counts = wave_sum(count_bits(found.low) | count_bits(found.high) << 16);
            if (lane_index() == 0) {
                sums[0][wave] += above_low;
                sums[1][wave] += counts & 0xffffu;
                sums[2][wave] += above_high;
                sums[3][wave] += counts >> 16;
            }
        }
        if (lane_index() == 0) seen.mass[j] = above_high;
    }
    barrier();
    u64 all[4];
    UNROLL for (u32 i = 0; i < 4; i++) all[i] = wave_sum(lane_index() < WAVES ? sums[i][lane_index()] : 0);
    return {{all[0], (u32)all[1]}, {all[2], (u32)all[3]}, 0};
}
