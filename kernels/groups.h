// Groups of 16 tokens. The first read leaves of each how far its largest logit is below its slice's, a drop, in eight bits: the distance and an eighth
// of a logit, as a float with three bits of exponent and five of fraction, rounded down. So a group seems to reach higher than it does, by 1/32 of that at
// most, and 1 to 3 % more are read than need be. Even steps would have to know the temperature, and halves (16 bits) take twice as long to write.
//
// Logits of one slice are compared by their drops, because rounding keeps the order or makes them equal.
#pragma once
#include "slice.h"

#define GROUPS 32u
#define GROUP (SLICE / GROUPS)

#define DROP_FRACTION 5u  // bits
#define DROP_OFFSET 0.125f
#define DROP_BIAS ((127u - 3) << DROP_FRACTION)
#define FARTHEST_DROP 255u  // 31.4 logits, or more

// Of a logit that is not above the slice's largest.
DEVICE u32 drop_of(float largest, float logit) {
    u32 drop = (bits_of(largest - logit + DROP_OFFSET) >> (23 - DROP_FRACTION)) - DROP_BIAS;
    return drop < FARTHEST_DROP ? drop : FARTHEST_DROP;
}

// Groups with a larger logit than this one have drops below this: 0 if there are none.
DEVICE u32 drops_above(float largest, float logit) { return largest > logit ? drop_of(largest, logit) + 1 : 0; }

// The distance and the eighth that are too far for this drop.
DEVICE float end_of_drop(u32 drop) { return drop < FARTHEST_DROP ? float_of((drop + 1 + DROP_BIAS) << (23 - DROP_FRACTION)) : POS_INF; }

// Not above a logit with this drop, whatever the subtraction rounds off.
DEVICE float below_drop(float largest, u32 drop) {
    float end = largest - (end_of_drop(drop) - DROP_OFFSET);
    return fma_f32(-absolute(end), 1.0f / 4194304.0f, end);
}

// The drops of so many groups next to each other, in one read.
template <u32 count>
struct alignas(count) Drops {
    u8 drops[count];
};
template <u32 count>
DEVICE Drops<count> drops_of(const GLOBAL u8 *groups, u32 i) {
    return *(const Drops<count> *)(const u8 *)(groups + i * count);
}
