// One wave looks at one slice: its largest logit, its mass.
//
// Lanes read vectors of 16 bytes, four tokens of f32 or eight of 16 bits: lane l holds the slice's vector l, then those WAVE further on, and so on, in
// registers. Tokens beyond the vocabulary are −inf, which weighs nothing and is never the largest.
// Every function must be reached by all lanes of a wave together. The CPU's counterpart is src/cpu/slice.rs.
#pragma once
#include "definition.h"

#define STEPS (SLICE / WAVE)

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

// Four tokens as they are in memory, in words: in two or four registers, whatever is read.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    u32 words[sizeof(T)];
};

template <typename T>
struct alignas(16) Vector {
    Four<T> fours[4 / sizeof(T)];
};
#define TOKENS_OF_VECTOR (16 / (u32)sizeof(T))
#define VECTORS (STEPS / TOKENS_OF_VECTOR)

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return float_of((u32)x.bits << 16); }
DEVICE float widen(f16 x) { return half_to_float(x.bits); }

DEVICE float token_of(const Four<float> &four, u32 c) { return float_of(four.words[c]); }
DEVICE float token_of(const Four<bf16> &four, u32 c) { return float_of(c % 2 ? four.words[c / 2] & 0xffff0000u : four.words[c / 2] << 16); }
DEVICE float token_of(const Four<f16> &four, u32 c) { return half_to_float((u16)(four.words[c / 2] >> c % 2 * 16)); }

// Beyond the vocabulary there is -inf: a word of it.
DEVICE u32 no_tokens(float) { return 0xff800000u; }
DEVICE u32 no_tokens(bf16) { return 0xff80ff80u; }
DEVICE u32 no_tokens(f16) { return 0xfc00fc00u; }

DEVICE u32 bits_of(f16 x) { return x.bits; }
DEVICE u32 bits_of(bf16 x) { return x.bits; }

// Four tokens from `first` on, one by one: those that the row has.
template <typename T>
DEVICE Four<T> read_some(const T *row, u32 vocab, u32 first) {
    const u32 each = 4 / sizeof(T), none = no_tokens(T()) & (each == 1 ? 0xffffffffu : 0xffffu);
    u32 x[4];
    UNROLL for (u32 c = 0; c < 4; c++) x[c] = first + c < vocab ? bits_of(row[first + c]) : none;
    Four<T> four = {};
    UNROLL for (u32 c = 0; c < 4; c++) four.words[c / each] |= x[c] << c % each * 16;
    return four;
}

DEVICE u32 lane_index() { return thread_index() % WAVE; }
DEVICE u32 wave_index() { return thread_index() / WAVE; }

DEVICE u64 shuffle_xor_u64(u64 x, u32 mask) {
    return (u64)shuffle_xor((u32)(x >> 32), mask) << 32 | shuffle_xor((u32)x, mask);
}

// 32 bits a lane, 38 in all: two sums of halves, lest they overflow.
DEVICE u64 wave_sum_wide(u32 x) { return ((u64)wave_sum(x >> 16) << 16) + wave_sum(x & 0xffffu); }

DEVICE u64 wave_sum(u64 x) {
#ifdef HAS_WAVE_REDUCE
    // Pieces whose sums fit 32 bits.
    u32 piece = (1u << 22) - 1;
    u64 low = wave_sum((u32)x & piece), middle = wave_sum((u32)(x >> 22) & piece), high = wave_sum((u32)(x >> 44));
    return low + (middle << 22) + (high << 44);
#else
    for (u32 mask = WAVE / 2; mask; mask /= 2) x += shuffle_xor_u64(x, mask);
    return x;
#endif
}

DEVICE u64 wave_max(u64 x) {
    u32 high = wave_max((u32)(x >> 32));
    return (u64)high << 32 | wave_max((u32)(x >> 32) == high ? (u32)x : 0u);
}

#ifndef HAS_WAVE_PREFIX
DEVICE u64 shuffle_up(u64 x, u32 delta) { return (u64)shuffle_up((u32)(x >> 32), delta) << 32 | shuffle_up((u32)x, delta); }

// The sum over this lane and those before it.
template <typename W>
DEVICE W wave_prefix(W x) {
    UNROLL for (u32 delta = 1; delta < WAVE; delta *= 2) {
        W y = shuffle_up(x, delta);
        if (lane_index() >= delta) x += y;
    }
    return x;
}
#endif

// Four tokens from `first` on, as they are in memory, lest anybody wait for one before the next is asked for: in one read where they are
// aligned and all there.
template <typename T>
DEVICE Four<T> read_four(const T *row, u32 vocab, u32 first) {
    if (LIKELY((u64)row % sizeof(Four<T>) == 0 && first + 4 <= vocab)) return *(const Four<T> *)(row + first);
    return read_some(row, vocab, first);
}

// Several fours, as they are in memory, in one go if all are aligned and there.
template <u32 count, typename T>
DEVICE void read_fours(const T *row, u32 vocab, const u32 *first, Four<T> *four) {
    bool whole = (u64)row % sizeof(Four<T>) == 0;
    UNROLL for (u32 q = 0; q < count; q++) whole = whole && first[q] + 4 <= vocab;
    if (LIKELY(whole)) {
        UNROLL for (u32 q = 0; q < count; q++) four[q] = *(const Four<T> *)(row + first[q]);
    } else {
        UNROLL for (u32 q = 0; q < count; q++) four[q] = read_some(row, vocab, first[q]);
    }
}

// A lane's share of a slice, which is read before any of it is looked at; `once`, if the cache has no room for all rows.
template <bool once = false, typename T>
DEVICE void load_slice(const T *row, u32 vocab, u32 j, Vector<T> *vectors) {
    const u32 fours = 4 / sizeof(T), apart = WAVE * TOKENS_OF_VECTOR;
    u32 first = j * SLICE + lane_index() * TOKENS_OF_VECTOR;
    if (LIKELY((u64)row % 16 == 0 && (j + 1) * SLICE <= vocab)) {
        // At distances that the compiler knows.
        const Vector<T> *from = (const Vector<T> *)(row + first);
        UNROLL for (u32 v = 0; v < VECTORS; v++) {
            if (once)
                read_once((const u32 *)&from[v * WAVE], (u32 *)&vectors[v]);
            else
                vectors[v] = from[v * WAVE];
        }
    } else if ((u64)row % sizeof(Four<T>) == 0 && vocab % 4 == 0) {
        // The row's last slice, which others wait for; or a row that begins between vectors.
        UNROLL for (u32 q = 0; q < STEPS / 4; q++) {
            u32 at = first + q / fours * apart + q % fours * 4;
            Four<T> &four = vectors[q / fours].fours[q % fours];
            UNROLL for (u32 i = 0; i < sizeof(T); i++) four.words[i] = no_tokens(T());
            if (at < vocab) four = *(const Four<T> *)(row + at);
        }
    } else {
        UNROLL for (u32 q = 0; q < STEPS / 4; q++)
            vectors[q / fours].fours[q % fours] = read_some(row, vocab, first + q / fours * apart + q % fours * 4);
    }
}

// The largest of what the lanes have, as integers in the order of floats. NaN ranks above everything; which of them does not matter, nor which zero.
DEVICE float wave_largest(float most) {
    u32 bits = bits_of(nan_without_sign(most)), key = wave_max(bits ^ ((u32)((int)bits >> 31) | 0x80000000u));
    return float_of(key ^ ((u32)((int)~key >> 31) | 0x80000000u));
}

// The place of slice `j` among slices, by its largest logit. NaN ranks above all.
DEVICE u64 key_of_slice(float largest, u32 j) { return largest != largest ? ~(u64)0 : key_of(largest, j); }

// The slice's mass in its own units.
template <typename T>
DEVICE u64 mass_of(const Vector<T> *vectors, SliceScale s) {
    // A lane's 16 weights fit 32 bits.
    u32 sum = 0;
    UNROLL for (u32 i = 0; i < STEPS; i++) sum += weight(s, token_of(vectors[i / TOKENS_OF_VECTOR].fours[i % TOKENS_OF_VECTOR / 4], i % 4));
    return wave_sum_wide(sum);
}

// The same by floats, in a quarter of the instructions, to within 2^-17 of it. In parts of the mass: a weight is rounded by half a unit, 2^-18.5 in all 512;
// its polynomial, the hardware's exp2, what that is asked for, sums of 16, and 64 of these rounded are each less than 2^-21 off.
template <typename T>
DEVICE u64 mass_about(const Vector<T> *vectors, SliceScale s) {
    const u32 fours = 4 / sizeof(T);
    float orders = s.magic - (MAGIC + FRACTION), sum = 0.0f;
    UNROLL for (u32 q = 0; q < STEPS / 4; q++) {
        float w[4];
        UNROLL for (u32 c = 0; c < 4; c++)
            w[c] = exp2_about(fma_f32(token_of(vectors[q / fours].fours[q % fours], c), s.scale, orders));
        sum += (w[0] + w[1]) + (w[2] + w[3]);
    }
    return wave_sum_wide(round_u32(sum * (float)(1u << FRACTION)));
}

// Two places so many binary orders of weight below a slice's largest logit, at which it is divided for tries (try.h). By simulation, these leave the fewest
// in doubt. `order` is in logits.
#define NEAR_ORDERS 3.0f
#define FAR_ORDERS 6.0f
DEVICE float place_below(float largest, float orders, float order) { return fma_f32(-orders, order, largest); }

// A slice's mass; and of its tokens above the near place and above the far one, in units of so many bits, in which each fits 32.
#define PLACED_BITS 5u
struct Masses {
    u64 all;
    u32 near, far;
};

template <typename T>
DEVICE Masses masses_of(const Vector<T> *vectors, SliceScale s, float near, float far) {
    u32 all = 0, above_near = 0, above_far = 0;
    UNROLL for (u32 i = 0; i < STEPS; i++) {
        float z = token_of(vectors[i / TOKENS_OF_VECTOR].fours[i % TOKENS_OF_VECTOR / 4], i % 4);
        u32 w = weight(s, z);
        all += w;
        above_near += z > near ? w : 0;
        above_far += z > far ? w : 0;
    }
    return {wave_sum_wide(all), wave_sum(above_near >> PLACED_BITS), wave_sum(above_far >> PLACED_BITS)};
}
