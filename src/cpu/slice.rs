//! What the sampler asks of one slice of a row: its largest logit, weights and their sums, which tokens are above a
//! threshold.
//!
//! Written once over [`Lanes`]. A slice is always a full [`SLICE`] of f32: shorter ends and 16-bit logits
//! are copied into a buffer, padded with −inf, which weighs nothing and is never the largest.

use super::arch::Lanes;
use crate::definition::weight::{EXP2, SLICE, SliceScale};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A slice of logits as f32.
pub(super) type Tokens = [f32; SLICE];

/// A type of logits that the CPU backend reads.
pub(crate) trait Logit: Copy + Send + Sync {
    /// These tokens as f32, exactly.
    fn widen(tokens: &[Self], to: &mut [f32]);

    /// These tokens padded to a slice; in place if they are a slice of f32 already.
    #[inline(always)]
    fn slice<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens {
        pad(tokens, buffer)
    }
}

#[inline(always)]
fn pad<'a, T: Logit>(tokens: &[T], buffer: &'a mut Tokens) -> &'a Tokens {
    T::widen(tokens, &mut buffer[..tokens.len()]);
    buffer[tokens.len()..].fill(f32::NEG_INFINITY);
    buffer
}

impl Logit for f32 {
    #[inline(always)]
    fn widen(tokens: &[Self], to: &mut [f32]) {
        to.copy_from_slice(tokens);
    }

    #[inline(always)]
    fn slice<'a>(tokens: &'a [Self], buffer: &'a mut Tokens) -> &'a Tokens {
        match tokens.try_into() {
            Ok(full) => full,
            Err(_) => pad(tokens, buffer),
        }
    }
}

impl Logit for f16 {
    #[inline(always)]
    fn widen(tokens: &[Self], to: &mut [f32]) {
        tokens.convert_to_f32_slice(to);
    }
}

impl Logit for bf16 {
    #[inline(always)]
    fn widen(tokens: &[Self], to: &mut [f32]) {
        for (wide, narrow) in to.iter_mut().zip(tokens) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
        }
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
    magic: V,
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
                magic: V::splat(slice.magic),
            }
        }
    }

    /// [`SliceScale::weight`], a vector at a time.
    #[inline(always)]
    unsafe fn weigh(self, z: V) -> V::Int {
        // SAFETY: the caller vouches for V's instructions.
        unsafe { self.unrounded(z).round() }
    }

    /// [`SliceScale::unrounded`], a vector at a time.
    #[inline(always)]
    unsafe fn unrounded(self, z: V) -> V {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let z = z.sub(self.base).max(self.floor);
            let rounded = z.mul_add(self.scale, self.magic);
            let f = z.mul_add(self.scale, self.magic.sub(rounded));
            let mut p = V::splat(EXP2[5]);
            for c in EXP2[..5].iter().rev() {
                p = p.mul_add(f, V::splat(*c));
            }
            V::from_bits(V::add(p.bits(), V::to_exponent(rounded.bits())))
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

/// How many slices ahead of the one at hand memory is asked for.
const AHEAD: usize = 2;

/// Asks for the memory of the slice that is [`AHEAD`] of this one: where there is much to do between reads, the CPU does not
/// see far enough itself.
#[inline(always)]
pub(super) unsafe fn fetch_ahead<V: Lanes, T>(slice: &[T]) {
    let ahead = slice.as_ptr().wrapping_add(AHEAD * SLICE).cast::<u8>();
    for line in (0..SLICE * size_of::<T>()).step_by(64) {
        // SAFETY: the caller vouches for V's instructions.
        unsafe { V::prefetch(ahead.wrapping_add(line)) };
    }
}

/// The sum of all weights.
#[inline(always)]
pub(super) unsafe fn mass<V: Lanes>(z: &Tokens, slice: SliceScale) -> u64 {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let weigher = Weigher::<V>::new(slice);
        let mut sum = 0;
        for lane_full in z.chunks_exact(WEIGHTS_PER_LANE * V::COUNT) {
            let mut lanes = V::splat_int(0);
            for v in lane_full.chunks_exact(V::COUNT) {
                lanes = V::add(lanes, weigher.weigh(V::load(v)));
            }
            sum += V::sum(lanes);
        }
        sum
    }
}

/// How many logits are above `threshold`, and the sum of their weights, each shifted right by `shift`.
#[inline(always)]
pub(super) unsafe fn above<V: Lanes>(
    z: &Tokens,
    slice: SliceScale,
    shift: u32,
    threshold: f32,
) -> (usize, u64) {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let weigher = Weigher::<V>::new(slice);
        let bound = V::splat(threshold);
        let (mut count, mut sum) = (0, 0);
        for lane_full in z.chunks_exact(WEIGHTS_PER_LANE * V::COUNT) {
            let mut lanes = V::splat_int(0);
            for v in lane_full.chunks_exact(V::COUNT) {
                let v = V::load(v);
                count += v.above(bound).count_ones() as usize;
                let weights = V::shift_right(weigher.weigh(v), shift);
                lanes = V::add(lanes, v.select_above(bound, weights));
            }
            sum += V::sum(lanes);
        }
        (count, sum)
    }
}

/// Each logit's weight before it is rounded. Whole vectors only.
#[inline(always)]
pub(super) unsafe fn weigh_all<V: Lanes>(z: &[f32], slice: SliceScale, weights: &mut [f32]) {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let weigher = Weigher::<V>::new(slice);
        for i in (0..z.len()).step_by(V::COUNT) {
            let w = weigher.unrounded(V::load(&z[i..]));
            w.store(&mut weights[i..]);
        }
    }
}

/// So many tokens share a word of [`Bits`].
pub(super) const GROUP: usize = u64::BITS as usize;

/// Which tokens of a slice: a bit for each.
pub(super) type Bits = [u64; SLICE / GROUP];

/// Room for what is picked from a slice, and a vector more.
pub(super) const ROOM: usize = SLICE + 16;

/// Which logits are above `threshold`, and how many; lists them in `places`.
#[inline(always)]
pub(super) unsafe fn which<V: Lanes>(
    z: &Tokens,
    threshold: f32,
    places: &mut [u16; ROOM],
) -> (Bits, usize) {
    let mut bits = Bits::default();
    let mut n = 0;
    for (g, group) in z.chunks_exact(GROUP).enumerate() {
        for (i, v) in (0..).step_by(V::COUNT).zip(group.chunks_exact(V::COUNT)) {
            // SAFETY: the caller vouches for V's instructions.
            bits[g] |= u64::from(unsafe { V::load(v).above(V::splat(threshold)) }) << i;
        }
        n = list(g, bits[g], places, n);
    }
    (bits, n)
}

/// Which logits are above `low`, and how many; writes them to the front of `picked`. Lists those not above `high` in
/// `places`, and says how many these are.
#[inline(always)]
pub(super) unsafe fn pick<V: Lanes>(
    z: &Tokens,
    (low, high): (f32, f32),
    picked: &mut [f32; ROOM],
    places: &mut [u16; ROOM],
) -> (Bits, usize, usize) {
    let mut bits = Bits::default();
    let (mut n, mut listed) = (0, 0);
    for (g, group) in z.chunks_exact(GROUP).enumerate() {
        let mut above_high = 0;
        for (i, v) in (0..).step_by(V::COUNT).zip(group.chunks_exact(V::COUNT)) {
            // SAFETY: the caller vouches for V's instructions.
            unsafe {
                let v = V::load(v);
                let lanes = v.above(V::splat(low));
                bits[g] |= u64::from(lanes) << i;
                above_high |= u64::from(v.above(V::splat(high))) << i;
                n += v.store_some(lanes, &mut picked[n..]);
            }
        }
        listed = list(g, bits[g] & !above_high, places, listed);
    }
    (bits, n, listed)
}

/// Lists the bits that are set in the `g`-th word, ascending, after `n` others; returns how many there are then.
#[inline(always)]
fn list(g: usize, word: u64, places: &mut [u16; ROOM], n: usize) -> usize {
    let next = n + word.count_ones() as usize;
    let mut rest = word;
    // Most words have four at most, and how many cannot be foreseen.
    for place in &mut places[n..n + 4] {
        *place = (g * GROUP) as u16 + rest.trailing_zeros() as u16;
        rest &= rest.wrapping_sub(1);
    }
    for place in places.iter_mut().take(next).skip(n + 4) {
        *place = (g * GROUP) as u16 + rest.trailing_zeros() as u16;
        rest &= rest - 1;
    }
    next
}

/// The weights, each shifted right by `shift`, of the first `count` logits; and the sums of all of them, and of those of
/// logits above `high`.
#[inline(always)]
pub(super) unsafe fn weigh<V: Lanes>(
    z: &mut [f32; ROOM],
    count: usize,
    slice: SliceScale,
    shift: u32,
    high: f32,
    weights: &mut [u32; ROOM],
) -> [u64; 2] {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        // The rest of the last vector weighs nothing.
        V::splat(f32::NEG_INFINITY).store(&mut z[count..]);
        let weigher = Weigher::<V>::new(slice);
        let mut sums = [0; 2];
        for first in (0..count).step_by(WEIGHTS_PER_LANE * V::COUNT) {
            let mut lanes = [V::splat_int(0); 2];
            let end = count.min(first + WEIGHTS_PER_LANE * V::COUNT);
            for i in (first..end).step_by(V::COUNT) {
                let v = V::load(&z[i..]);
                let w = V::shift_right(weigher.weigh(v), shift);
                lanes[0] = V::add(lanes[0], w);
                lanes[1] = V::add(lanes[1], v.select_above(V::splat(high), w));
                V::store_int(w, &mut weights[i..]);
            }
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                *sum += V::sum(lanes);
            }
        }
        sums
    }
}

/// The index of the first token at which the running sum of the weights of logits above `threshold`, each
/// shifted right by `shift`, reaches `target`, which must be at most the sum of them all.
#[inline(always)]
pub(super) unsafe fn find<V: Lanes>(
    z: &Tokens,
    slice: SliceScale,
    shift: u32,
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
            let weights = v.select_above(bound, V::shift_right(weigher.weigh(v), shift));
            let sum = V::sum(weights);
            if before + sum >= target {
                let mut lanes = [0; 16];
                V::store_int(weights, &mut lanes);
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
