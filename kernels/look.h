// A second look at a row: what the first read's summaries leave open about two places in the order. Only groups whose largest logit is
// above the lower one are read again.
#pragma once
#include "row.h"

// Slices whose groups are gone through together.
#define CHUNK 320u
// What a look needs of shared memory, in words: two halves of each slice's mass, and the groups to read.
#define LOOK_WORDS (2 * CHUNK + CHUNK * GROUPS / 2)

// If so many groups of a slice are to be read, all are: as a slice is read, four tokens a lane and all lanes' next to each other.
#define DENSE 16u
#define ALL_OF_SLICE 0x8000u

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

// Fours of its group that a lane reads at once. In waves of 64 the answer to each question takes two scalar registers, and with all tokens at
// once they run out.
#define FOURS_AT_ONCE (WAVE == 64 ? 1u : GROUP / 4)

// What a lane has found: a bit for each of its tokens above the low place and for each above the high one, and what the latter weigh.
struct Found {
    u32 low, high;
    u32 mass;  // in the slice's unit, or the row's where that is coarser
};

// The id of a lane's token i: it has four from `first` on, four from `apart` further on, and so on.
DEVICE u32 id_of(u32 first, u32 apart, u32 i) { return first + i / 4 * apart + i % 4; }

// 16 tokens of slice `j`, so many reads of four at once. `ties` is known to the compiler, because few slices have any and the others should
// not ask.
template <typename T, u32 at_once, bool ties>
DEVICE Found find(const Seen &seen, u32 j, u32 first, u32 apart, SliceScale s, u32 shift) {
    Found found = {0, 0, 0};
    Cut lower = cut_of(seen.low, j), upper = cut_of(seen.high, j);
    ROLLED for (u32 start = 0; start < GROUP; start += 4 * at_once) {
        // In waves of 64 registers are short: not kept from before the loop.
        if (WAVE == 64) s = scale_of(seen, opaque(j));
        Four<T> four[at_once];
        u32 ids[at_once];
        UNROLL for (u32 q = 0; q < at_once; q++) ids[q] = id_of(first, apart, start + 4 * q);
        read_fours<at_once>((const T *)seen.logits, seen.vocab, ids, four);
        UNROLL for (u32 i = 0; i < 4 * at_once; i++) {
            float z = token_of(four[i / 4], i % 4);
            u32 w = weight(s, z) >> shift, id = id_of(first, apart, start + i);
            bool low = z > lower.threshold, high = z > upper.threshold;
            if (ties) {
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

// Whether a place's id is in the slice.
DEVICE bool has_ties(u64 place, u32 j) { return key_id(place) > j * SLICE && key_id(place) < (j + 1) * SLICE; }

// Lists those tokens of a lane that have a bit, and sums what they weigh. They are few, and to read them again is less than to keep all of
// them in registers.
template <typename T>
DEVICE u32 list_between(const Seen &seen, u32 bits, u32 first, u32 apart, SliceScale s, Shift shift) {
    u32 at = claim_on_device((u32 *)&seen.wide->tally.listed, count_bits(bits)), sum = 0;
    ROLLED for (; bits; bits &= bits - 1, at++) {
        u32 id = id_of(first, apart, lowest_bit(bits));
        float z = widen(((const T *)seen.logits)[id]);
        u32 w = s.some ? weight(s, z) : 0;
        sum += w >> shift.right;
        if (at >= LISTED) continue;
        seen.wide->keys[at] = key_of(z, id);
        seen.wide->masses[at] = pack_mass(w, shift);
    }
    return sum;
}

// Lists the groups of so many slices from `begin` on whose largest logit is above that of a place, `hits` of them.
DEVICE void list_groups(Seen &seen, u16 *hits, u32 begin, u32 slices, u64 place) {
    if (thread_index() == 0) seen.hits = 0;
    barrier();
    // Four lanes have a slice's groups, eight of them each.
    const u32 of_slice = GROUPS / 8;
    u32 lanes = slices * of_slice;
    ROLLED for (u32 start = 0; start < lanes; start += BLOCK * AT_ONCE) {
        if (start + wave_index() * WAVE >= lanes) break;
        Drops<8> eight[AT_ONCE];
        float most[AT_ONCE];
        u32 mask = 0, dense = 0;
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + thread_index();
            lane = lane < lanes ? lane : 0;
            eight[q] = drops_of<8>(seen.groups, begin * of_slice + lane);
            most[q] = seen.largest[begin + lane / of_slice];
        }
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + thread_index(), hit = 0;
            if (uniform(lane - lane_index() >= lanes)) continue;
            u32 above = lane < lanes ? drops_above(most[q], cut_of(place, begin + lane / of_slice).threshold) : 0;
            UNROLL for (u32 c = 0; c < 8; c++) hit |= (u32)(eight[q].drops[c] < above) << c;
            u32 hits_of_slice = count_bits(hit);
            UNROLL for (u32 other = 1; other < of_slice; other *= 2) hits_of_slice += shuffle_xor(hits_of_slice, other);
            if (hits_of_slice >= DENSE) {
                hit = 255;
                dense |= 1u << q;
            }
            mask |= hit << 8 * q;
        }
        if (!vote(mask != 0)) continue;
        u32 at = mask ? atomic_add(&seen.hits, count_bits(mask)) : 0;
        ROLLED for (; mask; mask &= mask - 1) {
            u32 bit = lowest_bit(mask), lane = start + bit / 8 * BLOCK + thread_index();
            hits[at++] = (u16)((lane * 8 + bit % 8) | (dense >> bit / 8 & 1 ? ALL_OF_SLICE : 0));
        }
    }
    barrier();
}

// A lane's tokens: 16 of slice `j`, four from `id` on, four from `apart` further on, and so on.
struct Hit {
    u32 j, id, apart;
};

// Lanes without a group read the first, and forget it.
DEVICE Hit hit_of(const u16 *hits, u32 begin, bool some, u32 i) {
    u32 hit = some ? hits[i] : 0, group = hit & ~ALL_OF_SLICE, j = begin + group / GROUPS;
    bool all = hit & ALL_OF_SLICE;
    return {j, some ? j * SLICE + group % GROUPS * (all ? 4 : GROUP) : 0, all ? SLICE / 4 : 4};
}

// This block's part of a look at the places seen.low and seen.high: the slices from `first` to before `last`. Counts and sums the tokens
// above; leaves each slice's mass above the high place in row.kept. `room` is LOOK_WORDS of shared memory.
template <typename T, u32 at_once>
DEVICE Tally look_at(Seen &seen, Block &b, u32 *room, u32 first, u32 last) {
    u32 *sums = room;
    u16 *hits = (u16 *)(room + 2 * CHUNK);
    u32 counts = 0;  // a thread's fit 16 bits: of 2^24 tokens, it has 2^15
    u64 between = 0, high = 0;
    ROLLED for (u32 begin = first; begin < last; begin += CHUNK) {
        u32 slices = last - begin < CHUNK ? last - begin : CHUNK;
        u32 mine = opaque(thread_index());
        // By the threads that have read them.
        ROLLED for (u32 i = mine; i < CHUNK; i += BLOCK) sums[i] = sums[CHUNK + i] = 0;
        list_groups(seen, hits, begin, slices, seen.low);
        u32 count = uniform(seen.hits);
        ROLLED for (u32 start = wave_index() * WAVE; start < count; start += BLOCK) {
            bool some = start + lane_index() < count;
            auto [j, id, apart] = hit_of(hits, begin, some, start + lane_index());
            SliceScale s = scale_of(seen, j);
            Shift shift = shift_of(s, seen.unit);
            Found found = vote(has_ties(seen.low, j) || has_ties(seen.high, j)) ? find<T, at_once, true>(seen, j, id, apart, s, shift.right)
                                                                                : find<T, at_once, false>(seen, j, id, apart, s, shift.right);
            if (!some) found = {0, 0, 0};
            u32 bits = found.low & ~found.high, mass = 0;
            if (vote(bits != 0)) mass = list_between<T>(seen, bits, id, apart, s, shift);
            if (!s.some) found.mass = 0;
            if (found.mass) {
                atomic_add(&sums[j - begin], found.mass & 0xffffu);
                atomic_add(&sums[CHUNK + j - begin], found.mass >> 16);
            }
            counts += count_bits(found.low) | count_bits(found.high) << 16;
            between += (u64)mass << shift.left;
        }
        barrier();
        ROLLED for (u32 i = mine; i < slices; i += BLOCK) {
            u32 j = begin + i;
            u64 sum = sums[i] + ((u64)sums[CHUNK + i] << 16);
            sum <<= shift_of(scale_of(seen, j), seen.unit).left;
            seen.kept[j] = sum;
            high += sum;
        }
    }
    u64 totals[3] = {(counts & 0xffffu) | (u64)(counts >> 16) << 32, between, high};
    block_sums<3>(b, totals);
    return {totals[0], {totals[1] + totals[2], totals[2]}, {}, 0, 0, 0, 0};
}
