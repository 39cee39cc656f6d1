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
    if (t == 0) shared.slice_count = shared.list.count = shared.list.few = shared.hits = 0;
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
// the bin and what is above it in the list. It is +inf if too many are at or above the bin's end; below all, if there are no k. One wave's.
DEVICE void kth_bin(Shared &shared, const u32 *counts, const Steps &steps, u32 k, u32 above) {
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
        shared.bound = before + counts[bin] > k + k / 8 ? POS_INF : bound > steps.least ? bound : steps.least;
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

// Leaves what each wave's slices have of the row's mass, where that is known about.
template <typename T>
DEVICE void leave_shares(const Row<T> &row, float row_max) {
    if (!(row.flags & MASS_ABOUT)) return;
    u64 sum = 0;
    // Others have no slices: mostly the one, too, that has the bins to look through.
    if (uniform(wave_index() * WAVE < row.shared->slices))
        sum = wave_sum(shares_of_thread(*row.shared, ruler_from(row.shared->params, row_max), row.mine));
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
        if (wave_index() == WAVES - 1) kth_bin(*row.shared, counts, steps, k, above);
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

// Lists those tokens of some groups that reach the bound: by so many threads, of which this is `mine`, a wave's or the block's, and so many fours of each
// that are waited for together. Four threads read a group.
template <u32 threads, u32 at_once, typename T>
DEVICE void gather_groups(const Row<T> &row, const u32 *groups, u32 found, u32 mine, float bound) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    ROLLED for (u32 first = 0; first < found; first += at_once * (threads / 4)) {
        Four<T> four[at_once];
        u32 id[at_once], mask = 0;
        UNROLL for (u32 q = 0; q < at_once; q++) {
            u32 i = first + q * (threads / 4) + mine / 4;
            id[q] = groups[i < found ? i : 0] * GROUP + mine % 4 * 4;
        }
        read_fours<at_once>(logits_of(row), shared.vocab, id, four);
        // What is beyond the vocabulary is -inf.
        UNROLL for (u32 q = 0; q < at_once; q++) {
            // No lane has any.
            if (q && first + q * (threads / 4) >= found) break;
            bool some = first + q * (threads / 4) + mine / 4 < found;
            UNROLL for (u32 c = 0; c < 4; c++) mask |= (u32)(token_of(four[q], c) >= bound && some) << (q * 4 + c);
        }
        u32 at = mask ? atomic_add(&list.count, count_bits(mask)) : 0;
        bool too_many = at + count_bits(mask) > CAPACITY;
        mask = too_many ? 0 : mask;
        UNROLL for (u32 q = 0; q < at_once; q++) {
            if (q && first + q * (threads / 4) >= found) break;
            UNROLL for (u32 c = 0; c < 4; c++) {
                u32 hit = mask >> (q * 4 + c) & 1;
                write_if(hit, list.keys, at, key_of(token_of(four[q], c), id[q] + c));
                at += hit;
            }
        }
        if (vote(too_many)) break;
    }
}

// Goes from slices that reach the bound, of which there are `count`, to groups to tokens: each wave by itself.
template <typename T>
DEVICE void gather_by_waves(Row<T> &row, const u32 *slices, u32 count, float bound) {
    Shared &shared = *row.shared;
    // A wave's groups are listed where the masses will be: of several slices at a time, which are not next to each other. A lane has four of one.
    const u32 lanes_of_slice = GROUPS / 4, together = WAVE / lanes_of_slice;
    static_assert(WAVES * together * GROUPS <= CAPACITY, "room for the groups");
    u32 *groups = shared.list.masses + wave_index() * (together * GROUPS);
    ROLLED for (u32 start = wave_index(); start < count; start += WAVES * together) {
        u32 i = start + lane_index() / lanes_of_slice * WAVES, slice = slices[i < count ? i : 0], found = 0;
        u32 four = (slice >> 8) * lanes_of_slice + lane_index() % lanes_of_slice, reach = i < count ? (slice & 255) + 1 : 0;
        Drops<4> drops = drops_of<4>(shared.groups, four);
        UNROLL for (u32 c = 0; c < 4; c++) {
            bool hit = drops.drops[c] < reach;
            u64 hits = vote(hit);
            if (hit) groups[found + count_bits(hits & (((u64)1 << lane_index()) - 1))] = four * 4 + c;
            found += count_bits(hits);
        }
        wave_barrier();
        // Few, in most rows; or as many as the wait for another read is worth.
        if (uniform(found <= WAVE / 4))
            gather_groups<WAVE, 1>(row, groups, found, lane_index(), bound);
        else
            gather_groups<WAVE, 4>(row, groups, found, lane_index(), bound);
        wave_barrier();  // the votes are one already, but do not promise it
    }
}

// The same for small blocks, whose waves would have many slices each, one after the other: the block lists all groups, and its threads share in them. None, if
// there are too many. Has a barrier.
template <typename T>
DEVICE void gather_by_block(Row<T> &row, const u32 *slices, u32 count, float bound) {
    Shared &shared = *row.shared;
    u32 t = opaque(thread_index()), *groups = shared.list.masses;
    const u32 lanes_of_slice = GROUPS / 8;
    ROLLED for (u32 lane = t; lane < count * lanes_of_slice; lane += BLOCK) {
        u32 slice = slices[lane / lanes_of_slice], eight = (slice >> 8) * lanes_of_slice + lane % lanes_of_slice, mask = 0;
        Drops<8> drops = drops_of<8>(shared.groups, eight);
        UNROLL for (u32 c = 0; c < 8; c++) mask |= (u32)(drops.drops[c] <= (slice & 255)) << c;
        if (!mask) continue;
        u32 at = atomic_add(&shared.hits, count_bits(mask));
        if (at + count_bits(mask) > CAPACITY) break;
        UNROLL for (u32 c = 0; c < 8; c++) {
            u32 hit = mask >> c & 1;
            write_if(hit, groups, at, eight * 8 + c);
            at += hit;
        }
    }
    barrier();
    // Of more there would be more tokens than there is room for.
    u32 found = uniform(shared.hits);
    if (found <= BLOCK / 4)
        gather_groups<BLOCK, 1>(row, groups, found, t, bound);
    else if (found <= CAPACITY)
        gather_groups<BLOCK, 4>(row, groups, found, t, bound);
}

// Makes a list of all tokens whose logit is at least `bound`, above -inf: from the slices to the groups to the tokens that reach it. So many; 0 if they
// do not fit.
template <typename T>
DEVICE u32 gather(Row<T> &row, float bound) {
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
    if (count > FEW * 4) return 0;
    if (ROWS == MANY_ROWS)
        gather_by_block(row, slices, count, bound);
    else
        gather_by_waves(row, slices, count, bound);
    barrier();
    u32 length = uniform(list.count);
    return length <= CAPACITY ? length : 0;
}

// To compare so many more tokens than k with all others takes as long as to leave them out.
#define MORE_THAN_K 64u

// Roughly the logarithm, as a float's bits are.
DEVICE float log_about(u32 count) { return (float)bits_of((float)count); }

// So many guesses; then what is left is halved, until tokens are so near to each other that they may as well tie.
#define GUESSES 4u
#define MOST_STEPS 10u

// Of a list that is too long for a small top k, leaves those tokens that can be among the first k, if they are not too many themselves, and tells how many
// there are. They are those that reach a logit which few more than k do; it is guessed as if their number fell by the same factor from logit to logit.
template <typename T>
DEVICE u32 shorten(Row<T> &row, u32 length, u32 k, float low) {
    Candidates &list = row.shared->list;
    u64 mine[EACH];
    u32 t = opaque(thread_index());
    // Beyond the list zeros, which reach nothing.
    UNROLL for (u32 e = 0; e < EACH; e++) mine[e] = e * BLOCK + t < length ? list.keys[e * BLOCK + t] : 0;
    float high = key_logit(row.shared->top);
    u32 reaching = length, above = 1, enough = k + k / 4;
    ROLLED for (u32 step = 0; step < MOST_STEPS && reaching > enough; step++) {
        float here = log_about(reaching), share = divide_about(here - log_about(k + k / 8), here - log_about(above));
        float logit = low + (high - low) * (step < GUESSES ? share : 0.5f);
        u32 rank = rank_of(logit), found = 0;
        UNROLL for (u32 e = 0; e < EACH; e++) found += block_count(row.block, (u32)(mine[e] >> 32) >= rank);
        ROLLED for (u32 start = SLOTS; start < length; start += BLOCK)
            found += block_count(row.block, start + t < length && (u32)(list.keys[start + t] >> 32) >= rank);
        found = uniform(found);
        if (found >= k) {
            low = logit;
            reaching = found;
        } else {
            high = logit;
            above = found ? found : 1;
        }
    }
    if (reaching > RANKED) return length;
    u32 rank = rank_of(low);
    // Where they go, all have read what was there: the list was too long, so that they have met at a count.
    static_assert(RANKED <= SLOTS && RANKED / 4 <= MORE_THAN_K, "no list is short enough from the start");
    UNROLL for (u32 e = 0; e < EACH; e++)
        if ((u32)(mine[e] >> 32) >= rank) list.keys[atomic_add(&list.few, 1)] = mine[e];
    ROLLED for (u32 i = SLOTS + t; i < length; i += BLOCK) {
        u64 key = list.keys[i];
        if ((u32)(key >> 32) >= rank) list.keys[atomic_add(&list.few, 1)] = key;
    }
    if (t >= reaching && t < RANKED) list.keys[t] = 0;
    barrier();
    return reaching;
}
