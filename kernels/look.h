// A second look at a row: what the first read's summaries leave open about two places in the order. Only groups whose largest logit is
// above the lower one are read again.
#pragma once
#include "row.h"

// Slices whose groups are gone through together.
#define CHUNK 128u
// What a look needs of shared memory, in words: two halves of each slice's mass, and the groups to read.
#define LOOK_WORDS (2 * CHUNK + CHUNK * GROUPS / 2)

// What a look finds: the tokens above its two places, and how many are between. Those are in row.wide, if they fit.
struct Look {
    Total low, high;
    u32 listed;
};

DEVICE Look look_of_others(const GLOBAL Wide *wide) {
    u64 counts = wide->counts;
    return {{wide->masses[0], (u32)counts}, {wide->masses[1], (u32)(counts >> 32)}, wide->listed};
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

DEVICE bool is_above(Cut cut, float z, u32 id) { return z > cut.threshold && !(z == cut.logit && id >= cut.ties); }

// What a lane has found in a group: a bit for each of its tokens between the places and for each above both; masses above either.
struct Found {
    u32 between, high;
    u32 mass_between, mass_high;  // in the slice's unit, or the row's where that is coarser
};

// Lists a group's tokens between the places, and sums what is above them.
template <typename T>
DEVICE Found look_at_group(Seen &seen, u32 group, SliceScale s, Shift shift) {
    Four<T> four[GROUP / 4];
    UNROLL for (u32 q = 0; q < GROUP / 4; q++)
        four[q] = read_four((const T *)seen.logits, seen.vocab, group < seen.slices * GROUPS ? first_of(group, q) : seen.vocab);
    u32 j = group / GROUPS;
    Cut lower = cut_of(seen.low, j), upper = cut_of(seen.high, j);
    Found found = {0, 0, 0, 0};
    UNROLL for (u32 i = 0; i < GROUP; i++) {
        float z = widen(four[i / 4].x[i % 4]);
        u32 id = first_of(group, i / 4) + i % 4, w = weight(s, z) >> shift.right;
        bool low = is_above(lower, z, id), high = is_above(upper, z, id);
        found.between |= low && !high ? 1u << i : 0;
        found.high |= high ? 1u << i : 0;
        found.mass_between += low && !high ? w : 0;
        found.mass_high += high ? w : 0;
    }
    if (!s.some) found.mass_between = found.mass_high = 0;
    if (vote(found.between != 0)) {
        u32 at = claim_on_device((u32 *)&seen.wide->listed, count_bits(found.between));
        UNROLL for (u32 i = 0; i < GROUP; i++)
            if (found.between >> i & 1 && at < CAPACITY)
                seen.wide->keys[at++] = key_of(widen(four[i / 4].x[i % 4]), first_of(group, i / 4) + i % 4);
    }
    return found;
}

// This block's part of a look at the places seen.low and seen.high: the slices from `first` to before `last`. Counts and sums the tokens
// above; leaves each slice's mass above the high place in row.kept. `room` is LOOK_WORDS of shared memory.
template <typename T>
DEVICE Look look_at(Seen &seen, Block &b, u32 *room, u32 first, u32 last) {
    u32 *sums = room;
    u16 *hits = (u16 *)(room + 2 * CHUNK);
    u64 totals[3] = {0, 0, 0};
    ROLLED for (u32 begin = first; begin < last; begin += CHUNK) {
        u32 slices = last - begin < CHUNK ? last - begin : CHUNK;
        if (thread_index() < CHUNK) sums[thread_index()] = sums[CHUNK + thread_index()] = 0;
        if (thread_index() == 0) seen.hits = 0;
        barrier();
        u32 lanes = slices * (GROUPS / 4);
        ROLLED for (u32 start = wave_index() * WAVE; start < lanes; start += BLOCK) {
            u32 lane = start + lane_index(), at = lane < lanes ? begin * GROUPS + lane * 4 : 0, mask = 0;
            Four<float> four = *(const Four<float> *)(const float *)(seen.groups + at);
            float threshold = cut_of(seen.low, at / GROUPS).threshold;
            UNROLL for (u32 c = 0; c < 4; c++) mask |= (u32)(four.x[c] > threshold && lane < lanes) << c;
            if (!vote(mask != 0)) continue;
            at = claim(&seen.hits, count_bits(mask));
            ROLLED for (; mask; mask &= mask - 1) hits[at++] = (u16)(lane * 4 + lowest_bit(mask));
        }
        barrier();
        u32 count = uniform(seen.hits);
        ROLLED for (u32 start = wave_index() * WAVE; start < count; start += BLOCK) {
            // Lanes without a group read what is not there.
            bool some = start + lane_index() < count;
            u32 group = some ? hits[start + lane_index()] : 0, j = begin + group / GROUPS;
            SliceScale s = scale_of(seen, j);
            Shift shift = shift_of(s, seen.unit);
            Found found = look_at_group<T>(seen, some ? begin * GROUPS + group : seen.slices * GROUPS, s, shift);
            if (found.mass_high) {
                atomic_add(&sums[group / GROUPS], found.mass_high & 0xffffu);
                atomic_add(&sums[CHUNK + group / GROUPS], found.mass_high >> 16);
            }
            totals[0] += count_bits(found.between | found.high) | (u64)count_bits(found.high) << 32;
            totals[1] += ((u64)found.mass_between + found.mass_high) << shift.left;
            totals[2] += (u64)found.mass_high << shift.left;
        }
        barrier();
        if (thread_index() < slices) {
            u64 sum = sums[thread_index()] + ((u64)sums[CHUNK + thread_index()] << 16);
            u32 j = begin + thread_index();
            seen.kept[j] = sum << shift_of(scale_of(seen, j), seen.unit).left;
        }
    }
    block_sums<3>(b, totals);
    return {{totals[1], (u32)totals[0]}, {totals[2], (u32)(totals[0] >> 32)}, 0};
}
