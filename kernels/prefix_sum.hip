// Inclusive prefix sum over a row, in three launches: chunks of 512 scanned by doubling steps (Hillis and Steele, "Data parallel
// algorithms", 1986), the chunks' totals added up one after the other, and the sums before each chunk added to it.
//
// The additions and their order are those of src/ops/prefix_sum.rs, so f32 results agree bit for bit.
#include "block.h"

template <typename T>
DEVICE void scan_chunk(const T *in, u32 length, T *out) {
    SHARED T x[2][BLOCK];
    wait_for_last_launch();
    u32 chunks = (length + BLOCK - 1) / BLOCK;
    u64 row = block_index() / chunks;
    u32 t = thread_index(), i = block_index() % chunks * BLOCK + t;
    x[0][t] = i < length ? in[row * length + i] : (T)0;
    barrier();
    u32 from = 0;
    for (u32 step = 1; step < BLOCK; step *= 2) {
        x[1 - from][t] = t >= step ? x[from][t] + x[from][t - step] : x[from][t];
        from = 1 - from;
        barrier();
    }
    if (i < length) out[row * length + i] = x[from][t];
}

// One thread a row: the sum before each chunk. The chunks' own totals are their last elements.
template <typename T>
DEVICE void sum_totals(const T *out, u32 length, u32 rows, T *before) {
    wait_for_last_launch();
    u64 row = (u64)block_index() * BLOCK + thread_index();
    if (row >= rows) return;
    u32 chunks = (length + BLOCK - 1) / BLOCK;
    T sum = (T)0;
    for (u32 c = 0; c < chunks; c++) {
        before[row * chunks + c] = sum;
        u32 end = (c + 1) * BLOCK < length ? (c + 1) * BLOCK : length;
        sum = out[row * length + end - 1] + sum;
    }
}

template <typename T>
DEVICE void add_before(u32 length, const T *before, T *out) {
    wait_for_last_launch();
    u32 chunks = (length + BLOCK - 1) / BLOCK;
    u64 row = block_index() / chunks;
    u32 i = block_index() % chunks * BLOCK + thread_index();
    if (i < length) out[row * length + i] = out[row * length + i] + before[block_index()];
}

#define PREFIX_SUM_KERNELS(name, T)                                                                                   \
    KERNEL(BLOCK, 2) scan_chunks_##name(const T *in, u32 length, T *out) { scan_chunk<T>(in, length, out); }             \
    KERNEL(BLOCK, 2)                                                                                                     \
    sum_totals_##name(const T *out, u32 length, u32 rows, T *before) { sum_totals<T>(out, length, rows, before); }    \
    KERNEL(BLOCK, 2) add_before_##name(u32 length, const T *before, T *out) { add_before<T>(length, before, out); }

PREFIX_SUM_KERNELS(f32, float)
PREFIX_SUM_KERNELS(u32, u32)
