// Softmax over a row: after `slices` (slices.hip) with temperature 1 has left the slices' largest logits and masses, each block
// adds them up for itself (integers: everybody gets the same sum) and writes its share of the row.
//
// The CPU's counterpart is src/ops/softmax.rs.
#include "block.h"
#include "logits.h"

// Slices that one block writes.
#define SLICES_PER_WRITER 8u

DEVICE void narrow(float p, float *to) { *to = p; }

DEVICE void narrow(float p, bf16 *to) {
    u32 bits = bits_of(p);
    to->bits = p != p ? 0x7fc0u : (u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// For probabilities: 0 to 1, or NaN.
DEVICE void narrow(float p, f16 *to) {
    u32 bits = bits_of(p);
    if (p != p)
        to->bits = 0x7e00u;
    else if (bits < 0x38800000u)  // below 2^-14: subnormal, in units of 2^-24
        to->bits = (u16)round_u32(p * 16777216.0f);
    else
        to->bits = (u16)((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13);
}

template <typename T>
DEVICE void softmax_of(const T *logits, u32 vocab, float one_scale, float one_inverse, const float *largest,
                       const u64 *mass, T *out) {
    SHARED Scratch scratch;
    wait_for_last_launch();
    Block block = {&scratch, 0};
    u32 slices = (vocab + SLICE - 1) / SLICE;
    u32 blocks = (slices + SLICES_PER_WRITER - 1) / SLICES_PER_WRITER;
    u32 row = block_index() / blocks, first = block_index() % blocks * SLICES_PER_WRITER;
    logits += (u64)row * vocab;
    largest += (u64)row * slices;
    mass += (u64)row * slices;
    out += (u64)row * vocab;

    u64 best = 0;
    for (u32 j = thread_index(); j < slices; j += BLOCK) {
        u64 key = key_of_slice(largest[j], j);
        best = key > best ? key : best;
    }
    best = block_max(block, best);
    float most = key_logit(best);
    bool none = best == ~(u64)0 || most == NEG_INF || most == POS_INF;

    Scale scale = {0.0f, one_scale, one_inverse};
    scale = measured_from(scale, most);
    SliceScale unit = slice_scale(scale, most, DEPTH);
    u64 total = 0;
    if (!none && scale.base == 0.0f) {
        for (u32 j = thread_index(); j < slices; j += BLOCK) {
            SliceScale s = slice_scale(scale, largest[j], NEGLIGIBLE);
            if (s.some) total += to_row_units(s, mass[j], unit_of(unit));
        }
    } else if (!none) {
        // Far from zero the first read's sums are void: add the row up again.
        for (u32 j = wave_index(); j < slices; j += WAVES) {
            SliceScale s = slice_scale(scale, largest[j], NEGLIGIBLE);
            if (!s.some) continue;
            Vector<T> vectors[VECTORS];
            load_slice(logits, vocab, j, vectors);
            u64 sum = to_row_units(s, mass_of(vectors, s), unit_of(unit));
            if (lane_index() == 0) total += sum;
        }
    }
    total = block_sum(block, total);
    float reciprocal = (float)divide_f64((double)(1u << HEADROOM), (double)total);

    u32 last = (first + SLICES_PER_WRITER) * SLICE;
    for (u32 id = first * SLICE + thread_index(); id < last && id < vocab; id += BLOCK) {
        float z = widen(logits[id]);
        float p = z - scale.base < unit.floor ? 0.0f : unrounded(unit, z) * reciprocal;
        narrow(none ? float_of(0x7fc00000u) : p, out + id);
    }
}

#define SOFTMAX_KERNEL(T)                                                                                             \
    KERNEL(BLOCK, 2)                                                                                                  \
    softmax_##T(const T *logits, u32 vocab, float one_scale, float one_inverse, const float *largest,                 \
                const u64 *mass, T *out) {                                                                            \
        softmax_of<T>(logits, vocab, one_scale, one_inverse, largest, mass, out);                                     \
    }

FOR_LOGITS(SOFTMAX_KERNEL)
