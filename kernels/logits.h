// Kernels for each dtype of logits; or for one, which the host names (-DLOGITS=f16): a user has one, and compiles no others.
#pragma once
#include "slice.h"

typedef float f32;

#define KERNELS_FOR(KERNELS, T) KERNELS(T)
#ifdef LOGITS
#define FOR_LOGITS(KERNELS) KERNELS_FOR(KERNELS, LOGITS)
#else
#define FOR_LOGITS(KERNELS) KERNELS(f32) KERNELS(f16) KERNELS(bf16)
#endif
