// The first launch: the logits are read once. Of each slice of 512 tokens it leaves the largest logit and, where the row's parameters want
// them, the mass and the largest logits of the groups of 16, these in 16 bits: to write them takes as long as their bytes.
#pragma once
#include "row.h"

// Small blocks, which begin and end one by one.
#define READ_BLOCK 128u
#define SLICES_PER_BLOCK (READ_BLOCK / WAVE)

DEVICE bool wants_groups(u32 flags) { return flags & (TOP_K | TOP_P | MIN_P); }

// Before others add to it. One wave's.
DEVICE void forget(GLOBAL Wide *wide) {
    if (lane_index() < TALLY_WORDS) ((GLOBAL u32 *)&wide->tally)[lane_index()] = 0;
}

// What the lane at a distance of `mask` does not keep.
template <u32 mask>
DEVICE float exchange(float keep, float give) {
    return larger(keep, float_of(shuffle_in_four<mask>(bits_of(give))));
}

// A group's 16 tokens are in four lanes, which have four groups (in waves of 64, two): each ends up with one.
DEVICE void write_groups(const float *four, f16 *groups) {
    bool odd = lane_index() & 1, high = lane_index() & 2;
    f16 *mine = groups + (lane_index() % 4 * 8 + lane_index() / 4);
    if (WAVE == 32) {
        float a = exchange<2>(high ? four[2] : four[0], high ? four[0] : four[2]);
        float b = exchange<2>(high ? four[STEPS / 4 - 1] : four[1], high ? four[1] : four[STEPS / 4 - 1]);
        *mine = {half_not_below(exchange<1>(odd ? b : a, odd ? a : b))};
    } else {
        float most = exchange<2>(high ? four[1] : four[0], high ? four[0] : four[1]);
        most = exchange<1>(most, most);
        if (!odd) *mine = {half_not_below(most)};
    }
}

// A wave takes every `step`-th slice. What hides the time that reads take is the number of waves: 48 of 32 lanes do it where 32 did not,
// even if these asked for the next slice before they worked on the last.
template <bool once, typename T>
DEVICE void slices_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,
                      float *largest, f16 *groups, u64 *mass, u64 *wide) {
    u32 slices = (vocab + SLICE - 1) / SLICE;
    u32 row = block_index(), j = block_index_y() * SLICES_PER_BLOCK + wave_index();
    if (j >= slices) return;
    logits += row * stride;
    wait_for_last_launch();
    const RowParams &p = params[shared_params ? 0 : row];
    Scale scale = {0.0f, p.scale, p.inverse};
    u32 of_row = p.flags;
    ROLLED for (; j < slices; j += step) {
        float z[STEPS];
        load_slice<once>(logits, vocab, j, z);
        // Not looked at before the logits are asked for.
        u32 flags = uniform(opaque(of_row));
        float four[STEPS / 4];
        UNROLL for (u32 v = 0; v < STEPS / 4; v++) four[v] = largest_of_four(z + 4 * v);
        float most = four[0];
        UNROLL for (u32 v = 1; v < STEPS / 4; v++) most = larger(most, four[v]);
        most = wave_largest(most);
        // Among those of all rows, of which there are not 2^32: that would be 4 TB of logits.
        u32 at = row * slices + j;
        if (wants_groups(flags)) write_groups(four, groups + (u64)at * GROUPS);
        u64 sum = 0;
        if (flags & MASS) {
            SliceScale s = slice_scale(scale, most, NEGLIGIBLE);
            if (s.some) sum = mass_of(z, s);
        }
        if (lane_index() == 0) {
            largest[at] = most;
            mass[at] = sum;
        }
        if (wide && j == 0) forget(wide_of(wide, row));
    }
}
