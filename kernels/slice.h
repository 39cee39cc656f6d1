// One wave looks at one slice: its largest logit, masses, counts, the token where a sum is reached.
//
// Lane l holds the tokens l, l + WAVE, l + 2·WAVE … of the slice in registers; tokens beyond the vocabulary are −inf,
// which weighs nothing and is never the largest. Every function must be reached by all lanes of a wave together.
// The CPU's counterpart is src/cpu/slice.rs.
#pragma once
#include "definition.h"

#define STEPS (SLICE / WAVE)

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return float_of((u32)x.bits << 16); }
DEVICE float widen(f16 x) { return half_to_float(x.bits); }

DEVICE u32 lane_index() { return thread_index() % WAVE; }
DEVICE u32 wave_index() { return thread_index() / WAVE; }

DEVICE u64 shuffle_xor_u64(u64 x, u32 mask) {
    return (u64)shuffle_xor((u32)(x >> 32), mask) << 32 | shuffle_xor((u32)x, mask);
}

DEVICE u64 wave_sum(u64 x) {
    for (u32 mask = WAVE / 2; mask; mask /= 2) x += shuffle_xor_u64(x, mask);
    return x;
}

DEVICE u64 wave_max(u64 x) {
    for (u32 mask = WAVE / 2; mask; mask /= 2) {
        u64 y = shuffle_xor_u64(x, mask);
        x = y > x ? y : x;
    }
    return x;
}

// The sum over this lane and those before it.
DEVICE u64 wave_prefix(u64 x) {
    for (u32 delta = 1; delta < WAVE; delta *= 2) {
        u64 y = (u64)shuffle_up((u32)(x >> 32), delta) << 32 | shuffle_up((u32)x, delta);
        if (lane_index() >= delta) x += y;
    }
    return x;
}

DEVICE u32 lowest_bit(u64 x) {
    u32 n = 0;
    while (!(x >> n & 1)) n++;
    return n;
}

// The address is clamped rather than the load skipped: branches around loads cost registers.
template <typename T>
DEVICE float load_token(const T *row, u32 vocab, u32 id) {
    float z = widen(row[id < vocab ? id : vocab - 1]);
    return id < vocab ? z : NEG_INF;
}

template <typename T>
DEVICE void load_slice(const T *row, u32 vocab, u32 j, float *z) {
    UNROLL for (u32 i = 0; i < STEPS; i++) z[i] = load_token(row, vocab, j * SLICE + i * WAVE + lane_index());
}

// The largest logit; NaN if there is one.
DEVICE float largest_of(const float *z) {
    float most = NEG_INF;
    bool nan = false;
    UNROLL for (u32 i = 0; i < STEPS; i++) {
        most = z[i] > most ? z[i] : most;
        nan = nan || z[i] != z[i];
    }
    for (u32 mask = WAVE / 2; mask; mask /= 2) {
        float other = float_of(shuffle_xor(bits_of(most), mask));
        most = other > most ? other : most;
    }
    return vote(nan) ? float_of(0x7fc00000u) : most;
}

// Whether the tokens of slice `j` above `key` are those whose logit exceeds `*threshold` (after `mask_ties`).
// False if there are none. `largest` is the slice's.
DEVICE bool cut(u32 j, float largest, u64 key, float *threshold) {
    float logit = key_logit(key);
    // Of the tokens that tie with the key, those with lower ids are above it.
    *threshold = key_id(key) <= j * SLICE ? logit : key_previous(key);
    return largest >= logit && largest > *threshold;
}

// In the slice that holds the key's own id, its ties from that id on are not above it.
DEVICE void mask_ties(u32 j, u64 key, float *z) {
    u32 first = j * SLICE, id = key_id(key);
    if (id <= first || id >= first + SLICE) return;
    float logit = key_logit(key);
    UNROLL for (u32 i = 0; i < STEPS; i++)
        if (z[i] == logit && first + i * WAVE + lane_index() >= id) z[i] = NEG_INF;
}

// The sum of the weights of logits above `threshold`. 16 weights fit 32 bits, and a lane has no more.
DEVICE u64 mass_above_threshold(const float *z, SliceScale s, float threshold) {
    u32 sum = 0;
    UNROLL for (u32 i = 0; i < STEPS; i++) {
        u32 w = weight(s, z[i]);
        sum += z[i] > threshold ? w : 0;
    }
    return wave_sum(sum);
}

DEVICE u64 count_above_threshold(const float *z, float threshold) {
    u32 count = 0;
    UNROLL for (u32 i = 0; i < STEPS; i++) count += z[i] > threshold;
    return wave_sum(count);
}

// The first token of slice `j` equal to `value` (there is one), as a key.
template <typename T>
DEVICE u64 find_equal(const T *row, u32 vocab, u32 j, float value) {
    for (u32 i = 0; i < STEPS; i++) {
        u32 first = j * SLICE + i * WAVE;
        u64 equal = vote(load_token(row, vocab, first + lane_index()) == value);
        if (equal) return key_of(value, first + lowest_bit(equal));
    }
    return 0;
}

// The first token of slice `j` at which the running sum of the weights above `low` reaches `target`, as a key.
template <typename T>
DEVICE u64 find_sum(const T *row, u32 vocab, u32 j, SliceScale s, u64 low, u64 target) {
    u64 before = 0;
    for (u32 i = 0; i < STEPS; i++) {
        u32 id = j * SLICE + i * WAVE + lane_index();
        float z = load_token(row, vocab, id);
        u64 key = key_of(z, id);
        u64 prefix = before + wave_prefix(key > low ? weight(s, z) : 0);
        u64 reached = vote(prefix >= target);
        if (reached) return wave_max(lane_index() == lowest_bit(reached) ? key : 0);
        // Prefixes never fall, so the largest is the last lane's.
        before = wave_max(prefix);
    }
    return 0;
}
