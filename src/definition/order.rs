//! The total order of a row's tokens: larger logit first, then lower id.
//!
//! Logits computed in 16 bits tie constantly (a 151,936-token row holds about 12,000 distinct values), so
//! an order on values alone does not say which tokens the top k are. A [`Key`] is the pair (logit, id)
//! packed so that `u64` comparison is the order: a greater key comes first.

/// A token's place in the order, or a place between tokens (pivots need not be tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

/// The place of 0.0 (and of -0.0, which is the same logit) among the ranks.
const ZERO: u32 = 1 << 31;

/// Maps finite and infinite floats to integers in the same order. NaN has no rank.
#[inline(always)]
pub(crate) const fn rank(value: f32) -> u32 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    if value.is_sign_negative() {
        ZERO - magnitude
    } else {
        ZERO + magnitude
    }
}

/// The float with this rank; of the two zeros, the positive one.
#[inline(always)]
pub(crate) fn unrank(rank: u32) -> f32 {
    if rank < ZERO {
        f32::from_bits((ZERO - rank) | 0x8000_0000)
    } else {
        f32::from_bits(rank - ZERO)
    }
}

impl Key {
    /// Below every finite logit: nothing is excluded but −inf.
    pub(crate) const LOWEST: Self = Self::new(f32::NEG_INFINITY, 0);

    /// Above every finite logit.
    pub(crate) const HIGHEST: Self = Self::new(f32::INFINITY, u32::MAX);

    #[inline(always)]
    pub(crate) const fn new(logit: f32, id: u32) -> Self {
        Self((rank(logit) as u64) << 32 | !id as u64)
    }

    /// The greatest place below this one.
    #[inline(always)]
    pub(crate) fn below(self) -> Self {
        Self(self.0 - 1)
    }

    /// A place halfway between the two, in a row of so many ids; not below `self`, which must not be above `high`.
    #[inline(always)]
    pub(crate) fn midpoint(self, high: Self, ids: u32) -> Self {
        // Places in a row: every rank holds one for each id, and one below all.
        let places = u64::from(ids) + 1;
        let place = |key: Self| (key.0 >> 32) * places + u64::from(ids - key.id().min(ids));
        let middle = place(self) + (place(high) - place(self)) / 2;
        Self((middle / places) << 32 | u64::from(!(ids - (middle % places) as u32)))
    }

    #[inline(always)]
    pub(crate) fn logit(self) -> f32 {
        unrank((self.0 >> 32) as u32)
    }

    #[inline(always)]
    pub(crate) fn id(self) -> u32 {
        !(self.0 as u32)
    }

    /// The largest float below this key's logit, so that `z > k.previous_logit()` says `z >= k.logit()`.
    #[inline(always)]
    pub(crate) fn previous_logit(self) -> f32 {
        unrank((self.0 >> 32) as u32 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_zeros_are_one_logit() {
        assert_eq!(Key::new(0.0, 7), Key::new(-0.0, 7));
        assert!(Key::new(0.0, 6) > Key::new(-0.0, 7));
        let below = Key::new(0.0, 7).previous_logit();
        assert!(below < 0.0 && below.to_bits() == 0x8000_0001);
    }

    #[test]
    fn infinities_and_bounds() {
        assert!(Key::new(f32::INFINITY, 9) > Key::new(f32::MAX, 0));
        assert!(Key::new(f32::MIN, u32::MAX - 1) > Key::LOWEST);
        assert!(Key::new(f32::NEG_INFINITY, 1) < Key::LOWEST);
        assert_eq!(Key::LOWEST.logit(), f32::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn keys_follow_the_order(a in -1e30f32..1e30, b in -1e30f32..1e30, i in 0u32..1 << 24, j in 0u32..1 << 24) {
            let want = a.partial_cmp(&b).unwrap().then(j.cmp(&i));
            prop_assert_eq!(Key::new(a, i).cmp(&Key::new(b, j)), want);
            prop_assert_eq!(Key::new(a, i).logit(), a);
            prop_assert_eq!(Key::new(a, i).id(), i);
            prop_assert!(Key::new(a, i).previous_logit() < a);
        }

        #[test]
        fn midpoints_stay_between_and_halve(
            a in -4f32..4.0, b in -4f32..4.0, i in 0u32..1000, j in 0u32..1000, tie in any::<bool>(),
        ) {
            let b = if tie { a } else { b };
            let (a, b) = (Key::new(a, i), Key::new(b, j));
            let (mut low, high) = (a.min(b).below(), a.max(b));
            // Halving from below arrives at `high`, soon.
            for _ in 0..42 {
                let middle = low.midpoint(high, 1000);
                prop_assert!(low <= middle && middle <= high && middle.id() <= 1000);
                low = middle;
            }
            prop_assert_eq!(low, high.below());
        }
    }
}
