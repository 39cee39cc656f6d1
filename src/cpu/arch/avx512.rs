//! AVX-512 F and DQ: 16 lanes.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY: the intrinsics below need AVX-512 F and DQ, which the trait's callers vouch for; loads and
// stores are bounds-checked and unaligned.
unsafe impl Lanes for Avx512 {
    const COUNT: usize = 16;
    type Int = __m512i;

    #[inline(always)]
    unsafe fn load(from: &[f32]) -> Self {
        unsafe { Self(_mm512_loadu_ps(from[..16].as_ptr())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: &mut [f32]) {
        unsafe { _mm512_storeu_ps(to[..16].as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, lanes: u32, to: &mut [f32]) -> usize {
        unsafe { Self(_mm512_maskz_compress_ps(lanes as u16, self.0)).store(to) };
        (lanes as u16).count_ones() as usize
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn bits(self) -> Self::Int {
        unsafe { _mm512_castps_si512(self.0) }
    }
    #[inline(always)]
    unsafe fn from_bits(bits: Self::Int) -> Self {
        unsafe { Self(_mm512_castsi512_ps(bits)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self::Int {
        unsafe { _mm512_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    unsafe fn splat_int(value: u32) -> Self::Int {
        unsafe { _mm512_set1_epi32(value as i32) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right(a: Self::Int, count: u32) -> Self::Int {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn to_exponent(a: Self::Int) -> Self::Int {
        unsafe { _mm512_slli_epi32::<23>(a) }
    }
    #[inline(always)]
    unsafe fn or_nan(self, seen: Self::Int) -> Self::Int {
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            _mm512_mask_mov_epi32(seen, nan, _mm512_set1_epi32(-1))
        }
    }
    #[inline(always)]
    unsafe fn select_above(self, other: Self, value: Self::Int) -> Self::Int {
        unsafe { _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0), value) }
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn is_zero(a: Self::Int) -> bool {
        unsafe { _mm512_test_epi32_mask(a, a) == 0 }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::Int) -> u64 {
        unsafe {
            let even = _mm512_and_si512(a, _mm512_set1_epi64(0xffff_ffff));
            _mm512_reduce_add_epi64(_mm512_add_epi64(even, _mm512_srli_epi64::<32>(a))) as u64
        }
    }
    #[inline(always)]
    unsafe fn store_int(a: Self::Int, to: &mut [u32]) {
        unsafe { _mm512_storeu_si512(to[..16].as_mut_ptr().cast(), a) }
    }
}
