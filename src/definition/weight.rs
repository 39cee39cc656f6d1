//! A logit's probability mass as an integer.
//!
//! The weight of a logit `z` is `2^y`, `y = (z − base)·log2(e)/T`. It is split as `2^n · 2^f` with
//! `n` the integer next to `y` and `|f| ≤ 1/2`; because `f` comes from one fused multiply-add, it is as accurate for a
//! logit of 500,000 as for one of 5. `2^f` is a polynomial of degree 5, relative error below 2⁻²².
//!
//! A row is cut into slices of [`SLICE`] tokens. Inside a slice a weight is an integer in units of
//! `2^(n_max − 27)`, where `n_max` belongs to the slice's largest logit: sums need no rounding, hence no
//! order, and a row can be summed while it is read for the first time. Slices, or single tokens of
//! different slices, are then brought to units of `2^(n_row − 38)`, by shifting.
//!
//! What is lost: a weight is rounded to the nearest unit of its slice, so a token 28 binary orders
//! (19.4 nats) below the largest of its own 512 neighbours weighs nothing; and where a single token's weight
//! counts in the row's unit, it is rounded down to that. `docs/definition.md` adds up what this costs.

/// Tokens per slice. Part of the definition: it does not follow the batch, the launch or the backend.
pub(crate) const SLICE: usize = 512;

/// A slice's largest weight lies in `2^27 · [0.7, 1.42)`: 16 of them fit a 32-bit lane.
const FRACTION: u32 = 27;

/// Bits that the row's unit has below the unit of the slice with the largest logit.
/// 2²⁴ tokens of 2^27.5 each then stay below 2⁶³.
pub(crate) const HEADROOM: u32 = 11;

/// Adding 1.5·2²³ rounds a float of magnitude below 2²² to an integer that sits in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Coefficients of 2^f on [−1/2, 1/2], minimax in relative error, for Horner's scheme in fused steps.
pub(crate) const EXP2: [f32; 6] = [
    1.0,
    f32::from_bits(0x3f31_7215),
    f32::from_bits(0x3e75_fce1),
    f32::from_bits(0x3d63_5b6c),
    f32::from_bits(0x3c1e_7456),
    f32::from_bits(0x3aad_ed1f),
];

/// Scaled logits at or beyond ±2²⁰ are measured from the row's maximum instead of from zero.
const MAX_SCALED: f32 = (1 << 20) as f32;

/// Logits this many binary orders below the slice's largest are clamped: they weigh nothing, and the
/// clamp keeps −inf and huge negative masks away from the arithmetic.
const NEGLIGIBLE: f32 = 40.0;

/// How one row's logits are scaled: `y = (z − base) · scale`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// 0, or the row's largest logit where zero is too far away (see [`Scale::measured_from`]).
    pub(crate) base: f32,
    /// log2(e) / T
    pub(crate) scale: f32,
    /// T · ln(2)
    pub(crate) inverse: f32,
}

impl Scale {
    /// `base` is not known before the row has been read, so slices are summed with base 0 at first;
    /// rows that are out of range are summed again with what this returns.
    #[inline(always)]
    pub(crate) fn measured_from(self, row_max: f32) -> Self {
        let in_range = (row_max * self.scale).abs() < MAX_SCALED;
        Self {
            base: if in_range { 0.0 } else { row_max },
            ..self
        }
    }

    /// The constants of a slice whose largest logit is `max`; `None` if none of its tokens has mass
    /// (or if `base` is still 0 and must not be: then the sum is not used).
    #[inline(always)]
    pub(crate) fn slice(self, max: f32) -> Option<SliceScale> {
        self.slice_down_to(max, NEGLIGIBLE)
    }

    /// [`Scale::slice`], clamping logits that are `orders` binary orders below `max` (at most 150, lest
    /// exponents leave the range of normal floats).
    #[inline(always)]
    pub(crate) fn slice_down_to(self, max: f32, orders: f32) -> Option<SliceScale> {
        let max = max - self.base;
        // False for infinities and NaN too.
        if (max * self.scale).abs() < 2.0 * MAX_SCALED {
            let rounded = max.mul_add(self.scale, MAGIC);
            let exponent = rounded - MAGIC;
            Some(SliceScale {
                base: self.base,
                scale: self.scale,
                floor: (exponent - orders) * self.inverse,
                magic: MAGIC + FRACTION as f32 - exponent,
            })
        } else {
            None
        }
    }
}

/// What [`weight`] needs to know of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceScale {
    pub(crate) base: f32,
    pub(crate) scale: f32,
    /// Logits (less `base`) are raised to this one.
    pub(crate) floor: f32,
    /// `MAGIC + 27 − n_max`: added to `y`, it rounds, and leaves the exponent of the weight in the low bits.
    pub(crate) magic: f32,
}

impl SliceScale {
    /// How many binary orders this slice's unit is below that of the slice with the row's largest logit.
    #[inline(always)]
    fn orders_below(self, row: SliceScale) -> u32 {
        self.magic.to_bits() - row.magic.to_bits()
    }

    /// How many bits one of this slice's weights loses (right) or gains (left) in units of the row, whose
    /// largest logit's slice is `row`: one of the two is 0.
    #[inline(always)]
    pub(crate) fn shifts(self, row: SliceScale) -> (u32, u32) {
        let down = self.orders_below(row);
        (
            // A weight has 28 bits.
            down.saturating_sub(HEADROOM).min(31),
            HEADROOM.saturating_sub(down),
        )
    }

    /// A weight, or a sum of weights, of this slice in units of the row, whose largest logit's slice is `row`.
    #[inline(always)]
    pub(crate) fn to_row_units(self, mass: u64, row: SliceScale) -> u64 {
        let down = self.orders_below(row);
        if down <= HEADROOM {
            mass << (HEADROOM - down)
        } else {
            mass.checked_shr(down - HEADROOM).unwrap_or(0)
        }
    }

    /// The smallest mass of this slice that exceeds `mass` (less than the slice holds) in row units.
    #[inline(always)]
    pub(crate) fn first_above(self, mass: u64, row: SliceScale) -> u64 {
        let down = self.orders_below(row);
        if down <= HEADROOM {
            (mass >> (HEADROOM - down)) + 1
        } else {
            (mass + 1) << (down - HEADROOM)
        }
    }

    /// One weight relative to this slice's unit, as a float: what the softmax divides.
    #[inline(always)]
    pub(crate) fn unrounded(self, logit: f32) -> f32 {
        let z = (logit - self.base).max(self.floor);
        let rounded = z.mul_add(self.scale, self.magic);
        let f = z.mul_add(self.scale, self.magic - rounded);
        let mut p = EXP2[5];
        for c in EXP2[..5].iter().rev() {
            p = p.mul_add(f, *c);
        }
        f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23))
    }

    /// Whether the logit is below the clamp: its weight is then nothing, not [`SliceScale::unrounded`].
    #[inline(always)]
    pub(crate) fn clamps(self, logit: f32) -> bool {
        logit - self.base < self.floor
    }

    /// One weight in slice units. `logit` must not be NaN nor above the slice's largest.
    #[inline(always)]
    pub(crate) fn weight(self, logit: f32) -> u32 {
        self.unrounded(logit).round_ties_even() as u32
    }
}

/// The mass of a whole row in the row's unit, as the float that turns weights into probabilities:
/// `1 / mass`, for weights measured in the unit of the slice with the row's largest logit.
#[inline(always)]
pub(crate) fn reciprocal(mass: u64) -> f32 {
    (f64::from(1u32 << HEADROOM) / mass as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(temperature: f64) -> Scale {
        Scale {
            base: 0.0,
            scale: (std::f64::consts::LOG2_E / temperature) as f32,
            inverse: (temperature * std::f64::consts::LN_2) as f32,
        }
    }

    /// Every float in [−1/2, 1/2] of one part in 61, and the ends.
    #[test]
    fn exp2_is_within_its_bound() {
        let unit = Scale {
            base: 0.0,
            scale: 1.0,
            inverse: 1.0,
        }
        .slice(0.0)
        .unwrap();
        let mut worst = 0f64;
        let half = 0.5f32.to_bits();
        for bits in (0..=half).step_by(61).chain([half]) {
            for f in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let got = f64::from(unit.unrounded(f)) / f64::from(1u32 << FRACTION);
                let want = f64::from(f).exp2();
                worst = worst.max((got / want - 1.0).abs());
            }
        }
        assert!(worst < 2f64.powi(-22), "relative error {worst:e}");
        assert!(worst > 2f64.powi(-25), "the test looked at nothing");
    }

    #[test]
    fn weights_are_relative_to_the_slice_whatever_the_offset() {
        for offset in [0.0f32, 1.0, -30.0, 1024.0, -700_000.0] {
            let s = scale(1.0).slice(offset).unwrap();
            let top = f64::from(s.weight(offset));
            assert!((0.7..1.4143).contains(&(top / f64::from(1u32 << FRACTION))));
            for gap in [0.5f32, 1.0, 8.0] {
                let got = f64::from(s.weight(offset - gap)) / top;
                let want = f64::from(-gap).exp();
                assert!(
                    (got / want - 1.0).abs() < 1e-4,
                    "offset {offset} gap {gap}: {got} {want}"
                );
            }
            for gone in [
                offset - 21.0,
                offset - 1e6,
                -1e30,
                f32::MIN,
                f32::NEG_INFINITY,
            ] {
                assert_eq!(s.weight(gone), 0, "offset {offset}, logit {gone}");
            }
        }
    }

    #[test]
    fn sixteen_weights_fit_a_lane() {
        // 0.7213 · log2(e) just rounds down, so 2^f is at its largest.
        let s = scale(1.0);
        let mut largest = 0;
        for i in 0..10_000 {
            let z = i as f32 * 1e-4;
            largest = largest.max(s.slice(z).unwrap().weight(z));
        }
        assert!(largest > 189_000_000 && u64::from(largest) * 16 < 1 << 32);
    }

    #[test]
    fn row_units_and_their_inverse_agree() {
        let s = scale(1.0);
        let row = s.slice(10.0).unwrap();
        for max in [10.0f32, 9.0, 3.0, 0.0, -12.0, -25.0, -60.0] {
            let slice = s.slice(max).unwrap();
            let total = slice.to_row_units(1 << 36, row);
            for r in [0, 1, 2, 1000, total / 3, total.saturating_sub(1)] {
                if r >= total {
                    continue;
                }
                let first = slice.first_above(r, row);
                assert!(slice.to_row_units(first, row) > r);
                assert!(slice.to_row_units(first - 1, row) <= r);
            }
            for weight in [0u32, 1, 2, 77, 1 << 20, (1 << 28) - 1] {
                let (right, left) = slice.shifts(row);
                let shifted = u64::from(weight >> right) << left;
                assert_eq!(shifted, slice.to_row_units(u64::from(weight), row));
            }
        }
        // Far below the row's largest, a slice has no mass left and nothing overflows.
        assert_eq!(s.slice(-500.0).unwrap().to_row_units(1 << 36, row), 0);
    }

    #[test]
    fn slices_out_of_range_have_no_scale() {
        assert!(scale(1.0).slice(f32::NEG_INFINITY).is_none());
        assert!(scale(1.0).slice(f32::INFINITY).is_none());
        assert!(scale(1.0).slice(1e9).is_none());
        let far = scale(1.0).measured_from(1e9);
        assert!(far.slice(1e9).is_some() && far.slice(f32::MIN).is_none());
        assert_eq!(scale(1.0).measured_from(20.0).base, 0.0);
        assert_eq!(scale(1e-6).measured_from(20.0).base, 20.0);
    }
}
