// The way flat rows go, whose kept tokens are too many to gather: dual-pivot search on the row itself. A sample of the row says about
// where the last kept token is, and two pivots are set around that place; one look at the row sums what is above them and lists what is
// between; if the place is among these, they decide, and if not, it is known on which side it is, and the next pivots are closer.
#pragma once
#include "look.h"

// The sample: groups of 16 tokens, spread over the row, at first half of them. They are so many reads of four tokens a thread, or more where the
// row is so long that the groups would be further apart than this, because the list between the pivots does not grow with the row.
#define SAMPLE_READS 8u
#define COARSEST 16u
#define SAMPLE_BINS (BINS_A_THREAD * BLOCK)
#define BINS_A_THREAD 4u
// What a search needs of shared memory, in words: the bins, one a lane for tokens that belong to none, and what a token weighs in each.
#define AIM_WORDS (2 * SAMPLE_BINS + WAVE)
#define ROOM_WORDS (LOOK_WORDS > AIM_WORDS ? LOOK_WORDS : AIM_WORDS)
// How far the sample may be off, as the square of standard deviations: 3.5, or 2.5 if the tokens between the pivots are too many for a list.
#define DEVIATIONS 12.25f
#define FEWER_DEVIATIONS 6.25f
// With half of the sample, less is to be hoped for.
#define BETTER_THAN_ENOUGH (CAPACITY / 4 * 3)
// A pivot is near enough if a list has room for this many tokens, which may turn out to be more.
#define ENOUGH (LISTED / 8 * 7)
#define MAX_PASSES 8u
// After so many looks the pivots are thirds of what is left, which comes to an end whatever the row.
#define LOOKS_BY_SAMPLE 4u

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

// The logit in a bin's middle.
DEVICE float bin_logit(const Division &d, u32 bin) {
    if (d.each > 0.0f) return bins_below(d, (float)(SAMPLE_BINS - bin) - 0.5f);
    u64 begin = d.low + ((u64)bin << d.shift), middle = begin + ((u64)1 << d.shift >> 1);
    return key_logit(middle < d.high ? middle : d.high);
}

// One thread's.
DEVICE void divide(Division &d, float most, float each, u64 low, u64 high) {
    u32 bits = highest_bit(high - low) + 1, most_bits = 11;
    static_assert(SAMPLE_BINS == 1u << 11, "bits of a bin's number");
    d = {most, each, each > 0.0f ? 1.0f / each : 0.0f, low, high, bits > most_bits ? bits - most_bits : 0};
}

template <u32 count, typename T>
DEVICE void read_sample(Four<T> *four, const T *logits, u32 vocab, u32 id, u32 stride) {
    UNROLL for (u32 q = 0; q < count; q++) four[q] = read_four(logits, vocab, id + q * stride);
}

// Sets the pivots around the place that is sought, as near as a sample tells, and says about how many tokens are above the lower one. All
// blocks that look at a row do it, and get the same. `first`: the place may be anywhere in the row. `bins` is AIM_WORDS of shared memory.
template <typename T, bool first>
DEVICE u32 aim(Seen &seen, Block &b, u32 *bins, Weigh weigh) {
    const T *logits = (const T *)seen.logits;
    u32 groups = (seen.vocab + GROUP - 1) / GROUP, step = (groups + BLOCK * SAMPLE_READS / 4 - 1) / (BLOCK * SAMPLE_READS / 4);
    step = step < COARSEST ? step : COARSEST;
    // Four lanes read a group.
    u32 id = thread_index() / 4 * (2 * step * GROUP) + thread_index() % 4 * 4, stride = BLOCK / 4 * (2 * step * GROUP);
    // The search that others have begun is rare, and registers are short there.
    constexpr u32 at_once = first ? SAMPLE_READS / 2 : 1;
    Four<T> four[at_once];
    read_sample<at_once>(four, logits, seen.vocab, id, stride);

    float most = key_logit(seen.top), each;
    SliceScale s = slice_scale(seen.scale, most, NEGLIGIBLE);
    Division &d = seen.division;
    float *weighs = (float *)(bins + SAMPLE_BINS + WAVE);
    if (weigh == BY_COUNT) {
        // Slices' largest logits are in the upper part of what there is.
        u64 rank = thread_index() < seen.slices ? ~rank_of(seen.largest[thread_index()]) : 0;
        float least = unrank(~(u32)block_max(b, rank));
        each = most > least ? (float)SAMPLE_BINS / (4.0f * (most - least)) : 1.0f;
    } else {
        // The place is not where all tokens together weigh less than what is below it; and 10 binary orders further down they do not
        // matter. The first weighs 2^38 units at least.
        float tail = (float)(seen.above_bottom - seen.x), tokens = (float)seen.vocab * 549755813888.0f / tail;
        float orders = (float)(int)(bits_of(tokens) >> 23) - 127.0f + 11.0f;
        each = (float)SAMPLE_BINS / (orders < 32.0f ? orders : 32.0f) * seen.scale.scale;
    }
    if (thread_index() == 0) divide(d, most, each, seen.bottom, seen.ceiling);
    // What the sample has below the bins and in all, and how many tokens above them.
    float outside = 0.0f, all = 0.0f;
    u32 over = 0;
    // Pass 0 is the one half of the sample, pass 1 adds the other. After that the places between the pivots are divided anew.
    for (u32 pass = 0;; pass++) {
        bool open = first && pass < 2;
        if (pass != 1)
            ROLLED for (u32 i = thread_index(); i < SAMPLE_BINS; i += BLOCK) bins[i] = 0;
        barrier();
        u64 low = d.low, high = d.high;
        float bins_a_logit = d.each;
        u32 half = pass == 1 ? step * GROUP : 0, halves = pass < 2 ? 1 : 2;
        ROLLED for (u32 turn = 0; turn < halves; turn++, half += step * GROUP) {
            ROLLED for (u32 at = id + half; at < seen.vocab; at += at_once * stride) {
                if (pass != 0 || at != id) read_sample<at_once>(four, logits, seen.vocab, at, stride);
                UNROLL for (u32 i = 0; i < at_once * 4; i++) {
                    float z = widen(four[i / 4].x[i % 4]);
                    u32 bin = SAMPLE_BINS + lane_index();
                    if (open || bins_a_logit > 0.0f) {
                        float down = (most - z) * bins_a_logit;
                        bin = SAMPLE_BINS - 1 - (u32)(down < SAMPLE_BINS - 1.0f ? down : SAMPLE_BINS - 1.0f);
                    }
                    if (!open) {
                        u64 key = key_of(z, at + i / 4 * stride + i % 4);
                        if (bins_a_logit == 0.0f) bin = (u32)((key - low - 1) >> d.shift);
                        if (key <= low || key > high) bin = SAMPLE_BINS + lane_index();
                    }
                    // Tokens that belong to none have bins of their own, and cost no branch.
                    atomic_add(&bins[bin], 1);
                }
            }
        }
        barrier();
        u32 apart = pass == 0 ? 2 * step : step;
        // Each thread's bins: what a token weighs there, and what all do.
        u32 mine = thread_index() * BINS_A_THREAD;
        u64 sum = 0, total;
        ROLLED for (u32 i = mine; i < mine + BINS_A_THREAD; i++) {
            float w = weigh == BY_COUNT ? 1.0f : unrounded(s, bin_logit(d, i));
            weighs[i] = w;
            sum += (u64)((float)bins[i] * w);
        }
        u64 before = block_prefix(b, sum, &total);
        float below = outside + (float)before;
        if (pass < 2) all = (float)total;

        // What the sample should have at or below the place: as much as the row has there or, from above, less than all by what the row has
        // there. At first what is light is better known than what is heavy; once looks have told the sums at both ends, the nearer is.
        float unit = (weigh == BY_COUNT ? 1.0f : (float)(1u << HEADROOM)) * (float)apart;
        float tail = (float)(seen.above_bottom - seen.x) / unit, head = (float)(seen.x - seen.above_ceiling) / unit;
        bool from_above = seen.looks == 0 ? weigh == BY_COUNT : (weigh == BY_COUNT && !seen.known) || head < tail;
        float want = from_above ? all - head : tail;
        // The pivots' bins: the highest that is surely too low, the lowest that is surely too high, for fewer deviations and for more.
        u32 ends[4] = {0, 0, 0, 0};
        ROLLED for (u32 i = 0; i < BINS_A_THREAD; i++) {
            float off = below - want, part = from_above ? all - below : below;
            // A sum's variance is the sum of the squared weights. From below they are this place's at most and vary: half of that where the
            // tail is long, nearly all where it is short.
            u32 bin = mine + i;
            float w = weighs[bin], variance = part * (weigh == BY_COUNT ? 1.0f - part / all : from_above ? w : w * 0.8f) + w * w;
            UNROLL for (u32 more = 0; more < 2; more++) {
                if (off * off <= (more ? DEVIATIONS : FEWER_DEVIATIONS) * variance) continue;
                if (off < 0.0f) ends[2 * more] = bin;
                if (off > 0.0f && ends[2 * more + 1] == 0) ends[2 * more + 1] = SAMPLE_BINS - bin;
            }
            below += (float)bins[bin] * weighs[bin];
        }
        block_maxes<4>(b, ends);
        u32 low_bin = ends[2], high_bin = SAMPLE_BINS - ends[3], above_low, above_high;
        bool wider = true;
        for (;; wider = false) {
            u64 above = 0;
            ROLLED for (u32 i = 0; i < BINS_A_THREAD; i++)
                above += (mine + i >= low_bin ? bins[mine + i] : 0) | (u64)(mine + i >= high_bin ? bins[mine + i] : 0) << 32;
            above = block_sum(b, above);
            above_low = ((u32)above + over) * apart;
            above_high = ((u32)(above >> 32) + over) * apart;
            if (!wider || pass == 0 || above_low - above_high <= ENOUGH) break;
            low_bin = ends[0];
            high_bin = SAMPLE_BINS - ends[1];
        }
        u64 begin = bin_begin(d, low_bin), end = bin_begin(d, high_bin);
        if (begin >= end) {
            // The sample says that the place is beyond an end, but it is not.
            begin = d.low;
            end = d.high;
        }
        if (uniform(above_low - above_high <= (pass == 0 ? BETTER_THAN_ENOUGH : ENOUGH) || pass == MAX_PASSES || (pass > 1 && end - begin >= (d.high - d.low) / 4))) {
            if (thread_index() == 0) {
                seen.low = begin;
                seen.high = end;
            }
            barrier();
            return above_low;
        }
        if (pass == 0) continue;
        below = outside + (float)before;
        ROLLED for (u32 bin = mine; bin < mine + BINS_A_THREAD; bin++) {
            if (bin == low_bin) seen.outside = below;
            below += (float)bins[bin] * weighs[bin];
        }
        barrier();
        if (thread_index() == 0) divide(d, most, 0.0f, begin, end);
        outside = seen.outside;
        over = above_high / apart;
    }
}

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
    ROLLED for (u32 i = thread_index(); i < listed; i += BLOCK) list.keys[i] = row.shared->wide->keys[i];
    if (thread_index() == 0) list.count = listed;
    barrier();
    weigh_list(row);
}

// What a look from row.low and row.high has found decides, of the tokens above row.lowest, the place below the one at which the running sum
// exceeds row.x; or row.lowest, if it does not. What is above the place is kept, and its mass left, slice by slice, in row.kept.
template <typename T>
DEVICE u64 judge(Row<T> &row, Weigh weigh) {
    Shared &shared = *row.shared;
    u64 above_low = weigh == BY_COUNT ? (u32)shared.tally.counts : shared.tally.masses[0];
    u64 above_high = weigh == BY_COUNT ? shared.tally.counts >> 32 : shared.tally.masses[1];
    bool over = shared.x < above_high, below = shared.x >= above_low;
    if (uniform(below && shared.low == shared.lowest)) return shared.lowest;
    if (uniform(!over && !below && shared.tally.listed <= LISTED)) {
        u32 count = uniform(shared.tally.listed);
        const Seen &seen = shared;
        u64 end = crossing(seen, count, shared.list, row.block, BY_KEY, weigh, shared.low, shared.low, shared.high, shared.x - above_high).key;
        UNROLL_SOME for (u32 i = thread_index(); i < count; i += BLOCK) {
            u64 key = key_at(seen, i);
            if (key >= end) atomic_add((u64 *)&shared.kept[key_id(key) / SLICE], mass_at(seen, i, key));
        }
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
        shared.looks++;
    }
    barrier();
    return AGAIN;
}
