// The first launch of samplers and of the softmax. Where the cache has no room for all rows, the second of kernels that differ in nothing else:
// one that asks which it is would spend instructions on it, of which it has none to spare. Where rows are few, a third divides the masses of those that
// are tried: it has more to hold in registers, and fewer waves than there is room for.
#include "logits.h"
#include "read.h"

#define SLICES_KERNELS(T)                                                                                             \
    KERNEL(READ_BLOCK, 12)                                                                                            \
    slices_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,          \
               float *largest, u8 *groups, u64 *mass, u64 *kept, u64 *wide) {                                        \
        slices_of<false, false>(logits, stride, vocab, params, shared_params, step, largest, groups, mass, kept,      \
                                wide);                                                                                \
    }                                                                                                                 \
    KERNEL(READ_BLOCK, 12)                                                                                            \
    slices_once_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,     \
                    float *largest, u8 *groups, u64 *mass, u64 *kept, u64 *wide) {                                   \
        slices_of<true, false>(logits, stride, vocab, params, shared_params, step, largest, groups, mass, kept,       \
                               wide);                                                                                 \
    }                                                                                                                 \
    KERNEL(READ_BLOCK, 8)                                                                                             \
    slices_placed_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,   \
                      float *largest, u8 *groups, u64 *mass, u64 *kept, u64 *wide) {                                 \
        slices_of<false, true>(logits, stride, vocab, params, shared_params, step, largest, groups, mass, kept,       \
                               wide);                                                                                 \
    }

FOR_LOGITS(SLICES_KERNELS)
