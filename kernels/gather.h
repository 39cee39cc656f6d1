// The way most rows go: a place in the order with every kept token above it and few others, from the summaries alone, and
// those tokens gathered in shared memory.
#pragma once
#include "row.h"

// A logit with k slices at or above it, and not many more. The caller has checked that there are enough slices.
template <typename T>
DEVICE float kth_slice(Row<T> &row, u32 k) {
    // Each thread's largest, in the room for candidates' masses; then each wave tries a pivot of its own.
    u32 *ranks = row.shared->list.masses;
    u32 rank = thread_index() < row.shared->slices ? rank_of(row.mine) : 0;
    ROLLED for (u32 j = thread_index() + BLOCK; j < row.shared->slices; j += BLOCK) {
        u32 other = rank_of(row.shared->largest[j]);
        rank = other > rank ? other : rank;
    }
    ranks[thread_index()] = rank;
    // At least k are at or above `low`, fewer at or above `high`.
    u32 low = ~(u32)block_max(row.block, rank ? ~rank : 0), high = (u32)(row.shared->top >> 32) + 1, count = 0xffffffffu;
    ROLLED while (uniform(high - low > 1 && count > k + k / 8)) {
        u32 step = (high - low) / (WAVES + 1) + 1, pivot = low + step * (wave_index() + 1), above = 0;
        if (pivot < high)
            UNROLL for (u32 i = 0; i < WAVES; i++) above += ranks[i * WAVE + lane_index()] >= pivot;
        u64 *words = next_words(row.block);
        above = wave_sum(above);
        if (lane_index() == 0) words[wave_index()] = above;
        barrier();
        // Pivots ascend, so the waves whose pivots have enough above them are the first ones.
        u32 theirs = lane_index() < WAVES ? (u32)words[lane_index()] : 0;
        u32 enough = count_bits(vote(theirs >= k));
        if (enough) count = ~wave_max(theirs >= k ? ~theirs : 0);
        if (high - low > (enough + 1) * step) high = low + (enough + 1) * step;
        low += enough * step;
    }
    return unrank(low);
}

// Makes a list of all tokens whose logit is at least `bound`, above -inf: from the slices to the groups to the tokens that reach it.
// False if they do not fit.
template <typename T>
DEVICE bool gather(Row<T> &row, float bound) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    // There is room for the slices where the few will be, for the groups where the masses will be.
    u32 *slices = (u32 *)list.few_keys, *groups = list.masses;
    if (thread_index() == 0) shared.slice_count = shared.group_count = list.count = 0;
    barrier();
    ROLLED for (u32 start = 0; start < row.shared->slices; start += BLOCK) {
        u32 j = start + thread_index();
        bool hit = j < row.shared->slices && largest_of_slice(row, j) >= bound;
        u32 at = claim(&shared.slice_count, hit);
        if (hit && at < FEW * 4) slices[at] = j;
    }
    barrier();
    if (uniform(shared.slice_count > FEW * 4)) return false;

    u32 lanes = uniform(shared.slice_count) * (GROUPS / 4);
    ROLLED for (u32 start = 0; start < lanes; start += BLOCK * AT_ONCE) {
        if (start + wave_index() * WAVE >= lanes) break;
        Four<float> four[AT_ONCE];
        u32 first[AT_ONCE], mask = 0;
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + thread_index();
            first[q] = lane < lanes ? slices[lane / (GROUPS / 4)] * GROUPS + lane % (GROUPS / 4) * 4 : 0xffffffffu;
            four[q] = *(const Four<float> *)(const float *)(row.shared->groups + (lane < lanes ? first[q] : 0));
        }
        UNROLL for (u32 i = 0; i < AT_ONCE * 4; i++)
            mask |= (u32)(four[i / 4].x[i % 4] >= bound && first[i / 4] != 0xffffffffu) << i;
        if (!vote(mask != 0)) continue;
        u32 at = claim(&shared.group_count, count_bits(mask));
        ROLLED for (; mask && at < CAPACITY; mask &= mask - 1) {
            u32 bit = lowest_bit(mask), lane = start + bit / 4 * BLOCK + thread_index();
            groups[at++] = slices[lane / (GROUPS / 4)] * GROUPS + lane % (GROUPS / 4) * 4 + bit % 4;
        }
    }
    barrier();
    if (uniform(shared.group_count > CAPACITY)) return false;

    // Four lanes read a group.
    lanes = uniform(shared.group_count) * 4;
    ROLLED for (u32 start = 0; start < lanes; start += BLOCK * AT_ONCE) {
        if (start + wave_index() * WAVE >= lanes) break;
        Four<T> four[AT_ONCE];
        u32 mask = 0;
        u32 first[AT_ONCE];
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + thread_index();
            first[q] = lane < lanes ? groups[lane / 4] * GROUP + lane % 4 * 4 : 0;
        }
        read_fours<AT_ONCE>(logits_of(row), row.shared->vocab, first, four);
        // What is beyond the vocabulary is -inf.
        UNROLL for (u32 i = 0; i < AT_ONCE * 4; i++)
            mask |= (u32)(widen(four[i / 4].x[i % 4]) >= bound && start + i / 4 * BLOCK + thread_index() < lanes) << i;
        if (!vote(mask != 0)) continue;
        u32 at = claim(&list.count, count_bits(mask));
        UNROLL for (u32 i = 0; i < AT_ONCE * 4; i++) {
            u32 lane = start + i / 4 * BLOCK + thread_index();
            if (mask >> i & 1 && at < CAPACITY)
                list.keys[at++] = key_of(widen(four[i / 4].x[i % 4]), groups[lane / 4] * GROUP + lane % 4 * 4 + i % 4);
        }
    }
    barrier();
    if (uniform(list.count > CAPACITY)) return false;
    weigh_list(row);
    return true;
}
