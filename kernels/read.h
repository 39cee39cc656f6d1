// The first launch: the logits are read once. Of each slice of 512 tokens it leaves the largest logit and, where the row's parameters want
// them, the mass and how far below that the groups of 16 are, in eight bits: to write them takes as long as their bytes. Of few rows that are tried it
// divides the mass (PLACED), in the room that a search will want.
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

// The largest of some tokens, as a float.
struct Largest {
    u32 bits;
};
DEVICE Largest larger(Largest a, Largest b) { return {bits_of(larger(float_of(a.bits), float_of(b.bits)))}; }
DEVICE float logit_of(Largest most) { return float_of(most.bits); }

template <typename T>
DEVICE Largest largest_of(const Vector<T> &vector) {
    float z[4], most = 0.0f;
    UNROLL for (u32 q = 0; q < 4 / sizeof(T); q++) {
        UNROLL for (u32 c = 0; c < 4; c++) z[c] = token_of(vector.fours[q], c);
        most = q ? larger(most, largest_of_four(z)) : largest_of_four(z);
    }
    return {bits_of(most)};
}

#ifdef HAS_LARGER_HALVES
// Tokens of 16 bits are compared two at a time: the largest of either half of their words, of which the larger is told at the end.
template <typename T>
struct LargestTwo {
    u32 bits;
};
DEVICE LargestTwo<f16> larger(LargestTwo<f16> a, LargestTwo<f16> b) { return {larger_f16s(a.bits, b.bits)}; }
DEVICE LargestTwo<bf16> larger(LargestTwo<bf16> a, LargestTwo<bf16> b) { return {larger_bf16s(a.bits, b.bits)}; }

template <typename T>
DEVICE float logit_of(LargestTwo<T> two) {
    Four<T> four = {{two.bits}};
    return larger(token_of(four, 0), token_of(four, 1));
}

template <typename T>
DEVICE LargestTwo<T> largest_of_halves(const Vector<T> &vector) {
    LargestTwo<T> word[4];
    UNROLL for (u32 i = 0; i < 4; i++) word[i] = {vector.fours[i / 2].words[i % 2]};
    return larger(larger(word[0], word[1]), larger(word[2], word[3]));
}
DEVICE LargestTwo<f16> largest_of(const Vector<f16> &vector) { return largest_of_halves(vector); }
DEVICE LargestTwo<bf16> largest_of(const Vector<bf16> &vector) { return largest_of_halves(vector); }
#endif

// What the lane at a distance of `mask` does not keep.
template <u32 mask, typename L>
DEVICE L exchange(L keep, L give) {
    return larger(keep, L{shuffle_in_four<mask>(give.bits)});
}

// A group's 16 tokens are in two lanes or four, which have as many groups (in waves of 64, half as many): each lane, or every second one, ends up
// with one.
template <typename T, typename L>
DEVICE L largest_of_group(const L *largest) {
    const u32 lanes = GROUP / TOKENS_OF_VECTOR;
    bool odd = lane_index() & 1, high = lane_index() & 2;
    u32 last = VECTORS - 1;
    L a = largest[0], b = largest[last];
    if (lanes == 4) {
        a = exchange<2>(high ? largest[VECTORS / 2] : largest[0], high ? largest[0] : largest[VECTORS / 2]);
        b = VECTORS == 2 ? a : exchange<2>(high ? largest[last] : largest[last / 2], high ? largest[last / 2] : largest[last]);
    }
    return exchange<1>(odd ? b : a, odd ? a : b);
}

// A lane's group, if it has one.
template <bool once, typename T>
DEVICE void write_group(u8 *groups, u32 drop) {
    const u32 lanes = GROUP / TOKENS_OF_VECTOR;
    if (VECTORS < lanes && lane_index() & 1) return;
    u8 *mine = &groups[lane_index() % lanes * (GROUPS / lanes) + lane_index() / lanes];
    if (once)
        write_once(mine, (u8)drop);
    else
        *mine = (u8)drop;
}

// A wave takes every `step`-th slice. What hides the time that reads take is the number of waves: 48 of 32 lanes do it where 32 did not,
// even if these asked for the next slice before they worked on the last.
template <bool once, bool placed, typename T>
DEVICE void slices_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,
                      float *largest, u8 *groups, u64 *mass, u64 *kept, u64 *wide) {
    u32 slices = (vocab + SLICE - 1) / SLICE;
    u32 row = block_index(), j = block_index_y() * SLICES_PER_BLOCK + wave_index();
    if (j >= slices) return;
    logits += row * stride;
    wait_for_last_launch();
    const RowParams &p = params[shared_params ? 0 : row];
    Scale scale = {0.0f, p.scale, p.inverse};
    u32 of_row = p.flags;
    ROLLED for (; j < slices; j += step) {
        Vector<T> vectors[VECTORS];
        load_slice<once>(logits, vocab, j, vectors);
        // Not looked at before the logits are asked for.
        u32 flags = uniform(opaque(of_row));
        decltype(largest_of(vectors[0])) of_vector[VECTORS], of_all, of_group;
        UNROLL for (u32 v = 0; v < VECTORS; v++) {
            of_vector[v] = largest_of(vectors[v]);
            of_all = v ? larger(of_all, of_vector[v]) : of_vector[v];
        }
        // Before the slice's largest, for which all wait.
        if (wants_groups(flags)) of_group = largest_of_group<T>(of_vector);
        float most = wave_largest(logit_of(of_all));
        // Among those of all rows, of which there are not 2^32: that would be 4 TB of logits.
        u32 at = row * slices + j;
        if (wants_groups(flags)) write_group<once, T>(groups + (u64)at * GROUPS, drop_of(most, logit_of(of_group)));
        if (lane_index() == 0) largest[at] = most;
        if (wants_mass(flags)) {
            Masses sums = {0, 0, 0};
            SliceScale s = slice_scale(scale, most, NEGLIGIBLE);
            if (placed && flags & PLACED) {
                float near = place_below(most, NEAR_ORDERS, scale.inverse), far = place_below(most, FAR_ORDERS, scale.inverse);
                if (s.some) sums = masses_of(vectors, s, near, far);
                if (lane_index() == 0) kept[at] = sums.near | (u64)sums.far << 32;
            } else {
                if (s.some) sums.all = flags & MASS ? mass_of(vectors, s) : mass_about(vectors, s);
            }
            if (lane_index() == 0) mass[at] = sums.all;
        }
    }
    if (wide && block_index_y() == 0 && wave_index() == 0) forget(wide_of(wide, row));
}
