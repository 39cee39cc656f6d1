// The first launch: the logits are read once. Of each slice of 512 tokens it leaves the largest logit and, where the row's parameters want
// them, the mass and the largest logits of the groups of 16.
#pragma once
#include "row.h"

#define SLICES_PER_BLOCK (BLOCK / WAVE)

DEVICE bool has_top_k(const RowParams &p, u32 vocab) { return uniform(p.top_k) < vocab; }
DEVICE bool has_top_p(const RowParams &p) { return uniform(p.top_p != 0); }
DEVICE bool is_renormalised(const RowParams &p, u32 vocab) {
    return has_top_k(p, vocab) && has_top_p(p) && uniform(p.flags & RENORMALISED);
}
DEVICE bool has_min_p(const RowParams &p) { return uniform(p.min_p_offset > NEG_INF); }
DEVICE bool is_unfiltered(const RowParams &p, u32 vocab) { return !has_top_p(p) && !has_min_p(p) && !has_top_k(p, vocab); }

// Whether the row's mass is wanted: to draw from all of it, or as what p is a share of.
DEVICE bool wants_mass(const RowParams &p, u32 vocab) {
    if (uniform(p.flags & GREEDY) || is_renormalised(p, vocab)) return false;
    return has_top_p(p) || is_unfiltered(p, vocab);
}

DEVICE bool wants_groups(const RowParams &p, u32 vocab) { return !uniform(p.flags & GREEDY) && !is_unfiltered(p, vocab); }

// Before others add to it.
DEVICE void forget(GLOBAL Wide *wide) {
    wide->listed = 0;
    wide->counts = wide->masses[0] = wide->masses[1] = 0;
}

// A wave takes every `step`-th slice. What hides the time that reads take is the number of waves: 48 of 32 lanes do it where 32 did not,
// even if these asked for the next slice before they worked on the last.
template <typename T>
DEVICE void slices_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,
                      float *largest, float *groups, u64 *mass, u64 *wide) {
    u32 slices = (vocab + SLICE - 1) / SLICE;
    u32 row = block_index(), j = block_index_y() * SLICES_PER_BLOCK + wave_index();
    if (j >= slices) return;
    if (wide && j == 0 && lane_index() == 0) forget(wide_of(wide, row));
    logits += row * stride;
    const RowParams &p = params[shared_params ? 0 : row];
    bool with_groups = wants_groups(p, vocab), with_mass = wants_mass(p, vocab);
    Scale scale = {0.0f, p.scale, p.inverse};
    ROLLED for (; j < slices; j += step) {
        float z[STEPS];
        load_slice(logits, vocab, j, z);
        float mine = largest_of_lane(z), most = wave_largest(mine);
        u64 at = (u64)row * slices + j;
        if (with_groups) {
            // In waves of 64 two lanes have a group's tokens.
            if (WAVE > GROUPS) mine = larger(mine, float_of(shuffle_xor(bits_of(mine), GROUPS)));
            if (lane_index() < GROUPS) groups[at * GROUPS + lane_index()] = mine;
        }
        u64 sum = 0;
        if (with_mass) {
            SliceScale s = slice_scale(scale, most, NEGLIGIBLE);
            if (s.some) sum = mass_of(z, s);
        }
        if (lane_index() == 0) {
            largest[at] = most;
            mass[at] = sum;
        }
    }
}
