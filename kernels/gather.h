// The way most rows go: a logit with every kept token at or above it and few others, from the summaries alone, and those tokens gathered
// in shared memory.
#pragma once
#include "row.h"

// Before a row is gathered, or asked for: nothing is counted yet.
DEVICE void begin_to_gather(Shared &shared) {
    u32 t = opaque(thread_index());
    if (t < BINS) shared.list.masses[t] = 0;
    // draw_by_rank compares with more than there are.
    if (t < RANKED) shared.list.keys[t] = 0;
    if (t == 0) shared.slice_count = shared.list.count = shared.hits = 0;
}

// How the slices' largest logits, from `most` to `least`, are divided into bins. A bin's width is a power of two, too, so that the logit at its end
// is not rounded into the bins above it.
struct Steps {
    float most, least, each, width;  // bins to a logit, logits to a bin
};

DEVICE Steps steps_of(float most, float least) {
    float each = bins_to_a_logit(most - least);
    return {most, least, each, float_of((254u << 23) - bits_of(each))};
}

DEVICE u32 step_of(const Steps &steps, float largest) {
    float down = (steps.most - largest) * steps.each;
    return largest < steps.least || largest > steps.most ? BINS : down < BINS - 1.0f ? (u32)down : BINS - 1;
}

// Of things counted by bins, of which `above` come before the bins: a logit with k of them at or above it, which is a bin's end, in shared.bound, and
// the bin and what is above it in the list. It is +inf if more than `most` are at or above the bin's end; below all, if there are no k. One wave's.
DEVICE void kth_bin(Shared &shared, const u32 *counts, const Steps &steps, u32 k, u32 above, u32 most) {
    u32 mine[BINS / WAVE], sum = 0, first = lane_index() * (BINS / WAVE), bin = first;
    UNROLL for (u32 i = 0; i < BINS / WAVE; i++) sum += mine[i] = counts[first + i];
    u32 through = above + wave_prefix(sum), before = through - sum;
    if (before < k && through >= k) {
        through = before;
        UNROLL for (u32 i = 0; i < BINS / WAVE; i++) {
            bool further = through + mine[i] < k;
            through += mine[i];
            bin += further;
            before = further ? through : before;
        }
        float bound = steps.most - (float)(bin + 1) * steps.width;
        shared.bound = before + counts[bin] > most ? POS_INF : bound > steps.least ? bound : steps.least;
        shared.list.bin = bin;
        shared.list.above = before;
    }
    if (lane_index() == WAVE - 1 && through < k) shared.bound = LOWEST_LOGIT;
}

// The largest logit of slice i; or not above that of group i, where slices are too few.
template <typename T>
DEVICE float largest_of(const Row<T> &row, u32 i) {
    if (!(row.flags & BY_GROUPS)) return largest_of_slice(row, i);
    return below_drop(row.shared->largest[i / GROUPS], row.shared->groups[i]);
}

// The row's mass, from what `kth_largest` has left of it. One wave's.
DEVICE u64 whole_of_waves(const Shared &shared) { return wave_sum(lane_index() < WAVES ? shared.shares[lane_index()] : 0); }

// Leaves what each wave's slices have of the row's mass, where it is wanted.
template <typename T>
DEVICE void leave_shares(const Row<T> &row, float row_max) {
    if (!wants_mass(row.flags)) return;
    Ruler ruler = ruler_from(row.shared->params, row_max);
    u64 sum = wave_sum(shares_of_thread(*row.shared, ruler, row.mine));
    if (lane_index() == 0) row.shared->shares[wave_index()] = sum;
}

// A logit with k slices, or groups, at or above it, and not many more; below all, if there are no k. They are counted by bins, in the room for
// masses; then a wave looks for the bin with the k-th, and others for the row's mass.
template <typename T>
DEVICE float kth_largest(Row<T> &row, u32 k, float row_max, float least) {
    Candidates &list = row.shared->list;
    float most = row_max;
    u32 *counts = list.masses, all = row.shared->slices, above = 0;
    if (row.flags & BY_GROUPS) {
        all *= GROUPS;
        u32 below = 0;
        ROLLED for (u32 i = thread_index(); i < all; i += BLOCK) {
            float largest = largest_of(row, i);
            if (largest > NEG_INF && ~rank_of(largest) > below) below = ~rank_of(largest);
        }
        block_maxes<1>(row.block, &below);
        least = unrank(~below);
    }
    for (;;) {
        if (!uniform(most - least > SMALLEST_RANGE)) {
            // As good as equal; but there may be less than k.
            ROLLED for (u32 i = thread_index(); i < all; i += BLOCK)
                if (largest_of(row, i) >= least) atomic_add(&counts[0], 1);
            leave_shares(row, row_max);
            barrier();
            return uniform(counts[0]) < k ? LOWEST_LOGIT : least;
        }
        Steps steps = steps_of(most, least);
        ROLLED for (u32 i = thread_index(); i < all; i += BLOCK) {
            u32 bin = step_of(steps, largest_of(row, i));
            if (bin < BINS) atomic_add(&counts[bin], 1);
        }
        barrier();  // without it, the bound would be lower, and the token the same
        // The last wave has the fewest slices.
        if (wave_index() == WAVES - 1) kth_bin(*row.shared, counts, steps, k, above, k + k / 8);
        leave_shares(row, row_max);
        barrier();
        float bound = row.shared->bound;
        if (uniform(bound < POS_INF)) return bound;
        u32 bin = uniform(list.bin);
        above = (u32)list.above;
        // Too many in one bin: divide that, from its first to its last.
        u32 ends[2] = {0, 0};
        ROLLED for (u32 i = thread_index(); i < all; i += BLOCK) {
            float largest = largest_of(row, i);
            u32 rank = rank_of(largest);
            if (step_of(steps, largest) != bin) continue;
            ends[0] = rank > ends[0] ? rank : ends[0];
            ends[1] = ~rank > ends[1] ? ~rank : ends[1];
        }
        block_maxes<2>(row.block, ends);
        most = unrank(ends[0]);
        least = unrank(~ends[1]);
        if (thread_index() < BINS) counts[thread_index()] = 0;
        barrier();  // the same
    }
}

// Lists those tokens of a wave's groups that reach the bound, by so many fours a lane that are waited for together. Four lanes read a group.
template <u32 at_once, typename T>
DEVICE void gather_groups(const Row<T> &row, const u32 *groups, u32 found, float bound) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    ROLLED for (u32 first = 0; first < found; first += at_once * (WAVE / 4)) {
        Four<T> four[at_once];
        u32 id[at_once], mask = 0;
        UNROLL for (u32 q = 0; q < at_once; q++) {
            u32 i = first + q * (WAVE / 4) + lane_index() / 4;
            id[q] = groups[i < found ? i : 0] * GROUP + lane_index() % 4 * 4;
        }
        read_fours<at_once>(logits_of(row), shared.vocab, id, four);
        // What is beyond the vocabulary is -inf.
        UNROLL for (u32 q = 0; q < at_once; q++) {
            // No lane has any.
            if (q && first + q * (WAVE / 4) >= found) break;
            bool some = first + q * (WAVE / 4) + lane_index() / 4 < found;
            UNROLL for (u32 c = 0; c < 4; c++) mask |= (u32)(token_of(four[q], c) >= bound && some) << (q * 4 + c);
        }
        u32 at = mask ? atomic_add(&list.count, count_bits(mask)) : 0;
        bool too_many = at + count_bits(mask) > CAPACITY;
        UNROLL for (u32 q = 0; q < at_once; q++) {
            if (q && first + q * (WAVE / 4) >= found) break;
            UNROLL for (u32 c = 0; c < 4; c++)
                if (mask >> (q * 4 + c) & 1 && at < CAPACITY) list.keys[at++] = key_of(token_of(four[q], c), id[q] + c);
        }
        if (vote(too_many)) break;
    }
}

// Makes a list of all tokens whose logit is at least `bound`, above -inf: from the slices to the groups to the tokens that reach it. Each
// wave goes from slices to tokens by itself. False if they do not fit.
template <typename T>
DEVICE bool gather(Row<T> &row, float bound) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    // There is room for the slices where the few will be.
    u32 *slices = (u32 *)list.few_keys;
    ROLLED for (u32 start = wave_index() * WAVE; start < shared.slices; start += BLOCK) {
        u32 j = start + lane_index();
        float most = j < shared.slices ? largest_of_slice(row, j) : NEG_INF;
        if (!(most >= bound)) continue;
        u32 at = atomic_add(&shared.slice_count, 1);
        // With the drop of groups that reach as far down.
        if (at < FEW * 4) slices[at] = j << 8 | drop_of(most, bound);
    }
    barrier();
    u32 count = uniform(shared.slice_count);
    if (count > FEW * 4) return false;

    // And for a wave's groups where the masses will be: a lane has one of each slice.
    const u32 together = WAVE / GROUPS, stride = WAVES * together;
    static_assert(WAVES * AT_ONCE * WAVE <= CAPACITY, "room for the groups");
    u32 *groups = list.masses + wave_index() * (AT_ONCE * WAVE);
    ROLLED for (u32 start = wave_index() * together; start < count; start += AT_ONCE * stride) {
        u32 group[AT_ONCE], drop[AT_ONCE], farthest[AT_ONCE], found = 0;
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 i = start + q * stride + lane_index() / GROUPS;
            u32 slice = slices[i < count ? i : 0];
            group[q] = (slice >> 8) * GROUPS + lane_index() % GROUPS;
            drop[q] = shared.groups[group[q]];
            farthest[q] = slice & 255;
        }
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            bool hit = drop[q] <= farthest[q] && start + q * stride + lane_index() / GROUPS < count;
            u64 hits = vote(hit);
            if (hit) groups[found + count_bits(hits & (((u64)1 << lane_index()) - 1))] = group[q];
            found += count_bits(hits);
        }
        wave_barrier();
        // Few, in most rows; or as many as the wait for another read is worth.
        if (uniform(found <= WAVE / 4))
            gather_groups<1>(row, groups, found, bound);
        else
            gather_groups<4>(row, groups, found, bound);
        wave_barrier();  // the votes are one already, but do not promise it
    }
    barrier();
    return uniform(list.count <= CAPACITY);
}

// Leaves of a list that is too long to be ranked those tokens that can be among the first k, if these are not too many.
template <typename T>
DEVICE void shorten(Row<T> &row, u32 k, float bound) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    float top = key_logit(shared.top);
    if (!uniform(top - bound > SMALLEST_RANGE)) return;
    // Counted by bins where masses will be, and kept where the few will be.
    u32 *counts = list.masses, count = uniform(list.count), t = opaque(thread_index());
    if (t < BINS) counts[t] = 0;
    if (t == 0) list.few = 0;
    barrier();  // without it, the bound would be lower, and the token the same
    Steps steps = steps_of(top, bound);
    ROLLED for (u32 i = t; i < count; i += BLOCK) atomic_add(&counts[step_of(steps, key_logit(list.keys[i]))], 1);
    barrier();  // the same
    if (wave_index() == 0) kth_bin(shared, counts, steps, k, 0, RANKED);
    barrier();
    bound = shared.bound;
    if (!uniform(bound < POS_INF)) return;
    static_assert(2 * FEW >= RANKED, "room for them");
    u64 *shorter = list.few_keys;
    ROLLED for (u32 i = t; i < count; i += BLOCK) {
        if (key_logit(list.keys[i]) < bound) continue;
        u32 at = atomic_add(&list.few, 1);
        if (at < RANKED) shorter[at] = list.keys[i];
    }
    barrier();
    count = uniform(list.few);
    // A few more may be at the bound than were counted above it.
    if (count > RANKED) return;
    if (t < RANKED) list.keys[t] = t < count ? shorter[t] : 0;
    if (t == 0) list.count = count;
    barrier();
}
