//! AVX2 and FMA: 8 lanes. Every x86-64 since 2013 to 2017, depending on the maker.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// For every set of lanes, the order that brings them to the front.
static FRONT: [[u32; 8]; 256] = {
    let mut orders = [[0; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut n) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                orders[set][n] = lane;
                n += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    orders
};

// SAFETY: the intrinsics below need AVX2 and FMA, which the trait's callers vouch for; loads and stores
// are bounds-checked and unaligned.
unsafe impl Lanes for Avx2 {
    const COUNT: usize = 8;
    type Int = __m256i;

    #[inline(always)]
    unsafe fn load(from: &[f32]) -> Self {
        unsafe { Self(_mm256_loadu_ps(from[..8].as_ptr())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: &mut [f32]) {
        unsafe { _mm256_storeu_ps(to[..8].as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, lanes: u32, to: &mut [f32]) -> usize {
        let lanes = lanes as u8;
        unsafe {
            let order = _mm256_loadu_si256(FRONT[usize::from(lanes)].as_ptr().cast());
            Self(_mm256_permutevar8x32_ps(self.0, order)).store(to);
        }
        lanes.count_ones() as usize
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let halves = _mm_max_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let pairs = _mm_max_ps(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32(_mm_max_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
        }
    }
    #[inline(always)]
    unsafe fn bits(self) -> Self::Int {
        unsafe { _mm256_castps_si256(self.0) }
    }
    #[inline(always)]
    unsafe fn from_bits(bits: Self::Int) -> Self {
        unsafe { Self(_mm256_castsi256_ps(bits)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self::Int {
        unsafe { _mm256_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    unsafe fn splat_int(value: u32) -> Self::Int {
        unsafe { _mm256_set1_epi32(value as i32) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right(a: Self::Int, count: u32) -> Self::Int {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn to_exponent(a: Self::Int) -> Self::Int {
        unsafe { _mm256_slli_epi32::<23>(a) }
    }
    #[inline(always)]
    unsafe fn or_nan(self, seen: Self::Int) -> Self::Int {
        unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            _mm256_or_si256(seen, _mm256_castps_si256(nan))
        }
    }
    #[inline(always)]
    unsafe fn select_above(self, other: Self, value: Self::Int) -> Self::Int {
        unsafe {
            let above = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0);
            _mm256_and_si256(value, _mm256_castps_si256(above))
        }
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)) as u32 }
    }
    #[inline(always)]
    unsafe fn is_zero(a: Self::Int) -> bool {
        unsafe { _mm256_testz_si256(a, a) != 0 }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::Int) -> u64 {
        unsafe {
            let even = _mm256_and_si256(a, _mm256_set1_epi64x(0xffff_ffff));
            let pairs = _mm256_add_epi64(even, _mm256_srli_epi64::<32>(a));
            let mut lanes = [0u64; 4];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), pairs);
            lanes.into_iter().sum()
        }
    }
    #[inline(always)]
    unsafe fn store_int(a: Self::Int, to: &mut [u32]) {
        unsafe { _mm256_storeu_si256(to[..8].as_mut_ptr().cast(), a) }
    }
}
