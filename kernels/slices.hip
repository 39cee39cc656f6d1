// The first launch of samplers and of the softmax.
#include "logits.h"
#include "read.h"

#define SLICES_KERNEL(T)                                                                                              \
    KERNEL(READ_BLOCK, 12)                                                                                            \
    slices_##T(const T *logits, i64 stride, u32 vocab, u32 once, const RowParams *params, u32 shared_params,          \
               u32 step, float *largest, f16 *groups, u64 *mass, u64 *wide) {                                         \
        slices_of<T>(logits, stride, vocab, once, params, shared_params, step, largest, groups, mass, wide);          \
    }

FOR_LOGITS(SLICES_KERNEL)
