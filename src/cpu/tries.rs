//! Tokens drawn from the whole row, in the hope that one is kept: then the end of the kept ones need not be found. Whether
//! one is kept takes one sum over the tokens above it, of slices that reach so high.

use super::arch::Lanes;
use super::place::{Cut, Limit, Measure};
use super::search::{Search, slice_of};
use super::slice::{Logit, above};
use crate::definition::TRIES;
use crate::definition::order::Key;
use crate::definition::weight::SLICE;

impl<V: Lanes, T: Logit> Search<'_, V, T> {
    /// The first of the tokens drawn with these random numbers that is above `low`, and above which the limit is not reached.
    /// If there is none, a place to [`Search::keep`] from instead of `low`.
    ///
    /// # Safety
    ///
    /// The CPU must have the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn draw_tries(
        &mut self,
        limit: Limit,
        low: Cut,
        random: impl Fn(u32) -> u64,
    ) -> Result<u32, Cut> {
        let mut refused = low.key();
        let mut from = low;
        for round in 0..TRIES {
            // SAFETY: the caller vouches for V's instructions.
            let id = unsafe { self.draw_from_all(random(round)) };
            let mut logit = [0.0];
            T::widen(&self.row[id as usize..][..1], &mut logit);
            let drawn = Key::new(logit[0], id);
            if drawn <= refused {
                continue;
            }
            // SAFETY: as above.
            if !unsafe { self.reached_above(drawn, limit) } {
                return Ok(id);
            }
            refused = drawn;
            from = Cut::below(logit[0], id as usize / SLICE);
        }
        Err(from)
    }

    /// Whether the tokens before this one reach the limit.
    #[inline(always)]
    unsafe fn reached_above(&mut self, drawn: Key, limit: Limit) -> bool {
        let (id, logit, tied) = (drawn.id() as usize, drawn.logit(), drawn.previous_logit());
        let mut sum = Measure::default();
        for j in 0..self.ws.largest.len() {
            let (first, most) = (j * SLICE, self.ws.largest[j]);
            // Tokens that tie with it come before it if their ids are lower.
            let ties = id.clamp(first, first + SLICE) - first;
            let threshold = if ties == 0 { logit } else { tied };
            if most <= threshold {
                continue;
            }
            let mut z = T::slice(slice_of(self.row, j), &mut self.buffer);
            let mut less;
            if 0 < ties && ties < SLICE {
                less = *z;
                for z in &mut less[ties..] {
                    *z = if *z == logit { f32::NEG_INFINITY } else { *z };
                }
                z = &less;
            }
            let slice = self.scale.slice(most).unwrap_or(self.unit);
            let (right, left) = slice.shifts(self.unit);
            // SAFETY: the caller vouches for V's instructions.
            let (tokens, mass) = unsafe { above::<V>(z, slice, right, threshold) };
            sum = sum + Measure::new(tokens, mass << left);
            if limit.reached(sum) {
                return true;
            }
        }
        false
    }
}
