//! One vector type per instruction set, and the choice among them at run time.
//!
//! [`Lanes`] is the only thing that knows intrinsics; everything above it is written once and compiled
//! once for each implementation. All of them compute the same bits: every operation here is exact or
//! correctly rounded, and nothing is fused or reordered behind the source's back.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

/// A vector of f32 lanes, with u32 lanes of the same number beside it.
///
/// # Safety
///
/// Every method may execute the implementation's instructions: callers must know that the CPU has them
/// (see [`Level::detect`]). Each method must be inlined into a function compiled for those features.
pub(super) unsafe trait Lanes: Copy {
    /// A power of two, at most 16.
    const COUNT: usize;
    type Int: Copy;

    /// The first `COUNT` elements; panics if there are fewer.
    unsafe fn load(from: &[f32]) -> Self;
    /// Writes to the first `COUNT` elements; panics if there are fewer.
    unsafe fn store(self, to: &mut [f32]);
    /// Writes the lanes whose bits are set to the front of the first `COUNT` elements (what the rest of these then hold is
    /// not specified) and returns their number; ignores other bits, panics if there are fewer elements.
    unsafe fn store_some(self, lanes: u32, to: &mut [f32]) -> usize;
    /// Asks for the memory here to be fetched, wherever that is.
    unsafe fn prefetch(_at: *const u8) {}
    unsafe fn splat(value: f32) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// The larger of the two; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The sum of the lanes, in any order.
    #[inline(always)]
    unsafe fn rough_sum(self) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.store(&mut lanes) };
        lanes.into_iter().sum()
    }
    /// The largest lane (no lane is NaN).
    unsafe fn largest(self) -> f32;

    unsafe fn bits(self) -> Self::Int;
    unsafe fn from_bits(bits: Self::Int) -> Self;
    /// Rounds lanes between 0 and 2³¹ to the nearest integers, ties to even.
    unsafe fn round(self) -> Self::Int;

    unsafe fn splat_int(value: u32) -> Self::Int;
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Shifts right by `count`, at most 31.
    unsafe fn shift_right(a: Self::Int, count: u32) -> Self::Int;
    /// Shifts left by 23, to where a float's exponent is.
    unsafe fn to_exponent(a: Self::Int) -> Self::Int;
    /// All ones in the lanes of `seen` that are so already, or where `self` is NaN.
    unsafe fn or_nan(self, seen: Self::Int) -> Self::Int;
    /// `value` where `self > other`, else 0.
    unsafe fn select_above(self, other: Self, value: Self::Int) -> Self::Int;
    /// One bit a lane: whether `self > other`.
    unsafe fn above(self, other: Self) -> u32;
    unsafe fn is_zero(a: Self::Int) -> bool;
    /// The sum of the lanes, which must each be below 2³².
    unsafe fn sum(a: Self::Int) -> u64;
    /// Writes to the first `COUNT` elements; panics if there are fewer.
    unsafe fn store_int(a: Self::Int, to: &mut [u32]);
}

/// The widest instruction set that this crate has code for and this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // The standard library asks the CPU once and remembers.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("bmi1");
            let avx512 =
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Every level this CPU can run, for tests.
    #[cfg(test)]
    pub(super) fn available() -> impl Iterator<Item = Self> {
        let all = [
            Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
        ];
        all.into_iter().filter(|level| *level <= Self::detect())
    }
}
