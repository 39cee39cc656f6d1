// The one place that knows compilers.
//
// The kernels are written against the names below, and read by four compilers: NVRTC or nvcc for NVIDIA, hipRTC
// or hipcc for AMD, clang alone (no ROCm headers or libraries) for AMD, and a host C++17 compiler, for which
// tests/harness/host.h supplies threads, waves and blocks. Nothing else in this folder asks who is compiling.
//
// KERNEL(threads, blocks) is a kernel for blocks of so many threads, of which a multiprocessor should hold so many: where registers are a matter
// of choice (NVIDIA), that says how many a thread may have. Every kernel calls wait_for_last_launch() before it touches what a launch of ours
// may have written.
//
// WAVE is the number of lanes that run together: 32 on NVIDIA and RDNA, 64 on CDNA. The host passes it (-DWAVE=64).
// Contraction is off for everyone (-fmad=false, -ffp-contract=off): a fused multiply-add is where fma_f32 stands.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef WAVE
#define WAVE 32
#endif

// Bytes that a cache keeps together.
#define LINE 128u

// Loops over a lane's tokens are unrolled, so that the tokens stay in registers.
#define UNROLL _Pragma("unroll")
// Loops whose reads should overlap.
#define UNROLL_SOME _Pragma("unroll 4")
// Other loops are not: unrolled, they would take more registers and be no faster.
#define ROLLED _Pragma("unroll 1")
// Likely, so that nothing is jumped over.
#define LIKELY(x) __builtin_expect(x, 1)

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define DEVICE static __device__ __forceinline__
// What is called, not put in the way of rows that go another way: these would have to fetch what is behind it (0.2 us).
#define OUT_OF_LINE static __device__ __noinline__
#define SHARED __shared__
#define GLOBAL
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_index() { return blockIdx.x; }
DEVICE u32 block_index_y() { return blockIdx.y; }
#if __CUDA_ARCH__ >= 900
// Blocks of a launch may begin while the last one runs. When that has ended, and all that it wrote is there, the launch after this one may begin:
// as soon as all blocks have said so, or have ended. Where they are many, the first are through long before the last begin; to say so would only
// cost them something (0.5 µs in 64 rows).
#define LAST_BLOCKS 2048u
DEVICE void wait_for_last_launch() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if ((gridDim.y - blockIdx.y) * gridDim.x <= LAST_BLOCKS) asm volatile("griddepcontrol.launch_dependents;");
}
#define HAS_EARLY_LAUNCH
#endif
DEVICE void barrier() { __syncthreads(); }
DEVICE void wave_barrier() { __syncwarp(); }
// A barrier, and of how many threads of the block this holds.
DEVICE u32 count_at_barrier(bool x) { return (u32)__syncthreads_count(x); }
#define HAS_COUNT_AT_BARRIER
DEVICE u32 shuffle_xor(u32 x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask, WAVE); }
DEVICE u32 shuffle_up(u32 x, u32 delta) { return __shfl_up_sync(0xffffffffu, x, delta, WAVE); }
DEVICE u64 vote(bool x) { return __ballot_sync(0xffffffffu, x); }
// Among the threads of a block; `on_device`, among all blocks.
DEVICE u32 atomic_add(u32 *p, u32 x) { return atomicAdd(p, x); }
DEVICE u32 atomic_add_on_device(u32 *p, u32 x) { return atomicAdd(p, x); }
DEVICE u64 atomic_add_on_device(u64 *p, u64 x) { return atomicAdd(p, x); }
#if __CUDA_ARCH__ >= 800
#define HAS_WAVE_REDUCE
DEVICE u32 wave_max(u32 x) { return __reduce_max_sync(0xffffffffu, x); }
DEVICE u32 wave_sum(u32 x) { return __reduce_add_sync(0xffffffffu, x); }
// NaN if either is: the canonical one, which has no sign.
DEVICE float larger(float a, float b) {
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
    return most;
}
DEVICE float nan_without_sign(float most) { return most; }
#define HAS_LARGER
// The same of two at once, in the halves of a word.
DEVICE u32 larger_f16s(u32 a, u32 b) {
    u32 most;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
}
DEVICE u32 larger_bf16s(u32 a, u32 b) {
    u32 most;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
}
#define HAS_LARGER_HALVES
#endif
// The same for all lanes of a wave, which a compiler may have to be told.
DEVICE u32 uniform(u32 x) { return x; }
// The same, and the compiler does not know: what follows from it is worked out where it is wanted, not kept in registers from before a loop.
DEVICE u32 opaque(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}
// Nothing follows for this thread. To say so where it is known spares a jump to the kernel's end, over code that nobody has fetched.
DEVICE void leave() { asm volatile("exit;"); }
#define HAS_LEAVE
// Shared memory by an address that is kept in a register. Otherwise the compiler works it out again and again, from a special register for which it
// waits.
template <typename T>
DEVICE T &held(T &x) {
    return *(T *)__cvta_shared_to_generic(opaque((u32)__cvta_generic_to_shared(&x)));
}
#define HAS_HELD
// Two counts that go down: by all 64 bits, and by the lower ones, if a > b. Borrows take four instructions, comparisons seven.
DEVICE void count_larger(u64 a, u64 b, u32 *all, u32 *lower) {
    asm("{ .reg .u32 rest;\n"
        "sub.cc.u32 rest, %4, %2; subc.u32 %1, %1, 0;\n"
        "subc.cc.u32 rest, %5, %3; subc.u32 %0, %0, 0; }"
        : "+r"(*all), "+r"(*lower)
        : "r"((u32)a), "r"((u32)(a >> 32)), "r"((u32)b), "r"((u32)(b >> 32)));
}
#define HAS_COUNT_LARGER
DEVICE u32 count_bits(u64 x) { return (u32)__popcll((long long)x); }
DEVICE u32 lowest_bit(u64 x) { return (u32)__ffsll((long long)x) - 1; }
DEVICE u32 highest_bit(u64 x) { return 63 - (u32)__clzll((long long)x); }
DEVICE float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE float at_least(float x, float least) { return fmaxf(x, least); }
DEVICE u32 round_u32(float x) { return __float2uint_rn(x); }
// To within 2^-21 of it or so, for bounds.
DEVICE float exp2_about(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float divide_about(float a, float b) { return __fdividef(a, b); }
#define HAS_DIVIDE_ABOUT
// Two instructions, where to add a choice of zero takes three.
DEVICE void add_if_above(float &sum, float x, float limit, float weight) {
    asm("{ .reg .pred above;\n"
        "setp.gt.f32 above, %1, %2; @above add.f32 %0, %0, %3; }"
        : "+f"(sum)
        : "f"(x), "f"(limit), "f"(weight));
}
#define HAS_ADD_IF_ABOVE
// to[i] = x in shared memory, if that is wanted; there may be no such place if not. Of branches in place of these, a wave takes one after the other.
DEVICE void write_if(bool wanted, u32 *to, u32 i, u32 x) {
    asm volatile("{ .reg .pred wanted;\n"
                 "setp.ne.u32 wanted, %0, 0; @wanted st.shared.u32 [%1], %2; }"
                 :
                 : "r"((u32)wanted), "r"((u32)__cvta_generic_to_shared(to) + i * 4), "r"(x)
                 : "memory");
}
DEVICE void write_if(bool wanted, u64 *to, u32 i, u64 x) {
    asm volatile("{ .reg .pred wanted;\n"
                 "setp.ne.u32 wanted, %0, 0; @wanted st.shared.u64 [%1], %2; }"
                 :
                 : "r"((u32)wanted), "r"((u32)__cvta_generic_to_shared(to) + i * 8), "l"(x)
                 : "memory");
}
#define HAS_WRITE_IF
// Asks for what will be read into the cache that multiprocessors share, a line of LINE bytes, and waits for nothing.
DEVICE void prefetch(const u8 *line) { asm volatile("prefetch.global.L2 [%0];" : : "l"(line)); }
#define HAS_PREFETCH
// Where the host may be looking meanwhile.
DEVICE void write_for_host(u32 *to, u32 x) { *(volatile u32 *)to = x; }
#define HAS_WRITE_FOR_HOST
// Reads 16 bytes of what is more than the cache holds: there they take the place of what was so read before, not of the rest, which is still to be
// read, nor of what others have left.
DEVICE void read_once(const u32 *from, u32 *to) {
    uint4 four = __ldcs((const uint4 *)from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
// Writes what is not read again before all that: it leaves the cache first, too.
DEVICE void write_once(u8 *to, u8 x) { __stcs(to, x); }
#define HAS_READ_ONCE
// From the cache that multiprocessors share: written by a launch that has ended, but perhaps while this block's multiprocessor had the line.
DEVICE u64 read_shared_cache(const u64 *from) { return __ldcg(from); }
#define HAS_READ_SHARED_CACHE
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }
DEVICE u64 mul_hi(u64 a, u64 b) { return __umul64hi(a, b); }
DEVICE double divide_f64(double a, double b) { return __ddiv_rn(a, b); }
DEVICE float half_to_float(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

#elif defined(__AMDGCN__) || defined(__HIP__)

// Compiler builtins only, so that the ROCm headers may be there or not.
#define DEVICE static __attribute__((device)) __attribute__((always_inline)) inline
#define SHARED __attribute__((shared))
// A pointer to the GPU's memory that comes from shared memory has to say so, or else it could point to either.
#define GLOBAL __attribute__((address_space(1)))
#define KERNEL(threads, blocks) \
    extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(threads, threads))) void

// clang compiles the file for the host too and wants bodies there.
#if defined(__HIP_DEVICE_COMPILE__) || defined(__AMDGCN__)
DEVICE u32 thread_index() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE u32 block_index() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE u32 block_index_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
DEVICE void wave_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
DEVICE u32 lane_of_wave() {
    u32 low = __builtin_amdgcn_mbcnt_lo(~0u, 0);
    return WAVE == 64 ? __builtin_amdgcn_mbcnt_hi(~0u, low) : low;
}
// A lane reads another's register by address: four bytes a lane.
DEVICE u32 shuffle_xor(u32 x, u32 mask) {
    return __builtin_amdgcn_ds_bpermute((int)((lane_of_wave() ^ mask) * 4), (int)x);
}
#if !__has_builtin(__builtin_amdgcn_ballot_w32)
// ROCm 5's clang: a comparison (33 is "not equal") whose result is every lane's.
DEVICE u64 vote(bool x) { return __builtin_amdgcn_uicmp((u32)x, 0u, 33); }
#elif WAVE == 64
DEVICE u64 vote(bool x) { return __builtin_amdgcn_ballot_w64(x); }
#else
DEVICE u64 vote(bool x) { return __builtin_amdgcn_ballot_w32(x); }
#endif
DEVICE u32 opaque(u32 x) {
    asm volatile("" : "+v"(x));
    return x;
}
// What 16 lanes have is put together without LDS, by moves between lanes: of neighbours, of pairs, of quads and halves mirrored. What the rows of 16 have
// then, in scalar registers.
#define HAS_WAVE_REDUCE
template <int control>
DEVICE u32 moved(u32 x) {
    return (u32)__builtin_amdgcn_mov_dpp((int)x, control, 0xf, 0xf, true);
}
// quad_perm: 1, 0, 3, 2 and 2, 3, 0, 1.
template <u32 mask>
DEVICE u32 shuffle_in_four(u32 x) {
    return moved<mask == 1 ? 0xb1 : 0x4e>(x);
}
#define HAS_SHUFFLE_IN_FOUR
DEVICE u32 of_lane(u32 x, int lane) { return (u32)__builtin_amdgcn_readlane((int)x, lane); }
template <typename F>
DEVICE u32 wave_reduce(u32 x, F put_together) {
    x = put_together(x, shuffle_in_four<1>(x));
    x = put_together(x, shuffle_in_four<2>(x));
    x = put_together(x, moved<0x141>(x));  // row_half_mirror
    x = put_together(x, moved<0x140>(x));  // row_mirror
    u32 all = of_lane(x, 0);
    UNROLL for (int row = 16; row < WAVE; row += 16) all = put_together(all, of_lane(x, row));
    return all;
}
DEVICE u32 wave_max(u32 x) {
    return wave_reduce(x, [](u32 a, u32 b) { return a > b ? a : b; });
}
DEVICE u32 wave_sum(u32 x) {
    return wave_reduce(x, [](u32 a, u32 b) { return a + b; });
}
// The same for sums over a lane and those before it: in rows of 16 from the lane 1, 2, 4 and 8 before (row_shr; beyond the row's begin there is 0), then
// what the rows before have.
template <int control>
DEVICE u64 moved(u64 x) {
    // Opaque, lest gfx11 moves and adds with carry in one instruction, which the emulator does not know.
    return (u64)opaque(moved<control>((u32)(x >> 32))) << 32 | opaque(moved<control>((u32)x));
}
DEVICE u64 of_lane(u64 x, int lane) { return (u64)of_lane((u32)(x >> 32), lane) << 32 | of_lane((u32)x, lane); }
template <typename W>
DEVICE W wave_prefix(W x) {
    x += moved<0x111>(x);
    x += moved<0x112>(x);
    x += moved<0x114>(x);
    x += moved<0x118>(x);
    W before = 0;
    UNROLL for (int row = 16; row < WAVE; row += 16) {
        W sum = of_lane(x, row - 1);
        before += (int)lane_of_wave() >= row ? sum : 0;
    }
    return x + before;
}
#define HAS_WAVE_PREFIX
DEVICE u32 atomic_add(u32 *p, u32 x) {
    return __hip_atomic_fetch_add(p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
}
DEVICE u32 atomic_add_on_device(u32 *p, u32 x) {
    return __hip_atomic_fetch_add(p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
DEVICE u64 atomic_add_on_device(u64 *p, u64 x) {
    return __hip_atomic_fetch_add(p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
DEVICE u32 uniform(u32 x) { return (u32)__builtin_amdgcn_readfirstlane((int)x); }
#endif
DEVICE u32 count_bits(u64 x) { return (u32)__builtin_popcountll(x); }
DEVICE u32 lowest_bit(u64 x) { return (u32)__builtin_ctzll(x); }
DEVICE u32 highest_bit(u64 x) { return 63 - (u32)__builtin_clzll(x); }
DEVICE float fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float absolute(float x) { return __builtin_fabsf(x); }
// The median with infinity is the larger one, in an instruction less than a comparison takes.
DEVICE float at_least(float x, float least) { return __builtin_amdgcn_fmed3f(x, least, __builtin_inff()); }
// NaN if one is: two comparisons tell it of four.
DEVICE float largest_of_four(const float *z) {
    float most = at_least(at_least(z[0], z[1]), at_least(z[2], z[3]));
    return __builtin_isunordered(z[0], z[1]) | __builtin_isunordered(z[2], z[3]) ? __builtin_nanf("") : most;
}
#define HAS_LARGEST_OF_FOUR
DEVICE u32 round_u32(float x) { return (u32)__builtin_rintf(x); }
#if __has_builtin(__builtin_amdgcn_exp2f)
DEVICE float exp2_about(float x) { return __builtin_amdgcn_exp2f(x); }
#else
DEVICE float exp2_about(float x) { return __builtin_exp2f(x); }
#endif
DEVICE float divide_about(float a, float b) { return a * __builtin_amdgcn_rcpf(b); }
#define HAS_DIVIDE_ABOUT
DEVICE u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
DEVICE float float_of(u32 x) { return __builtin_bit_cast(float, x); }
DEVICE u64 mul_hi(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
DEVICE double divide_f64(double a, double b) { return a / b; }
DEVICE float half_to_float(u16 h) { return (float)__builtin_bit_cast(_Float16, h); }

#else

#include "host.h"

#endif

// ---- The same for everyone, where a compiler has nothing better. --------------------------------------------

#ifndef HAS_WAVE_REDUCE
DEVICE u32 wave_max(u32 x) {
    for (u32 mask = WAVE / 2; mask; mask /= 2) {
        u32 y = shuffle_xor(x, mask);
        x = y > x ? y : x;
    }
    return x;
}

DEVICE u32 wave_sum(u32 x) {
    for (u32 mask = WAVE / 2; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}
#endif

#ifndef OUT_OF_LINE
#define OUT_OF_LINE DEVICE
#endif

#ifndef HAS_LEAVE
DEVICE void leave() {}
#endif

#ifndef HAS_HELD
template <typename T>
DEVICE T &held(T &x) {
    return x;
}
#endif

#ifndef HAS_EARLY_LAUNCH
DEVICE void wait_for_last_launch() {}
#endif

#ifndef HAS_READ_SHARED_CACHE
DEVICE u64 read_shared_cache(const u64 *from) { return *from; }
#endif

#ifndef HAS_COUNT_LARGER
DEVICE void count_larger(u64 a, u64 b, u32 *all, u32 *lower) {
    *all -= a > b;
    *lower -= (u32)a > (u32)b;
}
#endif

#ifndef HAS_ADD_IF_ABOVE
DEVICE void add_if_above(float &sum, float x, float limit, float weight) { sum += x > limit ? weight : 0.0f; }
#endif

#ifndef HAS_WRITE_IF
template <typename W>
DEVICE void write_if(bool wanted, W *to, u32 i, W x) {
    if (wanted) to[i] = x;
}
#endif

#ifndef HAS_WRITE_FOR_HOST
DEVICE void write_for_host(GLOBAL u32 *to, u32 x) { *to = x; }
#endif

#ifndef HAS_PREFETCH
DEVICE void prefetch(const u8 *) {}
#endif

#ifndef HAS_DIVIDE_ABOUT
DEVICE float divide_about(float a, float b) { return a / b; }
#endif

#ifndef HAS_LARGER
// NaN if either is.
DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }
// Of what `larger` has found: without a sign, the bits of a NaN rank above all others.
DEVICE float nan_without_sign(float most) { return most != most ? float_of(0x7fffffffu) : most; }
#endif

#ifndef HAS_LARGEST_OF_FOUR
DEVICE float largest_of_four(const float *z) { return larger(larger(z[0], z[1]), larger(z[2], z[3])); }
#endif

#ifndef HAS_SHUFFLE_IN_FOUR
// Of the lane whose index differs in this bit, 1 or 2.
template <u32 mask>
DEVICE u32 shuffle_in_four(u32 x) {
    return shuffle_xor(x, mask);
}
#endif

#ifndef HAS_READ_ONCE
DEVICE void read_once(const u32 *from, u32 *to) {
    UNROLL for (u32 i = 0; i < 4; i++) to[i] = from[i];
}
DEVICE void write_once(u8 *to, u8 x) { *to = x; }
#endif
