//! Guessing where the kept tokens end, from a sample of the row.
//!
//! A guess decides nothing but how soon the search ends. The sample is the beginning of every slice, a thirty-second of
//! the row. How much of it is above a place says how much of the row is, give or take a deviation that it tells as well.

use super::arch::Lanes;
use super::place::{Cut, Limit};
use super::search::Search;
use super::slice::{Logit, weigh_all};
use crate::definition::weight::{HEADROOM, SLICE};

/// Tokens sampled of a slice: a cache line of f32.
const LINE: usize = 16;

/// Larger rows are sampled in every second slice, or third, and so on.
const LINES: usize = 1024;

#[derive(Default)]
pub(super) struct Sample {
    logits: Vec<f32>,
    weights: Vec<f32>,
    /// Slices per line.
    stride: usize,
}

/// What of the sample is not above a place.
#[derive(Clone, Copy)]
struct Below {
    tokens: u32,
    mass: f32,
}

impl Sample {
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.logits.clear();
    }

    #[inline(always)]
    unsafe fn below<V: Lanes>(&self, place: Cut) -> Below {
        let thresholds = place.thresholds();
        let (logits, weights) = (&self.logits[..], &self.weights[..self.logits.len()]);
        let ties = (thresholds.slice.div_ceil(self.stride) * LINE).min(logits.len());
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let one = V::splat(1.0);
            let mut tokens = 0;
            // Two sums, because each addition waits four cycles for the one before.
            let mut mass = [V::splat(0.0); 2];
            let mut threshold = V::splat(thresholds.before.next_up());
            for first in (0..logits.len()).step_by(2 * V::COUNT) {
                for (i, mass) in mass.iter_mut().enumerate() {
                    let at = first + i * V::COUNT;
                    if at == ties {
                        threshold = V::splat(thresholds.from.next_up());
                    }
                    let (z, w) = (V::load(&logits[at..]), V::load(&weights[at..]));
                    tokens += threshold.above(z).count_ones();
                    let w = V::from_bits(threshold.select_above(z, w.bits()));
                    *mass = w.mul_add(one, *mass);
                }
            }
            Below {
                tokens,
                mass: mass[0].mul_add(one, mass[1]).rough_sum(),
            }
        }
    }
}

impl<V: Lanes, T: Logit> Search<'_, V, T> {
    #[inline(always)]
    unsafe fn take_sample(&mut self) {
        let sample = &mut self.ws.sample;
        if !sample.logits.is_empty() {
            return;
        }
        let slices = self.ws.largest.len();
        sample.stride = slices.div_ceil(LINES);
        // An even number of lines.
        let lines = slices.div_ceil(sample.stride).next_multiple_of(2);
        sample.logits.resize(lines * LINE, f32::NEG_INFINITY);
        let slices = self.row.chunks(SLICE).step_by(sample.stride);
        for (line, slice) in sample.logits.chunks_exact_mut(LINE).zip(slices) {
            let n = slice.len().min(LINE);
            T::widen(&slice[..n], &mut line[..n]);
            line[n..].fill(f32::NEG_INFINITY);
        }
        sample.weights.resize(sample.logits.len(), 0.0);
        // SAFETY: the caller vouches for V's instructions.
        unsafe { weigh_all::<V>(&sample.logits, self.unit, &mut sample.weights) }
    }

    /// Two places that the end of the kept tokens lies between, unless it is more than so many deviations off; and about
    /// how many tokens are above the lower one.
    #[inline(always)]
    pub(super) unsafe fn guess(&mut self, limit: Limit, deviations: f32) -> (Cut, Cut, f32) {
        // Weights matter within some forty binary orders.
        let near = 64.0 * self.scale.inverse;
        let slices = self.ws.largest.len();
        let high = self.high.min(Cut::above_logit(self.top.logit()));
        let (known, above_known) = self.known;
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            self.take_sample();
            let sample = &self.ws.sample;
            let share = (SLICE / LINE * sample.stride) as f32;
            let k = limit.tokens as f32 / share;
            // The mass below the end is that of many light tokens, and better known than the mass above. It is negative where
            // top-k or min-p ends what is kept before the mass does.
            let below = match limit.mass {
                u64::MAX => f32::NEG_INFINITY,
                mass => {
                    let below = above_known.mass as i64 - mass as i64;
                    below as f32 / (1 << HEADROOM) as f32 / share
                }
            };
            let all = sample.logits.len() as u32;
            let known = sample.below::<V>(known);
            let reached = |place: Cut, at: Below, deviations: f32| {
                let above = (all - at.tokens) as f32;
                let mass = (at.mass - known.mass).max(0.0);
                // The sum of the squared weights, roughly: they vary from the place's own to nothing.
                let most = self.unit.unrounded(place.logit());
                let squares = mass * most / 4.0;
                above - deviations * (above * (1.0 - above / all as f32) + 1.0).sqrt() >= k
                    || mass + deviations * squares.sqrt() <= below
            };
            let mut middle = Cut::above_logit(high.logit() - near / 4.0);
            // For each of the two, the places close in until hardly a token of the sample is between them.
            let mut pivots = [(self.low, 0), (high, 0)];
            for (i, deviations) in [deviations, -deviations].into_iter().enumerate() {
                let (mut low, mut high) = ((pivots[0].0, 0), (high, all));
                while high.1 - low.1 > 8 && low.0.below_by_more_than_one(high.0) {
                    if middle <= low.0 || middle >= high.0 {
                        middle = low.0.between(high.0, near, slices);
                    }
                    let at = sample.below::<V>(middle);
                    if reached(middle, at, deviations) {
                        low = (middle, at.tokens);
                    } else {
                        high = (middle, at.tokens);
                    }
                }
                pivots[i] = [low, high][i];
                middle = Cut::above_logit(low.0.logit() + self.scale.inverse / 2.0);
            }
            let [lower, upper] = pivots;
            let above = (all - lower.1) as f32 * share;
            (lower.0, upper.0.max(lower.0), above)
        }
    }
}
