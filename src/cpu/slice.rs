//! What the sampler asks of one slice of a row: its largest logit, masses, counts, weights.
//!
//! Written once over [`Lanes`]. A slice is always a full [`SLICE`] of f32: shorter ends and 16-bit logits
//! are copied into a buffer, padded with −inf, which weighs nothing and is never the largest.

use super::arch::Lanes;
use crate::definition::weight::{EXP2, MAGIC, SLICE, SliceScale};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A slice of logits as f32.
pub(super) type Tokens = [f32; SLICE];

/// A type of logits that the CPU backend reads.
pub(crate) trait Logit: Copy + Send + Sync {
    /// These tokens as f32 (exactly), padded to a slice; in place if they are a slice already.
    fn widen<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens;
}

impl Logit for f32 {
    #[inline(always)]
    fn widen<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens {
        if let Ok(full) = tokens.try_into() {
            return full;
        }
        buffer[..tokens.len()].copy_from_slice(tokens);
        buffer[tokens.len()..].fill(f32::NEG_INFINITY);
        buffer
    }
}

impl Logit for f16 {
    #[inline(always)]
    fn widen<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens {
        tokens.convert_to_f32_slice(&mut buffer[..tokens.len()]);
        buffer[tokens.len()..].fill(f32::NEG_INFINITY);
        buffer
    }
}

impl Logit for bf16 {
    #[inline(always)]
    fn widen<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens {
        for (wide, narrow) in buffer.iter_mut().zip(tokens) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
        }
        buffer[tokens.len()..].fill(f32::NEG_INFINITY);
        buffer
    }
}

/// A lane can add this many weights before it overflows (see [`crate::definition::weight`]).
const WEIGHTS_PER_LANE: usize = 16;

/// The constants of a slice, one copy a lane.
#[derive(Clone, Copy)]
struct Weigher<V: Lanes> {
    base: V,
    floor: V,
    scale: V,
    exponent_offset: V::Int,
}

impl<V: Lanes> Weigher<V> {
    #[inline(always)]
    unsafe fn new(slice: SliceScale) -> Self {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            Self {
                base: V::splat(slice.base),
                floor: V::splat(slice.floor),
                scale: V::splat(slice.scale),
                exponent_offset: V::splat_int(slice.exponent_offset()),
            }
        }
    }

    /// [`SliceScale::weight`], a vector at a time.
    #[inline(always)]
    unsafe fn weigh(self, z: V) -> V::Int {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let magic = V::splat(MAGIC);
            let z = z.sub(self.base).max(self.floor);
            let rounded = z.mul_add(self.scale, magic);
            let f = z.mul_add(self.scale, magic.sub(rounded));
            let mut p = V::splat(EXP2[5]);
            for c in EXP2[..5].iter().rev() {
                p = p.mul_add(f, V::splat(*c));
            }
            let exponent = V::to_exponent(V::add(rounded.bits(), self.exponent_offset));
            V::from_bits(V::add(p.bits(), exponent)).round()
        }
    }
}

/// The largest logit, and whether there is a NaN (then the first is meaningless).
#[inline(always)]
pub(super) unsafe fn largest<V: Lanes>(z: &Tokens) -> (f32, bool) {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        // Four chains, because one maximum waits four cycles for the one before.
        let mut most = [V::splat(f32::NEG_INFINITY); 4];
        let mut nan = [V::splat_int(0); 4];
        for group in z.chunks_exact(4 * V::COUNT) {
            for (i, v) in group.chunks_exact(V::COUNT).enumerate() {
                let v = V::load(v);
                most[i] = v.max(most[i]);
                nan[i] = v.or_nan(nan[i]);
            }
        }
        let most = most[0].max(most[1]).max(most[2].max(most[3]));
        (most.largest(), !nan.into_iter().all(|n| V::is_zero(n)))
    }
}

/// The sum of the weights of logits above `threshold`.
#[inline(always)]
pub(super) unsafe fn mass_above<V: Lanes>(z: &Tokens, slice: SliceScale, threshold: f32) -> u64 {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let weigher = Weigher::<V>::new(slice);
        let threshold = V::splat(threshold);
        let mut sum = 0;
        for lane_full in z.chunks_exact(WEIGHTS_PER_LANE * V::COUNT) {
            let mut lanes = V::splat_int(0);
            for v in lane_full.chunks_exact(V::COUNT) {
                let v = V::load(v);
                lanes = V::add(lanes, v.select_above(threshold, weigher.weigh(v)));
            }
            sum += V::sum(lanes);
        }
        sum
    }
}

/// The number of logits above `threshold`.
#[inline(always)]
pub(super) unsafe fn count_above<V: Lanes>(z: &Tokens, threshold: f32) -> u32 {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let threshold = V::splat(threshold);
        let vectors = z.chunks_exact(V::COUNT);
        vectors
            .map(|v| V::load(v).above(threshold).count_ones())
            .sum()
    }
}

/// The index of the first token at which the running sum of the weights of logits above `threshold`
/// reaches `target`, which must be at most the sum of them all.
#[inline(always)]
pub(super) unsafe fn find<V: Lanes>(
    z: &Tokens,
    slice: SliceScale,
    threshold: f32,
    target: u64,
) -> usize {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let weigher = Weigher::<V>::new(slice);
        let bound = V::splat(threshold);
        let mut before = 0;
        for (i, v) in z.chunks_exact(V::COUNT).enumerate() {
            let v = V::load(v);
            let weights = v.select_above(bound, weigher.weigh(v));
            let sum = V::sum(weights);
            if before + sum >= target {
                let mut lanes = [0; 16];
                V::store(weights, &mut lanes);
                let reaches = lanes.iter().position(|&w| {
                    before += u64::from(w);
                    before >= target
                });
                return i * V::COUNT + reaches.expect("the vector's sum reaches the target");
            }
            before += sum;
        }
        unreachable!("the target is at most the slice's sum")
    }
}

/// Calls `f` with the index of each logit above `threshold`, ascending.
#[inline(always)]
pub(super) unsafe fn each_above<V: Lanes>(z: &Tokens, threshold: f32, mut f: impl FnMut(usize)) {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let threshold = V::splat(threshold);
        for (i, v) in z.chunks_exact(V::COUNT).enumerate() {
            let mut above = V::load(v).above(threshold);
            while above != 0 {
                f(i * V::COUNT + above.trailing_zeros() as usize);
                above &= above - 1;
            }
        }
    }
}
