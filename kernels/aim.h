// Where to look: pivots around the place that is sought, from a sample of the row.
//
// The sample's tokens are counted in bins of the order. What they weigh at or below a bin's begin is an estimate of what the row has there,
// and the sample's own variance says how far it may be off. All blocks that look at a row do it, and get the same.
#pragma once
#include "row.h"

// The sample: groups of 16 tokens, spread over the row, at first half of them. They are so many reads of four tokens a thread, or more
// where the row is so long that the groups would be further apart than this, because the list between the pivots does not grow with the row.
#define SAMPLE_READS 8u
#define SAMPLE_AT_ONCE 4u
#define COARSEST 16u
#define SAMPLE_BINS 2048u
#define BINS_A_THREAD (SAMPLE_BINS / BLOCK)
// What it needs of shared memory, in words: the bins, one a lane for tokens that belong to none, and what a token weighs in each.
#define AIM_WORDS (2 * SAMPLE_BINS + WAVE)
// How many standard deviations the sample may be off, squared: 3.25. One row in a thousand is off by more, and takes another look.
#define DEVIATIONS 10.5625f
// A pivot is near enough if a list has room for this many tokens, which may turn out to be more. With half of the sample, fewer may be hoped
// for.
#define ENOUGH (LISTED / 8 * 7)
#define BETTER_THAN_ENOUGH (CAPACITY / 4 * 3)
#define MAX_PASSES 8u
// Sums have the number of tokens in the low bits: of 2^24 tokens, 2^20 are in the sample. That leaves 43 bits for what they weigh, which would
// be too few in units of a slice where more than 2^15 tokens are.
#define SAMPLE_BITS 21u
#define FINE_SAMPLE_OF (1u << 18)

DEVICE float bins_below(const Division &d, float bins) { return d.most - bins * d.width; }

// The place below a bin's tokens, or one near it.
DEVICE u64 bin_begin(const Division &d, u32 bin) {
    if (bin == 0) return d.low;
    if (bin == SAMPLE_BINS) return d.high;
    if (d.each > 0.0f) {
        u64 place = (u64)rank_of(bins_below(d, (float)(SAMPLE_BINS - bin))) << 32;
        return place < d.low ? d.low : place > d.high ? d.high : place;
    }
    return (d.high - d.low - 1) >> d.shift >= bin ? d.low + ((u64)bin << d.shift) : d.high;
}

// The logit in the middle of so many bins.
DEVICE float middle_of(const Division &d, u32 bin, u32 bins) {
    if (d.each > 0.0f) return bins_below(d, (float)(SAMPLE_BINS - bin) - 0.5f * (float)bins);
    u64 begin = d.low + ((u64)bin << d.shift), middle = begin + ((u64)bins << d.shift >> 1);
    return key_logit(middle < d.high ? middle : d.high);
}

// By logits, where the k-th token may be anywhere: logits to a bin.
DEVICE float logits_to_a_bin(const Seen &seen) {
    // Slices' largest logits are in the upper part of what there is.
    float range = key_logit(seen.top) - seen.least_slice;
    return range > 0.0f ? range * (4.0f / SAMPLE_BINS) : 1.0f;
}

// By logits if `width` is not 0. One thread's.
DEVICE void divide(Division &d, float most, float width, u64 low, u64 high) {
    u32 bits = highest_bit(high - low) + 1, most_bits = 11;
    static_assert(SAMPLE_BINS == 1u << 11, "bits of a bin's number");
    d = {most, width > 0.0f ? 1.0f / width : 0.0f, width, low, high, bits > most_bits ? bits - most_bits : 0};
}

// Groups that are this far apart.
DEVICE u32 sample_step(u32 vocab) {
    u32 groups = (vocab + GROUP - 1) / GROUP, step = (groups + BLOCK * SAMPLE_READS / 4 - 1) / (BLOCK * SAMPLE_READS / 4);
    return step < COARSEST ? step : COARSEST;
}

// The first token that a thread reads of a half of the sample, and how much further on the next is. Four lanes read a group, or the
// aligned tokens next to it.
template <typename T>
DEVICE u32 sample_first(const T *logits, u32 step) {
    u32 unaligned = (u32)((u64)logits % sizeof(Four<T>) / sizeof(T));
    u32 t = opaque(thread_index());
    return t / 4 * (2 * step * GROUP) + t % 4 * 4 + (4 - unaligned) % 4;
}
DEVICE u32 sample_stride(u32 step) { return BLOCK / 4 * (2 * step * GROUP); }

// Reads the sample's next fours. It is of aligned fours that are all there, so nothing is asked and nobody has to wait; where there are none, the
// row's first stand in, which count_sample leaves out.
template <u32 count, typename T>
DEVICE void read_sample(Four<T> *four, const T *logits, u32 vocab, u32 id, u32 stride) {
    UNROLL for (u32 q = 0; q < count; q++) {
        u32 at = id + q * stride;
        four[q] = *(const Four<T> *)(logits + (at + 4 <= vocab ? at : id % 4));
    }
}

// Counts a half of the sample in bins, `at_once` reads at a time, of which the first have been made if `read`. All of them, by logits, if `open`;
// otherwise those in (d.low, d.high], by places.
template <typename T, u32 at_once, bool open>
DEVICE void count_sample(const Seen &seen, u32 *bins, Four<T> *four, bool read, u32 first, u32 stride) {
    const Division &d = seen.division;
    u64 low = d.low, high = d.high;
    float most = d.most, each = d.each;
    ROLLED for (u32 at = first; at < seen.vocab; at += at_once * stride) {
        if (!read) read_sample<at_once>(four, (const T *)seen.logits, seen.vocab, at, stride);
        read = false;
        UNROLL for (u32 i = 0; i < at_once * 4; i++) {
            float z = token_of(four[i / 4], i % 4);
            u32 bin, id = at + i / 4 * stride + i % 4;
            if (open) {
                float down = (most - z) * each;
                bin = SAMPLE_BINS - 1 - (u32)(down < SAMPLE_BINS - 1.0f ? down : SAMPLE_BINS - 1.0f);
            } else {
                u64 key = key_of(z, id);
                if (key <= low || key > high) continue;
                bin = (u32)((key - low - 1) >> d.shift);
            }
            // Tokens that belong to none have bins of their own, and cost no branch.
            if (id - i % 4 + 4 > seen.vocab) bin = SAMPLE_BINS + lane_index();
            atomic_add(&bins[bin], 1);
        }
    }
}

template <u32 together>
DEVICE u32 count_of(const u32 *bins, u32 bin) {
    u32 count = 0;
    UNROLL for (u32 i = 0; i < together; i++) count += bins[bin + i];
    return count;
}

// Sets the pivots as near as the bins tell, `together` bins at a time, and says about how many tokens are above each of them. `apart`: one
// token in so many is in the sample.
template <u32 together>
DEVICE void set_pivots(Seen &seen, Block &b, u32 *bins, Weigh weigh, bool whole_sample, u32 apart, u32 *above_low, u32 *above_high) {
    const Division &d = seen.division;
    SliceScale s = slice_scale(seen.scale, key_logit(seen.top), NEGLIGIBLE);
    float *weighs = (float *)(bins + SAMPLE_BINS + WAVE);
    float fine = seen.vocab > FINE_SAMPLE_OF ? 1.0f / 64.0f : 1.0f;
    u32 mine = opaque(thread_index()) * BINS_A_THREAD, end = mine + BINS_A_THREAD;
    u64 sum = 0, total;
    UNROLL for (u32 bin = mine; bin < end; bin += together) {
        float w = weigh == BY_COUNT ? 1.0f : unrounded(s, middle_of(d, bin, together)) * fine;
        u32 count = count_of<together>(bins, bin);
        weighs[bin] = w;
        sum += (u64)((float)count * w) << SAMPLE_BITS | count;
    }
    u64 before = block_prefix(b, sum, &total);
    float below = seen.outside.below + (float)(before >> SAMPLE_BITS);
    float all = seen.outside.all > 0.0f ? seen.outside.all : (float)(total >> SAMPLE_BITS);

    // What the sample should have at or below the place: as much as the row has there or, from above, less than all by what the row has
    // there. At first what is light is better known than what is heavy; once looks have told the sums at both ends, the nearer is.
    float unit = (weigh == BY_COUNT ? 1.0f : fine / (float)(1u << HEADROOM)) / (float)apart;
    float tail = (float)(seen.above_bottom - seen.x) * unit, head = (float)(seen.x - seen.above_ceiling) * unit;
    bool from_above = seen.looks == 0 ? weigh == BY_COUNT : (weigh == BY_COUNT && !seen.known) || head < tail;
    float want = from_above ? all - head : tail, whole = 1.0f / all;
    // The pivots' bins: the highest that is surely too low, the lowest that is surely too high.
    u32 ends[2] = {0, 0};
    UNROLL for (u32 bin = mine; bin < end; bin += together) {
        float off = below - want, part = from_above ? all - below : below, w = weighs[bin];
        // A sum's variance is the sum of the squared weights. From below they are this place's at most and vary: half of that where the
        // tail is long, nearly all where it is short.
        float variance = part * (weigh == BY_COUNT ? 1.0f - part * whole : from_above ? w : w * 0.8f) + w * w;
        bool sure = off * off > DEVIATIONS * variance;
        if (sure && off < 0.0f) ends[0] = bin;
        if (sure && off > 0.0f && ends[1] == 0) ends[1] = SAMPLE_BINS - bin;
        below += (float)count_of<together>(bins, bin) * w;
    }
    block_maxes<2>(b, ends);
    // Whoever has the bin says what is below it.
    u32 low_bin = ends[0], high_bin = SAMPLE_BINS - ends[1], count = before & ((1u << SAMPLE_BITS) - 1);
    below = seen.outside.below + (float)(before >> SAMPLE_BITS);
    UNROLL for (u32 bin = mine; bin < end; bin += together) {
        if (bin == low_bin) {
            seen.below_low = below;
            seen.count_below[0] = count;
        }
        if (bin == high_bin) seen.count_below[1] = count;
        u32 here = count_of<together>(bins, bin);
        count += here;
        below += (float)here * weighs[bin];
    }
    barrier();
    u32 tokens = (total & ((1u << SAMPLE_BITS) - 1)) + seen.outside.over;
    *above_low = (tokens - seen.count_below[0]) * apart;
    *above_high = (high_bin < SAMPLE_BINS ? tokens - seen.count_below[1] : seen.outside.over) * apart;
    if (thread_index() == 0) {
        u64 low = bin_begin(d, low_bin), high = bin_begin(d, high_bin);
        // If the sample says that the place is beyond an end: it is not.
        seen.low = low < high ? low : d.low;
        seen.high = low < high ? high : d.high;
    }
    barrier();
    // For the division of what is left; with half of the sample that is not known well enough yet.
    if (thread_index() == 0 && whole_sample) seen.outside = {seen.below_low, all, *above_high / apart};
}

// Sets the pivots as near as a sample tells, and says about how many tokens are above the lower one. `first`: the place may be anywhere in the
// row, the sample's first reads are in `four`, and `bins` are 0. They are AIM_WORDS of shared memory.
template <typename T, u32 at_once, bool first>
DEVICE u32 aim(Seen &seen, Block &b, u32 *bins, Weigh weigh, Four<T> *four) {
    float most = key_logit(seen.top);
    if (thread_index() == 0) {
        divide(seen.division, most, first ? logits_to_a_bin(seen) : 0.0f, seen.bottom, seen.ceiling);
        seen.outside = {0.0f, 0.0f, 0};
    }
    u32 step = sample_step(seen.vocab), id = sample_first((const T *)seen.logits, step), stride = sample_stride(step), above_low, above_high;
    // Half of the sample tells roughly where the place is, all of it where. Then what is left is divided anew.
    for (u32 pass = 0;; pass++) {
        if (pass > 1 || (pass == 0 && !first))
            ROLLED for (u32 i = thread_index(); i < SAMPLE_BINS; i += BLOCK) bins[i] = 0;
        barrier();
        ROLLED for (u32 half = pass == 1; half <= (pass > 0); half++) {
            u32 begin = id + half * step * GROUP;
            // Keys take more registers than logits.
            if (first && pass < 2)
                count_sample<T, at_once, true>(seen, bins, four, pass == 0, begin, stride);
            else
                count_sample<T, 1, false>(seen, bins, four, false, begin, stride);
        }
        barrier();  // without it, the pivots would be elsewhere, and the token the same
        u64 left = seen.division.high - seen.division.low;
        if (pass == 0 || !first)
            set_pivots<BINS_A_THREAD>(seen, b, bins, weigh, pass > 0, pass > 0 ? step : 2 * step, &above_low, &above_high);
        else
            set_pivots<1>(seen, b, bins, weigh, true, step, &above_low, &above_high);
        if (uniform(above_low - above_high <= (pass == 0 ? BETTER_THAN_ENOUGH : ENOUGH) || pass == MAX_PASSES)) return above_low;
        if (uniform(pass > 1 && seen.high - seen.low >= left / 4)) return above_low;
        if (pass > 0 && thread_index() == 0) divide(seen.division, most, 0.0f, seen.low, seen.high);
    }
}
