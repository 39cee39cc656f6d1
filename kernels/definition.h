// What decides a token: the order of tokens, a logit's integer mass, random numbers.
//
// The same functions as src/definition/ in Rust, operation for operation; docs/definition.md tells them in prose.
#pragma once
#include "portable.h"

// Tokens per slice of a row. Part of the definition.
#define SLICE 512u

// ---- The order: larger logit first, then lower id, as one 64-bit key. --------------------------------------

// Maps floats to integers in their order; both zeros to one. NaN has no rank.
DEVICE u32 rank_of(float z) {
    u32 bits = bits_of(z), magnitude = bits & 0x7fffffffu;
    return bits >> 31 ? 0x80000000u - magnitude : 0x80000000u + magnitude;
}

DEVICE float unrank(u32 rank) {
    return rank < 0x80000000u ? float_of((0x80000000u - rank) | 0x80000000u) : float_of(rank - 0x80000000u);
}

#define NEG_INF float_of(0xff800000u)
#define POS_INF float_of(0x7f800000u)

// Below every finite logit.
#define LOWEST_KEY ((u64)(0x80000000u - 0x7f800000u) << 32 | 0xffffffffu)
// What one is at least.
#define LOWEST_LOGIT unrank((u32)(LOWEST_KEY >> 32) + 1)

DEVICE u64 key_of(float z, u32 id) { return (u64)rank_of(z) << 32 | (u32)~id; }
DEVICE float key_logit(u64 key) { return unrank((u32)(key >> 32)); }
DEVICE u32 key_id(u64 key) { return ~(u32)key; }
// The largest float below the key's logit.
DEVICE float key_previous(u64 key) { return unrank((u32)(key >> 32) - 1); }
// The place below every token with this logit or a larger one.
DEVICE u64 below_logit(float z) { return ((u64)rank_of(z) << 32) - 1; }

// ---- Masses: a weight is an integer in units of its slice, a sum of weights needs no rounding. --------------

#define MAGIC 12582912.0f  // adding 1.5·2^23 rounds to an integer that sits in the low bits
#define FRACTION 27u       // a slice's largest weight is 2^27 · [0.7, 1.42)
#define HEADROOM 11u       // the row's unit is 2^11 finer than that of the slice with its largest logit
#define MAX_SCALED 1048576.0f
#define NEGLIGIBLE 40.0f
#define DEPTH 125.0f  // the softmax goes further down

struct Scale {
    float base;     // 0, or the row's largest logit where zero is too far away
    float scale;    // log2(e) / T
    float inverse;  // T · ln 2
};

struct SliceScale {
    bool some;  // false where no token of the slice has mass
    float base, scale;
    float floor;  // logits (less base) are raised to this one
    float magic;  // MAGIC + FRACTION - n_max: added to y, it rounds and leaves the exponent of the weight in the low bits
};

DEVICE Scale measured_from(Scale s, float row_max) {
    s.base = absolute(row_max * s.scale) < MAX_SCALED ? 0.0f : row_max;
    return s;
}

DEVICE SliceScale slice_scale(Scale s, float max, float orders) {
    max = max - s.base;
    float rounded = fma_f32(max, s.scale, MAGIC);
    SliceScale slice;
    slice.some = absolute(max * s.scale) < 2.0f * MAX_SCALED;  // false for infinities and NaN too
    slice.base = s.base;
    slice.scale = s.scale;
    slice.floor = (rounded - MAGIC - orders) * s.inverse;
    slice.magic = MAGIC + FRACTION - (rounded - MAGIC);
    return slice;
}

// 2^y relative to the slice's unit, as a float.
DEVICE float unrounded(SliceScale s, float logit) {
    float z = logit - s.base;
    z = at_least(z, s.floor);
    float rounded = fma_f32(z, s.scale, s.magic);
    float f = fma_f32(z, s.scale, s.magic - rounded);
    float p = float_of(0x3aaded1fu);
    p = fma_f32(p, f, float_of(0x3c1e7456u));
    p = fma_f32(p, f, float_of(0x3d635b6cu));
    p = fma_f32(p, f, float_of(0x3e75fce1u));
    p = fma_f32(p, f, float_of(0x3f317215u));
    p = fma_f32(p, f, 1.0f);
    return float_of(bits_of(p) + (bits_of(rounded) << 23));
}

DEVICE u32 weight(SliceScale s, float logit) { return round_u32(unrounded(s, logit)); }

// The bits of the magic stand for a slice's unit, and those of the slice with the row's largest logit for the row's: so many binary orders apart.
DEVICE u32 unit_of(SliceScale s) { return bits_of(s.magic); }
DEVICE u32 orders_down(SliceScale s, u32 row_unit) { return unit_of(s) - row_unit; }

// A mass of the slice, a token's or a sum, in the row's unit.
DEVICE u64 to_row_units(SliceScale s, u64 mass, u32 row_unit) {
    u32 down = orders_down(s, row_unit);
    if (down <= HEADROOM) return mass << (HEADROOM - down);
    return down - HEADROOM < 64 ? mass >> (down - HEADROOM) : 0;
}

// The smallest mass of the slice that exceeds `mass` (less than the slice holds) in row units.
DEVICE u64 first_above(SliceScale s, u64 mass, u32 row_unit) {
    u32 down = orders_down(s, row_unit);
    if (down <= HEADROOM) return (mass >> (HEADROOM - down)) + 1;
    return (mass + 1) << (down - HEADROOM);
}

// ceil(p · mass): a token is inside the nucleus when the mass above it is below this.
DEVICE u64 nucleus_limit(u64 top_p, u64 mass) { return mul_hi(top_p, mass) + (top_p * mass != 0); }

// ---- Random numbers: Philox4x32-10 (Salmon et al., SC11), the first 64 bits. --------------------------------

DEVICE u64 philox(u64 seed, u64 position, u32 round) {
    u32 c0 = (u32)position, c1 = (u32)(position >> 32), c2 = round, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    ROLLED for (int i = 0; i < 10; i++) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c1 = (u32)p1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (u64)c1 << 32 | c0;
}

// ---- A row's parameters, as src/device_params.rs lays them out. ---------------------------------------------

// Flags: what follows from the parameters for this vocabulary, so that nobody has to wait for one after the other. A greedy row has no other.
#define GREEDY 1u
#define RENORMALISED 2u  // top-p is a share of the top k
#define TOP_K 4u
#define TOP_P 8u
#define MIN_P 16u
#define TRIED 32u  // drawn from all tokens first
#define BY_SLICES 64u  // k is small, and less than there are slices: their largest logits bound it
#define BY_GROUPS 128u  // the same of groups of 16 tokens
#define MASS 256u  // the row's mass is wanted: to draw from all of it, or as what p is a share of
#define MASS_ABOUT 512u  // as what p is a share of, for a few tokens: floats mostly tell which of them are kept
#define PLACED 1024u  // of few rows that are tried for a top p: slices tell their masses above two places, too

DEVICE bool wants_mass(u32 flags) { return flags & (MASS | MASS_ABOUT); }

struct RowParams {
    float scale, inverse;
    float min_p_offset;  // T · ln(min_p)
    u32 top_k;
    u64 top_p;  // p · 2^64
    u64 seed;
    u32 flags;
    u32 unused;
};

DEVICE bool is_unfiltered(u32 flags) { return !(flags & (GREEDY | TOP_K | TOP_P | MIN_P)); }

// Rows with that flag: the token is the first of so many drawn from all that is kept, if one is.
#define TRIES 4u
// The random number that draws from what is kept comes after those of the tries.
DEVICE u32 last_round(u32 flags) { return flags & TRIED ? TRIES : 0; }
