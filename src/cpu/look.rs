//! A look at the row: what is above two places in the order, and which tokens are between them.

use super::arch::Lanes;
use super::place::{Cut, Measure};
use super::search::{Search, slice_of};
use super::slice::{Bits, GROUP, Logit, ROOM, Tokens, fetch_ahead, pick, weigh, which};
use crate::definition::order::Key;
use crate::definition::weight::SLICE;

/// Two places to look from.
pub(super) struct Pivots {
    pub(super) lower: Cut,
    pub(super) upper: Cut,
    /// Whether few tokens of a slice are expected above the lower place.
    pub(super) few: bool,
    /// More tokens between the two are not gathered: then there are better places to look from.
    pub(super) most: usize,
}

/// What is picked from a slice: the logits above the lower place, and some of them listed.
pub(super) struct Picked {
    logits: [f32; ROOM],
    weights: [u32; ROOM],
    /// Where in the slice the listed ones are.
    places: [u16; ROOM],
}

impl Default for Picked {
    fn default() -> Self {
        Self {
            logits: [0.0; ROOM],
            weights: [0; ROOM],
            places: [0; ROOM],
        }
    }
}

/// How many tokens of a slice are above the two places, and are listed; and which are above the lower one.
struct Counts {
    lower: usize,
    upper: usize,
    listed: usize,
    above_lower: Bits,
}

impl Picked {
    /// Puts together what counts, often a small part, before it is weighed, and lists at least what is not above `high`.
    #[inline(always)]
    unsafe fn pick<V: Lanes>(&mut self, z: &Tokens, (low, high): (f32, f32), few: bool) -> Counts {
        let (logits, places) = (&mut self.logits, &mut self.places);
        if few {
            // SAFETY: the caller vouches for V's instructions.
            let (above_lower, lower) = unsafe { which::<V>(z, low, places) };
            let mut upper = 0;
            for i in 0..lower {
                logits[i] = z[usize::from(places[i]) % SLICE];
                upper += usize::from(logits[i] > high);
            }
            Counts {
                lower,
                upper,
                listed: lower,
                above_lower,
            }
        } else {
            // SAFETY: as above.
            let (above_lower, lower, listed) = unsafe { pick::<V>(z, (low, high), logits, places) };
            Counts {
                lower,
                upper: lower - listed,
                listed,
                above_lower,
            }
        }
    }
}

/// What a look finds.
pub(super) struct Found {
    pub(super) above_lower: Measure,
    pub(super) above_upper: Measure,
    /// Whether the tokens between the two are in the workspace: not, if they are too many.
    pub(super) gathered: bool,
}

impl<V: Lanes, T: Logit> Search<'_, V, T> {
    /// Looks from the two places. Each slice's mass above the upper one is left in the workspace.
    #[inline(always)]
    pub(super) unsafe fn look(&mut self, pivots: &Pivots) -> Found {
        let ws = &mut *self.ws;
        let picked = &mut ws.picked;
        ws.tokens.clear();
        ws.ends.clear();
        ws.kept.clear();
        let (lows, highs) = (pivots.lower.thresholds(), pivots.upper.thresholds());
        let (mut above_lower, mut above_upper) = (Measure::default(), Measure::default());
        for j in 0..ws.largest.len() {
            let (most, low, high) = (ws.largest[j], lows.of(j), highs.of(j));
            if most <= low {
                ws.kept.push(0);
                ws.ends.push(ws.tokens.len());
                continue;
            }
            let tokens = slice_of(self.row, j);
            let z = T::slice(tokens, &mut self.buffer);
            // A slice out of range is so far below the first token that nothing in it weighs anything.
            let slice = self.scale.slice(most).unwrap_or(self.unit);
            let (right, left) = slice.shifts(self.unit);

            // SAFETY: the caller vouches for V's instructions.
            let (counts, sums) = unsafe {
                fetch_ahead::<V, T>(tokens);
                let counts = picked.pick::<V>(z, (low, high), pivots.few);
                let Picked {
                    logits, weights, ..
                } = &mut *picked;
                let sums = weigh::<V>(logits, counts.lower, slice, right, high, weights);
                (counts, sums)
            };
            let [mass_lower, mass_upper] = sums.map(|sum| sum << left);
            above_lower = above_lower + Measure::new(counts.lower, mass_lower);
            above_upper = above_upper + Measure::new(counts.upper, mass_upper);

            if ws.tokens.len() <= pivots.most {
                // The listed tokens' places among the picked ones: how many are before each word of bits, and in it.
                let bits = &counts.above_lower;
                let mut before = [0; SLICE / GROUP];
                for g in 1..SLICE / GROUP {
                    before[g] = before[g - 1] + bits[g - 1].count_ones() as usize;
                }
                let (keys, masses) = ws.tokens.room(counts.listed + 1);
                let mut between = 0;
                for i in 0..counts.listed {
                    let place = usize::from(picked.places[i]) % SLICE;
                    let (g, lower_bits) = (place / GROUP, (1 << (place % GROUP)) - 1);
                    let nth = before[g] + (bits[g] & lower_bits).count_ones() as usize;
                    keys[between] = Key::new(z[place], (j * SLICE + place) as u32);
                    masses[between] = u64::from(picked.weights[nth]) << left;
                    // A token above both is overwritten: a branch could not be foreseen.
                    between += usize::from(z[place] <= high);
                }
                ws.tokens.grow(between);
            }
            ws.kept.push(mass_upper);
            ws.ends.push(ws.tokens.len());
        }
        Found {
            above_lower,
            above_upper,
            gathered: ws.tokens.len() <= pivots.most,
        }
    }
}
