//! Tokens gathered around the end of the kept ones, and that end.

use super::place::{Limit, Measure};
use crate::definition::order::Key;

/// Tokens with their masses.
#[derive(Default)]
pub(super) struct Tokens {
    len: usize,
    // As long as they ever had to be.
    keys: Vec<Key>,
    masses: Vec<u64>,
}

/// So few tokens are sorted. To halve more of them once again takes less time than a sort's branches.
const SORT: usize = 12;

impl Tokens {
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys[..self.len]
    }

    #[inline(always)]
    pub(super) fn masses(&self) -> &[u64] {
        &self.masses[..self.len]
    }

    /// Places for `n` more tokens, to be filled from the front; [`Tokens::grow`] says how many were.
    #[inline(always)]
    pub(super) fn room(&mut self, n: usize) -> (&mut [Key], &mut [u64]) {
        let end = self.len + n;
        if self.keys.len() < end {
            self.keys.resize(end, Key::LOWEST);
            self.masses.resize(end, 0);
        }
        (
            &mut self.keys[self.len..end],
            &mut self.masses[self.len..end],
        )
    }

    #[inline(always)]
    pub(super) fn grow(&mut self, n: usize) {
        self.len += n;
    }

    /// What is above a place.
    #[inline(always)]
    pub(super) fn above(&self, place: Key) -> Measure {
        let (keys, masses) = (self.keys(), self.masses());
        let (mut tokens, mut mass) = (0, 0);
        // The compiler makes vectors of this plain loop.
        for i in 0..self.len {
            tokens += u64::from(keys[i] > place);
            mass += if keys[i] > place { masses[i] } else { 0 };
        }
        Measure {
            tokens: tokens as u32,
            mass,
        }
    }

    /// The greatest place below the shortest beginning of the order that reaches the limit together with what
    /// is `before` these tokens, whose ids are below `ids`. They must reach it.
    #[inline(always)]
    pub(super) fn end(&self, before: Measure, limit: Limit, ids: u32) -> Key {
        // The last token of that beginning is above `low` and not above `high`.
        let (mut low, mut high) = self.range();
        let (mut above_low, mut above_high) = (self.len as u32, Measure::default());
        while above_low - above_high.tokens > SORT as u32 {
            let middle = low.midpoint(high, ids);
            let above = self.above(middle);
            if limit.reached(before + above) {
                (low, above_low) = (middle, above.tokens);
            } else {
                (high, above_high) = (middle, above);
            }
        }
        let mut rest = [(Key::LOWEST, 0); SORT + 1];
        let mut n = 0;
        for i in 0..self.len {
            // Without a branch: it could not be foreseen.
            rest[n] = (self.keys[i], self.masses[i]);
            n += usize::from((rest[n].0 > low) & (rest[n].0 <= high));
        }
        rest[..n].sort_unstable_by(|a, b| b.cmp(a));
        let mut above = before + above_high;
        let last = rest[..n].iter().find(|&&(_, mass)| {
            above = above + Measure::new(1, mass);
            limit.reached(above)
        });
        last.expect("the tokens reach the limit").0.below()
    }

    /// The closest two places that all tokens lie between: above the one, and not above the other.
    #[inline(always)]
    fn range(&self) -> (Key, Key) {
        let (mut least, mut most) = (Key::HIGHEST, Key::LOWEST);
        for &key in self.keys() {
            (least, most) = (least.min(key), most.max(key));
        }
        (least.below(), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_end_is_that_of_the_sorted_tokens(
            masses in prop::collection::vec(0u64..50, 0..300),
            ties in 1usize..9,
            before in 0u32..40,
            tokens in prop_oneof![0u32..400, Just(u32::MAX)],
            mass in prop_oneof![0u64..9000, Just(u64::MAX)],
        ) {
            let limit = Limit { tokens, mass };
            let before = Measure { tokens: before, mass: u64::from(before) };
            prop_assume!(!limit.reached(before));
            let mut tokens = Tokens::default();
            for (i, &mass) in masses.iter().enumerate() {
                let logit = (i * 7919 % masses.len() / ties) as f32;
                let (keys, to) = tokens.room(1);
                (keys[0], to[0]) = (Key::new(logit, i as u32), mass);
                tokens.grow(1);
            }
            let mut sorted: Vec<_> = tokens.keys().iter().zip(tokens.masses()).collect();
            sorted.sort_by(|a, b| b.cmp(a));
            let mut above = before;
            let want = sorted.iter().find(|&&(_, &mass)| {
                above = above + Measure { tokens: 1, mass };
                limit.reached(above)
            });
            prop_assume!(want.is_some());
            let got = tokens.end(before, limit, masses.len() as u32);
            prop_assert_eq!(Some(got), want.map(|t| t.0.below()));
        }
    }
}
