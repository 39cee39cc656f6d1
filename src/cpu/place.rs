//! Places in the order of tokens, and what lies above them.

use crate::definition::order::{Key, rank, unrank};
use crate::definition::weight::SLICE;

/// A place that no slice straddles: above it are the tokens with a larger logit, and those with its own
/// logit in the slices before its slice. In any one slice that is everything above a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut(u64);

/// Slices fit this many bits: a row has at most 2²⁴ tokens.
const SLICE_BITS: u32 = 16;
const LAST_SLICE: u64 = (1 << SLICE_BITS) - 1;

impl Cut {
    /// Nothing is excluded but −inf.
    pub(super) const LOWEST: Self = Self::new(f32::NEG_INFINITY, 0);

    /// Above every finite logit.
    pub(super) const HIGHEST: Self = Self::new(f32::INFINITY, 0);

    #[inline(always)]
    const fn new(logit: f32, slice: u64) -> Self {
        Self((rank(logit) as u64) << SLICE_BITS | (LAST_SLICE - slice))
    }

    /// Above it is every token with this logit or more.
    #[inline(always)]
    pub(super) fn below_logit(logit: f32) -> Self {
        Self::new(logit, LAST_SLICE)
    }

    /// Above it is every token with more than this logit.
    #[inline(always)]
    pub(super) fn above_logit(logit: f32) -> Self {
        Self::new(logit, 0)
    }

    /// Above it are the tokens of the slices up to this one with this logit, and those with more.
    #[inline(always)]
    pub(super) fn below(logit: f32, slice: usize) -> Self {
        Self::new(logit, slice as u64 + 1)
    }

    #[inline(always)]
    pub(super) fn logit(self) -> f32 {
        unrank((self.0 >> SLICE_BITS) as u32)
    }

    #[inline(always)]
    fn slice(self) -> usize {
        (LAST_SLICE - (self.0 & LAST_SLICE)) as usize
    }

    #[inline(always)]
    pub(super) fn thresholds(self) -> Thresholds {
        let rank = (self.0 >> SLICE_BITS) as u32;
        Thresholds {
            slice: self.slice(),
            before: unrank(rank - 1),
            from: unrank(rank),
        }
    }

    /// The same place in the order of tokens.
    #[inline(always)]
    pub(super) fn key(self) -> Key {
        Key::new(self.logit(), (self.slice() * SLICE) as u32)
    }

    #[inline(always)]
    pub(super) fn below_by_more_than_one(self, high: Self) -> bool {
        high.0 - self.0 > 1
    }

    /// A place halfway between the two, as places go: there are as many from 1 to 2 as from 2 to 4.
    #[inline(always)]
    pub(super) fn midpoint(self, high: Self) -> Self {
        Self(self.0 + (high.0 - self.0) / 2)
    }

    /// A place between the two, which are more than one apart: halfway as logits go, if these are `near`; as slices go, of
    /// which there are `slices`, if logits are equal; otherwise as places go.
    #[inline(always)]
    pub(super) fn between(self, high: Self, near: f32, slices: usize) -> Self {
        let (z, distance) = (self.logit(), high.logit() - self.logit());
        let place = if distance == 0.0 {
            Self::new(z, ((self.slice().min(slices) + high.slice()) / 2) as u64)
        } else if distance < near {
            Self::above_logit(z + distance / 2.0)
        } else {
            self
        };
        if self < place && place < high {
            place
        } else {
            self.midpoint(high)
        }
    }
}

/// What the tokens above a place exceed.
#[derive(Clone, Copy)]
pub(super) struct Thresholds {
    pub(super) slice: usize,
    /// In the slices before that one.
    pub(super) before: f32,
    /// In that one, and from there on.
    pub(super) from: f32,
}

impl Thresholds {
    #[inline(always)]
    pub(super) fn of(self, slice: usize) -> f32 {
        if slice < self.slice {
            self.before
        } else {
            self.from
        }
    }
}

/// What a part of a row holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measure {
    pub(super) tokens: u32,
    pub(super) mass: u64,
}

impl Measure {
    #[inline(always)]
    pub(super) fn new(tokens: usize, mass: u64) -> Self {
        let tokens = tokens as u32;
        Self { tokens, mass }
    }
}

impl std::ops::Add for Measure {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            mass: self.mass + other.mass,
        }
    }
}

/// Top-k and top-p as one rule: kept is the shortest beginning of the order that holds this many tokens
/// or this much mass. `MAX` is no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) tokens: u32,
    pub(super) mass: u64,
}

impl Limit {
    #[inline(always)]
    pub(super) fn exists(self) -> bool {
        self.tokens < u32::MAX || self.mass < u64::MAX
    }

    #[inline(always)]
    pub(super) fn reached(self, above: Measure) -> bool {
        above.tokens >= self.tokens || above.mass >= self.mass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cuts_agree_with_their_thresholds(
            logit in prop_oneof![Just(0.0f32), Just(-0.0), -4f32..4.0],
            slice in 0usize..9,
            z in prop_oneof![Just(0.0f32), Just(-0.0), -4f32..4.0],
            same in any::<bool>(),
        ) {
            let z = if same { logit } else { z };
            let cut = Cut::below(logit, slice);
            for j in 0..10 {
                let above = z > logit || z == logit && j <= slice;
                prop_assert_eq!(z > cut.thresholds().of(j), above);
                prop_assert_eq!(Key::new(z, (j * SLICE + 3) as u32) > cut.key(), above);
                prop_assert_eq!(z > Cut::below_logit(logit).thresholds().of(j), z >= logit);
                prop_assert_eq!(z > Cut::above_logit(logit).thresholds().of(j), z > logit);
            }
            prop_assert_eq!(cut.logit(), logit);
        }
    }
}
