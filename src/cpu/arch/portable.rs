//! Plain Rust: what other architectures use (on AArch64 the compiler turns it into NEON), and x86-64
//! machines without AVX2 and FMA, where the fused multiply-adds become slow but exact library calls.

use super::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY: no instructions beyond the target's own.
unsafe impl Lanes for Portable {
    const COUNT: usize = 8;
    type Int = [u32; 8];

    #[inline(always)]
    unsafe fn load(from: &[f32]) -> Self {
        Self(std::array::from_fn(|i| from[i]))
    }
    #[inline(always)]
    unsafe fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }
    #[inline(always)]
    unsafe fn store_some(self, lanes: u32, to: &mut [f32]) -> usize {
        let mut n = 0;
        for (i, z) in self.0.into_iter().enumerate() {
            to[n] = z;
            n += (lanes >> i & 1) as usize;
        }
        n
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| {
            self.0[i].mul_add(factor.0[i], addend.0[i])
        }))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn bits(self) -> Self::Int {
        self.0.map(f32::to_bits)
    }
    #[inline(always)]
    unsafe fn from_bits(bits: Self::Int) -> Self {
        Self(bits.map(f32::from_bits))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self::Int {
        self.0.map(|x| x.round_ties_even() as u32)
    }
    #[inline(always)]
    unsafe fn splat_int(value: u32) -> Self::Int {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn shift_right(a: Self::Int, count: u32) -> Self::Int {
        a.map(|x| x >> count)
    }
    #[inline(always)]
    unsafe fn to_exponent(a: Self::Int) -> Self::Int {
        a.map(|x| x << 23)
    }
    #[inline(always)]
    unsafe fn or_nan(self, seen: Self::Int) -> Self::Int {
        std::array::from_fn(|i| {
            if self.0[i].is_nan() {
                u32::MAX
            } else {
                seen[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn select_above(self, other: Self, value: Self::Int) -> Self::Int {
        std::array::from_fn(|i| if self.0[i] > other.0[i] { value[i] } else { 0 })
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        (0..8).map(|i| u32::from(self.0[i] > other.0[i]) << i).sum()
    }
    #[inline(always)]
    unsafe fn is_zero(a: Self::Int) -> bool {
        a == [0; 8]
    }
    #[inline(always)]
    unsafe fn sum(a: Self::Int) -> u64 {
        a.into_iter().map(u64::from).sum()
    }
    #[inline(always)]
    unsafe fn store_int(a: Self::Int, to: &mut [u32]) {
        to[..8].copy_from_slice(&a);
    }
}
