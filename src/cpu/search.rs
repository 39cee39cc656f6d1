//! Where the kept tokens end, and the draw from them.
//!
//! The search closes in between two places in the order. A look at the row takes two pivots between them, adds up what is
//! above the upper one and gathers the tokens from there down to the lower one; it reads only the slices whose largest
//! logit is above that. If the kept tokens end among the gathered ones, as they almost always do, these tell where.
//! (The two pivots are those of Ye et al., "Sorting-Free GPU Kernels for LLM Sampling", 2025; there, what they leave
//! open is settled by drawing again, as in [`super::tries`].)

use super::arch::Lanes;
use super::look::{Found, Pivots};
use super::place::{Cut, Limit, Measure};
use super::row::Workspace;
use super::slice::{Logit, Tokens, find, mass};
use crate::definition::order::Key;
use crate::definition::scale_random;
use crate::definition::weight::{SLICE, Scale, SliceScale};
use std::marker::PhantomData;

/// Among so few tokens no closer places are sought.
const FEW: u32 = 1024;

/// More tokens than that are not gathered.
const MOST: usize = 1 << 14;

/// A row after the first pass.
pub(super) struct Search<'a, V, T> {
    pub(super) row: &'a [T],
    pub(super) scale: Scale,
    /// The slice that sets the row's unit.
    pub(super) unit: SliceScale,
    /// The first token in the order.
    pub(super) top: Key,
    pub(super) ws: &'a mut Workspace,
    /// The limit is reached above this place, or nothing below it may be kept.
    pub(super) low: Cut,
    /// The limit is not reached above this place.
    pub(super) high: Cut,
    /// A place, at most `low`, and what is above it.
    pub(super) known: (Cut, Measure),
    /// The last look's upper pivot, and what is above it.
    upper: (Cut, Measure),
    /// The greatest place below the kept tokens.
    end: Key,
    pub(super) buffer: Tokens,
    vector: PhantomData<V>,
}

#[inline(always)]
pub(super) fn slice_of<T>(row: &[T], j: usize) -> &[T] {
    &row[j * SLICE..row.len().min((j + 1) * SLICE)]
}

impl<'a, V: Lanes, T: Logit> Search<'a, V, T> {
    #[inline(always)]
    pub(super) fn new(row: &'a [T], scale: Scale, top: Key, ws: &'a mut Workspace) -> Self {
        let unit = scale.slice(top.logit());
        let everything = Measure::new(row.len(), 0);
        ws.sample.clear();
        Self {
            row,
            scale,
            unit: unit.expect("the largest logit has mass"),
            top,
            ws,
            low: Cut::LOWEST,
            high: Cut::HIGHEST,
            known: (Cut::LOWEST, everything),
            upper: (Cut::HIGHEST, Measure::default()),
            end: Key::LOWEST,
            buffer: [0.0; SLICE],
            vector: PhantomData,
        }
    }

    /// Turns the first pass's sums into shares of the row's mass, which is returned.
    #[inline(always)]
    pub(super) unsafe fn adopt_sums(&mut self) -> u64 {
        let mut whole = 0;
        for (j, (sum, &most)) in self.ws.sums.iter_mut().zip(&self.ws.largest).enumerate() {
            let share = self.scale.slice(most).map_or(0, |slice| {
                if self.scale.base != 0.0 {
                    let z = T::slice(slice_of(self.row, j), &mut self.buffer);
                    // SAFETY: the caller vouches for V's instructions.
                    *sum = unsafe { mass::<V>(z, slice) };
                }
                slice.to_row_units(*sum, self.unit)
            });
            *sum = share;
            whole += share;
        }
        self.known.1.mass = whole;
        whole
    }

    /// A token's mass.
    #[inline(always)]
    pub(super) fn mass_of(&self, token: Key) -> u64 {
        let most = self.ws.largest[token.id() as usize / SLICE];
        self.scale.slice(most).map_or(0, |slice| {
            slice.to_row_units(u64::from(slice.weight(token.logit())), self.unit)
        })
    }

    /// The mass of the tokens that the search kept.
    #[inline(always)]
    pub(super) fn kept_mass(&self) -> u64 {
        self.upper.1.mass + self.ws.tokens.above(self.end).mass
    }

    /// Keeps the shortest beginning of the order that reaches the limit, of what is above `low`.
    #[inline(always)]
    pub(super) unsafe fn keep(&mut self, limit: Limit, low: Cut) {
        (self.low, self.high) = (low, Cut::HIGHEST);
        let mut tokens_above_high = 0;
        let mut attempt = 0;
        loop {
            let between = self.known.1.tokens - tokens_above_high;
            // SAFETY: the caller vouches for V's instructions.
            let (pivots, found) = unsafe {
                let pivots = self.pivots(limit, between, &mut attempt);
                let found = self.look(&pivots);
                (pivots, found)
            };
            let Pivots { lower, upper, .. } = pivots;
            let Found {
                above_lower,
                above_upper,
                gathered,
            } = found;
            self.upper = (upper, above_upper);
            if limit.reached(above_upper) {
                self.low = upper;
                self.known = self.upper;
            } else if limit.reached(above_lower) && gathered {
                return self.settle(limit, self.low);
            } else if limit.reached(above_lower) {
                (self.low, self.high) = (lower, upper);
                self.known = (lower, above_lower);
                tokens_above_high = above_upper.tokens;
            } else if lower == self.low && gathered {
                // All is kept that may be.
                self.end = lower.key();
                return;
            } else {
                self.high = lower;
                tokens_above_high = above_lower.tokens;
            }
        }
    }

    /// Keeps less: what reaches another limit, and is above `low`. If the tokens at hand do not tell, returns the place
    /// to [`Search::keep`] from instead.
    #[inline(always)]
    pub(super) fn keep_less(&mut self, limit: Limit, low: Cut) -> Option<Cut> {
        let (upper, above_upper) = self.upper;
        if low <= upper && !limit.reached(above_upper) {
            self.settle(limit, low);
            return None;
        }
        self.known = self.upper;
        Some(low.max(upper))
    }

    /// The next places to look from; about so many tokens are `between` the ends of the search.
    #[inline(always)]
    unsafe fn pivots(&mut self, limit: Limit, between: u32, attempt: &mut u32) -> Pivots {
        let (low, high) = (self.low, self.high);
        let pivots = |lower: Cut, upper: Cut| Pivots {
            lower,
            upper,
            few: false,
            most: MOST,
        };
        if !limit.exists() {
            return pivots(low, low);
        }
        if between <= FEW || !low.below_by_more_than_one(high) {
            return pivots(low, high);
        }
        while *attempt < 2 {
            *attempt += 1;
            if let Some(place) = self.below_peak(*attempt == 1, limit) {
                return Pivots {
                    few: true,
                    most: FEW as usize,
                    ..pivots(place.clamp(low, high), high)
                };
            }
        }
        *attempt += 1;
        if *attempt > 4 {
            let middle = low.midpoint(high);
            return pivots(middle, middle);
        }
        let deviations = if *attempt == 3 { 1.7 } else { 6.0 };
        // SAFETY: the caller vouches for V's instructions.
        let (lower, upper, above) = unsafe { self.guess(limit, deviations) };
        Pivots {
            few: above <= 8.0 * self.ws.largest.len() as f32,
            ..pivots(lower, upper)
        }
    }

    /// A place with few tokens above it, which may well reach the limit. If that is of `k` tokens, and slices are many more,
    /// the place is just below the `k`-th of the slices' first tokens, and they do. If it is of mass, it is just below the
    /// 8th of the slices' first tokens, the second time the 64th, unless those slices hold less mass.
    #[inline(always)]
    fn below_peak(&mut self, first_time: bool, limit: Limit) -> Option<Cut> {
        let ws = &mut *self.ws;
        let k = limit.tokens as usize;
        let by_tokens = first_time && k <= ws.largest.len() / 4;
        let by_mass = limit.mass < u64::MAX;
        let n = match first_time {
            true if by_tokens => k,
            true => 8,
            false => 64,
        };
        if n > ws.largest.len() || !by_tokens && !by_mass {
            return None;
        }
        let maxima = (0..).zip(&ws.largest);
        ws.peaks.clear();
        ws.peaks.extend(maxima.map(|(j, &most)| Key::new(most, j)));
        let (before, nth, _) = ws.peaks.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        if nth.logit() == f32::NEG_INFINITY {
            return None;
        }
        if !by_tokens && !ws.sums.is_empty() {
            let slices = before.iter().chain([&*nth]).map(|peak| peak.id() as usize);
            if slices.map(|j| ws.sums[j]).sum::<u64>() < limit.mass {
                return None;
            }
        }
        Some(Cut::below(nth.logit(), nth.id() as usize))
    }

    /// Keeps, of the gathered tokens, what reaches the limit and is above `low`.
    #[inline(always)]
    fn settle(&mut self, limit: Limit, low: Cut) {
        let ids = self.row.len() as u32;
        let end = self.ws.tokens.end(self.upper.1, limit, ids);
        self.end = end.max(low.key());
    }

    /// Inverse CDF over the kept tokens, ids ascending.
    #[inline(always)]
    pub(super) unsafe fn draw_from_kept(&mut self, random: u64) -> u32 {
        let mut rest = scale_random(random, self.kept_mass());
        let (mut j, mut first) = (0, 0);
        loop {
            let tokens = first..self.ws.ends[j];
            first = tokens.end;
            let mut mass = self.ws.kept[j];
            for i in tokens {
                // Without a branch: it could not be foreseen.
                let kept = u64::from(self.ws.tokens.keys()[i] > self.end);
                mass += self.ws.tokens.masses()[i] & kept.wrapping_neg();
            }
            if rest < mass {
                break;
            }
            rest -= mass;
            j += 1;
        }
        let slice = self.scale.slice(self.ws.largest[j]).expect("it has mass");
        let (right, left) = slice.shifts(self.unit);

        let (first, logit) = (j * SLICE, self.end.logit());
        let mut z = *T::slice(slice_of(self.row, j), &mut self.buffer);
        // Of the tokens that tie with the end, those with lower ids are kept.
        let kept_ties = (self.end.id() as usize).clamp(first, first + SLICE) - first;
        let threshold = if kept_ties == 0 {
            logit
        } else {
            for z in &mut z[kept_ties..] {
                *z = if *z == logit { f32::NEG_INFINITY } else { *z };
            }
            self.end.previous_logit()
        };
        // SAFETY: the caller vouches for V's instructions.
        let i = unsafe { find::<V>(&z, slice, right, threshold, (rest >> left) + 1) };
        (first + i) as u32
    }

    /// Inverse CDF over the whole row: the slices by their shares, then one slice's tokens.
    #[inline(always)]
    pub(super) unsafe fn draw_from_all(&mut self, random: u64) -> u32 {
        // Nothing has been looked for yet: what is known is the whole row.
        let mut rest = scale_random(random, self.known.1.mass);
        let mut j = 0;
        while rest >= self.ws.sums[j] {
            rest -= self.ws.sums[j];
            j += 1;
        }
        let slice = self.scale.slice(self.ws.largest[j]).expect("it has mass");
        let z = T::slice(slice_of(self.row, j), &mut self.buffer);
        let target = slice.first_above(rest, self.unit);
        // SAFETY: the caller vouches for V's instructions.
        let i = unsafe { find::<V>(z, slice, 0, f32::NEG_INFINITY, target) };
        (j * SLICE + i) as u32
    }
}
