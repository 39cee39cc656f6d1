// The way flat rows go, whose kept tokens are too many to gather: dual-pivot search on the row itself. A sample of the row says about
// where the last kept token is, and two pivots are set around that place; one look at the row sums what is above them and lists what is
// between; if the place is among these, they decide, and if not, it is known on which side it is, and the next pivots are closer.
#pragma once
#include "look.h"

// The sample: of so many reads of four tokens a thread, spread over the row; of more where the row is so long that they would be more than
// so far apart, because the list between the pivots does not grow with the row.
#define SAMPLE_READS 8u
#define COARSEST 16u
#define SAMPLE_BINS (4u * BLOCK)
#define BINS_OF_AN_ORDER 64.0f  // of a binary order: 32 orders are more than weights have
#define MAX_PASSES 8u
// How many standard deviations a sample may be off, squared: 2.5. More is safer, and lists more tokens between the pivots.
#define DEVIATIONS 6.25f
// A pivot is near enough if a list has room for this many tokens, which may turn out to be more.
#define ENOUGH (CAPACITY / 4 * 3)
// After so many looks the pivots are thirds of what is left, which comes to an end whatever the row.
#define LOOKS_BY_SAMPLE 4u

DEVICE float bins_below(const Division &d, float bins) { return d.most - bins * d.width; }

// The place below a bin's tokens, or one near it.
DEVICE u64 bin_begin(const Division &d, u32 bin) {
    if (d.each > 0.0f) return (u64)rank_of(bins_below(d, (float)(SAMPLE_BINS - bin))) << 32;
    return (d.high - d.low - 1) >> d.shift >= bin ? d.low + ((u64)bin << d.shift) : d.high;
}

// The logit in a bin's middle.
DEVICE float bin_logit(const Division &d, u32 bin) {
    if (d.each > 0.0f) return bins_below(d, (float)(SAMPLE_BINS - bin) - 0.5f);
    return key_logit(bin_begin(d, bin) + ((u64)1 << d.shift >> 1));
}

// One thread's.
DEVICE void divide(Division &d, float most, float each, u64 low, u64 high) {
    u32 shift = 0;
    if (each == 0.0f)
        ROLLED while ((high - low - 1) >> shift >= SAMPLE_BINS) shift++;
    d = {most, each, each > 0.0f ? 1.0f / each : 0.0f, low, high, shift};
}

// Sets the pivots around the place that is sought, as near as a sample tells, and says about how many tokens are above the lower one.
template <typename T>
DEVICE u32 aim(Row<T> &row, Weigh weigh) {
    Shared &shared = *row.shared;
    u32 *bins = shared.list.masses;
    float most = key_logit(shared.top);
    SliceScale s = slice_scale(shared.scale, most, NEGLIGIBLE);
    Division &d = shared.division;
    float each = BINS_OF_AN_ORDER * shared.scale.scale;
    if (weigh == BY_COUNT) {
        u32 rank = thread_index() < shared.slices ? rank_of(row.mine) : 0xffffffffu;
        float least = unrank(~(u32)block_max(row.block, ~rank));
        // Slices' largest logits are in the upper part of what there is.
        each = most > least ? (float)SAMPLE_BINS / (4.0f * (most - least)) : 1.0f;
    }
    if (thread_index() == 0) divide(d, most, each, shared.bottom, shared.ceiling);
    // Of all reads of four tokens every `finest`-th, but at first, to see roughly where it is, a quarter of these.
    u32 finest = ((shared.vocab + 3) / 4 + BLOCK * SAMPLE_READS - 1) / (BLOCK * SAMPLE_READS);
    finest = finest < COARSEST ? finest : COARSEST;
    u32 step = finest * 4;
    for (u32 pass = 0;; pass++) {
        // What is below the bins and what is above them: weights, and counts.
        u64 outside[4] = {0, 0, 0, 0};
        ROLLED for (u32 i = thread_index(); i < SAMPLE_BINS; i += BLOCK) bins[i] = 0;
        barrier();
        u32 id = thread_index() * step * 4, stride = BLOCK * step * 4;
        u64 bottom = shared.bottom, ceiling = shared.ceiling, begin = d.low, end = d.high;
        float bins_a_logit = d.each;
        Four<T> next = read_four(logits_of(row), shared.vocab, id);
        ROLLED for (; id < shared.vocab; id += stride) {
            Four<T> now = next;
            next = read_four(logits_of(row), shared.vocab, id + stride);
            UNROLL for (u32 i = 0; i < 4; i++) {
                float z = widen(now.x[i]), down = (most - z) * bins_a_logit;
                u64 key = key_of(z, id + i);
                bool inside = key > bottom && key <= ceiling, over = inside && key > end;
                bool under = inside && (key <= begin || down >= (float)SAMPLE_BINS);
                u32 from_top = (u32)(down < SAMPLE_BINS - 1.0f ? down : SAMPLE_BINS - 1.0f);
                u32 bin = bins_a_logit > 0.0f ? SAMPLE_BINS - 1 - from_top : (u32)((key - begin - 1) >> d.shift);
                u32 w = weigh == BY_COUNT ? 1 : weight(s, z);
                outside[0] += under ? w : 0;
                outside[1] += under;
                outside[2] += over ? w : 0;
                outside[3] += over;
                // Tokens that belong to none have bins of their own, and cost no branch.
                atomic_add(&bins[inside && !over && !under ? bin : SAMPLE_BINS + lane_index()], 1);
            }
        }
        block_sums<4>(row.block, outside);
        u32 bin = thread_index() * (SAMPLE_BINS / BLOCK);
        u64 sum = 0, total;
        ROLLED for (u32 i = bin; i < bin + SAMPLE_BINS / BLOCK; i++)
            if (bins[i]) sum += weigh == BY_COUNT ? bins[i] : (u64)((float)bins[i] * unrounded(s, bin_logit(d, i)));
        u64 below = outside[0] + block_prefix(row.block, sum, &total);

        // What the sample should have at or below the place: as much as the row has there or, from above, less than all by what the row has
        // there. At first what is light is better known than what is heavy; once looks have told the sums at both ends, the nearer is.
        float all = (float)(outside[0] + total + outside[2]), unit = weigh == BY_COUNT ? 1.0f : (float)(1u << HEADROOM);
        float tail = (float)(shared.above_bottom - shared.x) / unit / (float)step;
        float head = (float)(shared.x - shared.above_ceiling) / unit / (float)step;
        bool from_above = shared.looks == 0 ? weigh == BY_COUNT : (weigh == BY_COUNT && !shared.known) || head < tail;
        float want = from_above ? all - head : tail;
        u64 low = d.low, high = d.high;
        ROLLED for (u32 i = bin; i < bin + SAMPLE_BINS / BLOCK; i++) {
            u64 place = bin_begin(d, i);
            float each = weigh == BY_COUNT ? 1.0f : unrounded(s, key_logit(place)), off = (float)below - want;
            float part = from_above ? all - (float)below : (float)below;
            // A sum's variance is the sum of the squared weights. From below they are this place's at most and vary: half of that where the
            // tail is long, nearly all where it is short.
            float variance = part * (weigh == BY_COUNT ? 1.0f - part / all : from_above ? each : each * 0.8f) + each * each;
            if (off * off > DEVIATIONS * variance && place > d.low) {
                if (off < 0.0f && place < d.high) low = place;
                if (off > 0.0f && place < high) high = place;
            }
            below += weigh == BY_COUNT ? bins[i] : (u64)((float)bins[i] * unrounded(s, bin_logit(d, i)));
        }
        low = block_max(row.block, low);
        high = ~block_max(row.block, ~high);
        u64 counts[2] = {0, 0};
        ROLLED for (u32 i = bin; i < bin + SAMPLE_BINS / BLOCK; i++) {
            u64 place = bin_begin(d, i);
            counts[0] += place >= low ? bins[i] : 0;
            counts[1] += place >= high ? bins[i] : 0;
        }
        block_sums<2>(row.block, counts);
        u32 above_high = (u32)(counts[1] + outside[3]) * step;
        u32 above_low = (u32)(counts[0] + (low == shared.bottom ? outside[1] : 0) + outside[3]) * step;
        bool all_read = step == finest, closer = high - low < (d.high - d.low) / 4;
        // Near enough, and it is known whether the tokens above can be gathered.
        bool enough = above_low - above_high <= ENOUGH && (all_read || above_low <= ENOUGH || above_high > ENOUGH);
        if (uniform(enough || pass == MAX_PASSES || (all_read && !closer))) {
            if (thread_index() == 0) {
                shared.low = low;
                shared.high = high;
                shared.aimed = true;
            }
            barrier();
            return above_low;
        }
        barrier();
        step = finest;
        if (thread_index() == 0) divide(d, most, 0.0f, low, high);
    }
}

// Pivots that come to an end whatever the row: thirds of what is left.
template <typename T>
DEVICE void aim_at_thirds(Row<T> &row) {
    Shared &shared = *row.shared;
    if (thread_index() == 0) {
        u64 third = (shared.ceiling - shared.bottom) / 3;
        // Whether there is such a place at all is to be found out first.
        shared.low = shared.bottom + (shared.known ? third : 0);
        shared.high = shared.ceiling - third;
        shared.aimed = true;
    }
}

// What a look says instead of a place: look again, from other pivots.
#define AGAIN 0

// What a look from row.low and row.high has found decides, of the tokens above row.lowest, the place below the one at which the running sum
// exceeds row.x; or row.lowest, if it does not. What is above the place is kept, and its mass left, slice by slice, in row.mass.
template <typename T>
DEVICE u64 judge(Row<T> &row, Weigh weigh, Look found) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    u64 above_low = weigh == BY_COUNT ? found.low.count : found.low.mass;
    u64 above_high = weigh == BY_COUNT ? found.high.count : found.high.mass;
    bool over = shared.x < above_high, below = shared.x >= above_low;
    if (uniform(below && shared.low == shared.lowest)) return shared.lowest;
    if (uniform(!over && !below && found.listed <= CAPACITY)) {
        ROLLED for (u32 i = thread_index(); i < found.listed; i += BLOCK) list.keys[i] = shared.wide->keys[i];
        if (thread_index() == 0) list.count = found.listed;
        barrier();
        weigh_list(row);
        u64 key = crossing(list, row.block, BY_KEY, weigh, shared.low, list.count, shared.low, shared.high, 0,
                           shared.x - above_high);
        ROLLED for (u32 i = thread_index(); i < list.count; i += BLOCK)
            if (list.keys[i] >= key) atomic_add((u64 *)&shared.mass[key_id(list.keys[i]) / SLICE], unpack_mass(list.masses[i]));
        return key - 1;
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
        shared.aimed = false;
        shared.looks++;
    }
    barrier();
    return AGAIN;
}
