// The launch that asks for tries, where rows are many: what is above those of which the slices' masses do not say whether they are kept.
#pragma once
#include "read.h"
#include "try.h"

// What a wave has in shared memory while it goes from slices to groups: the groups to read, as slices of the few at hand, and these slices' largest.
struct Reached {
    u32 groups[AT_ONCE * GROUPS];
    float largest[AT_ONCE];
};

// What is above `n` tries in every `step`-th slice from `j` on, added to what others find. A wave takes a few slices, and of those the groups that
// reach the lowest of the tries.
template <typename T, u32 n>
DEVICE void add_above(const T *logits, u32 vocab, const float *largest, const bf16 *groups, Scale scale, u32 unit, const Try *tries, Weigh weigh,
                      u32 j, u32 step, Reached &reached, GLOBAL u64 *above) {
    u32 slices = (vocab + SLICE - 1) / SLICE, lane = lane_index();
    u64 sums[n] = {}, lowest = tries[0].key;
    UNROLL for (u32 d = 1; d < n; d++) lowest = tries[d].key < lowest ? tries[d].key : lowest;
    ROLLED for (; j < slices; j += AT_ONCE * step) {
        float most[AT_ONCE];
        u32 count = 0;
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) most[q] = widen(groups[(j + q * step < slices ? j + q * step : j) * GROUPS + lane % GROUPS]);
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            bool reaches = lane < GROUPS && j + q * step < slices && most[q] > cut_of(lowest, j + q * step).threshold;
            u64 hits = vote(reaches);
            if (reaches) reached.groups[count + count_bits(hits & (((u64)1 << lane) - 1))] = q * GROUPS + lane;
            count += count_bits(hits);
        }
        if (lane < AT_ONCE && j + lane * step < slices) reached.largest[lane] = largest[j + lane * step];
        wave_barrier();
        // Four lanes read a group, two at a time.
        ROLLED for (u32 first = 0; first < count; first += WAVE / 2) {
            Four<T> four[2];
            u32 id[2], slice[2];
            UNROLL for (u32 q = 0; q < 2; q++) {
                u32 i = first + q * (WAVE / 4) + lane / 4, group = reached.groups[i < count ? i : 0];
                slice[q] = group / GROUPS;
                id[q] = i < count ? (j + slice[q] * step) * SLICE + group % GROUPS * GROUP + lane % 4 * 4 : vocab;
            }
            read_fours<2>(logits, vocab, id, four);
            UNROLL for (u32 q = 0; q < 2; q++) {
                SliceScale s = slice_scale(scale, reached.largest[slice[q]], NEGLIGIBLE);
                Shift shift = shift_of(s, unit);
                float threshold[n];
                u32 found[n] = {};
                UNROLL for (u32 d = 0; d < n; d++) threshold[d] = id[q] + 4 <= tries[d].id ? tries[d].previous : tries[d].logit;
                UNROLL for (u32 c = 0; c < 4; c++) {
                    float z = widen(four[q].x[c]);
                    u32 w = weigh == BY_COUNT ? 1 : weight(s, z) >> shift.right;
                    UNROLL for (u32 d = 0; d < n; d++) found[d] += z > threshold[d] ? w : 0;
                }
                UNROLL for (u32 d = 0; d < n; d++) sums[d] += weigh == BY_COUNT ? found[d] : s.some ? (u64)found[d] << shift.left : 0;
            }
        }
        wave_barrier();  // the votes are one already, but do not promise it
    }
    UNROLL for (u32 d = 0; d < n; d++) {
        u64 sum = wave_sum(sums[d]);
        if (lane == 0 && sum) atomic_add_on_device((u64 *)above + d, sum);
    }
}

// Blocks are as small as those of the first read, and share in all rows that have such tries.
template <typename T>
DEVICE void above_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, const float *largest, const bf16 *groups, u64 *wide,
                     u32 blocks) {
    SHARED Try tries[TRIES];
    SHARED Reached reached[SLICES_PER_BLOCK];
    wait_for_last_launch();
    u32 slices = (vocab + SLICE - 1) / SLICE, t = thread_index();
    u32 rows = uniform(wide_of(wide, 0)->tally.queued);
    if (rows == 0) return;
    // Blocks of a row, at most as many as have something to do.
    u32 most = (slices + SLICES_PER_BLOCK - 1) / SLICES_PER_BLOCK, parts = blocks / rows < 1 ? 1 : blocks / rows < most ? blocks / rows : most;
    ROLLED for (u32 item = block_index(); item < rows * parts; item += blocks) {
        u32 row = uniform(wide_of(wide, item / parts)->tried.queue);
        GLOBAL Wide *mine = wide_of(wide, row);
        const RowParams &p = params[row];
        u32 count = uniform(mine->tally.tried);
        const u32 words = sizeof(Try) / 8;
        static_assert(TRIES * words <= READ_BLOCK, "a thread copies a word");
        if (t < TRIES * words) ((u64 *)tries)[t] = ((const GLOBAL u64 *)mine->tried.unsure)[t < count * words ? t : t % words];
        float top = key_logit(mine->state.top);
        Scale scale = measured_from({0.0f, p.scale, p.inverse}, top);
        u32 unit = slice_scale(scale, top, NEGLIGIBLE).unit;
        const T *from = logits + row * stride;
        u64 at = (u64)row * slices;
        u32 j = item % parts * SLICES_PER_BLOCK + wave_index(), step = parts * SLICES_PER_BLOCK;
        barrier();
        ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
            if (!is_judged(p, vocab, weigh)) continue;
            Reached &room = reached[wave_index()];
            GLOBAL u64 *above = mine->tally.above[weigh];
            if (count == 1)
                add_above<T, 1>(from, vocab, largest + at, groups + at * GROUPS, scale, unit, tries, (Weigh)weigh, j, step, room, above);
            else
                add_above<T, TRIES>(from, vocab, largest + at, groups + at * GROUPS, scale, unit, tries, (Weigh)weigh, j, step, room, above);
        }
        barrier();
    }
}
