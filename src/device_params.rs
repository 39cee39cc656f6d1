//! A row's parameters as the kernels read them: `RowParams` in `kernels/definition.h`.

use crate::definition::weight::SLICE;
use crate::params::RowParams;

/// One row's parameters in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DeviceParams {
    scale: f32,
    inverse: f32,
    min_p_offset: f32,
    top_k: u32,
    top_p: u64,
    seed: u64,
    flags: u32,
    unused: u32,
}

/// What follows from a row's parameters for its vocabulary. It is said here once, so that no thread of a kernel has to wait for one parameter
/// after the other to find out what to do. A greedy row has no other.
pub(crate) const GREEDY: u32 = 1;
/// A top-p that is a share of the top k's mass.
pub(crate) const RENORMALISED: u32 = 2;
/// Filters that may remove a token.
pub(crate) const TOP_K: u32 = 4;
pub(crate) const TOP_P: u32 = 8;
pub(crate) const MIN_P: u32 = 16;
/// Tokens are drawn from the whole row first.
pub(crate) const TRIED: u32 = 32;
/// The slices' largest logits bound the top k closely: there are few, and less than there are slices.
pub(crate) const BY_SLICES: u32 = 64;
/// The same of groups' largest logits, where slices are too few.
pub(crate) const BY_GROUPS: u32 = 128;
/// The row's mass is wanted: to draw from all of it, or as what p is a share of.
pub(crate) const MASS: u32 = 256;
/// The same as what p is a share of, for a few tokens: floats mostly tell which of them are kept.
pub(crate) const MASS_ABOUT: u32 = 512;
/// Of few rows that are tried for a top p: slices tell their masses above two places, too.
pub(crate) const PLACED: u32 = 1024;

/// A top-k up to here is bounded by largest logits, if it is not more than seven eighths of these.
const MAX_K_BOUNDED: usize = 160;
/// Tokens of a group, as in `kernels/row.h`.
const GROUP: usize = 16;

impl DeviceParams {
    /// `few`: the row is one of few.
    pub(crate) fn new(row: &RowParams, vocab: usize, few: bool) -> Self {
        Self {
            scale: row.scale,
            inverse: row.inverse,
            min_p_offset: row.min_p_offset,
            top_k: row.top_k,
            top_p: row.top_p.unwrap_or(0),
            seed: row.seed,
            flags: flags(row, vocab, few),
            unused: 0,
        }
    }

    /// The same memory as 64-bit words, which every allocator and every copy takes.
    pub(crate) fn words(self) -> [u64; 5] {
        // SAFETY: plain memory of the same size, without padding.
        unsafe { std::mem::transmute::<Self, [u64; 5]>(self) }
    }

    /// Whether the row's mass is wanted, exactly or about.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    pub(crate) fn is_weighed(&self) -> bool {
        self.flags & (MASS | MASS_ABOUT) != 0
    }

    /// Whether slices' masses are divided, as few rows' are that are tried.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    pub(crate) fn is_placed(&self) -> bool {
        self.flags & PLACED != 0
    }

    /// Whether tokens are drawn from the whole row first.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    pub(crate) fn is_tried(&self) -> bool {
        self.flags & TRIED != 0
    }

    /// Whether the row is to be looked at before it is drawn from, as in `kernels/sample.hip`.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    pub(crate) fn wants_look(&self) -> bool {
        self.flags & (TOP_K | BY_SLICES | BY_GROUPS | TRIED) == TOP_K
    }
}

fn flags(row: &RowParams, vocab: usize, few: bool) -> u32 {
    if row.greedy {
        return GREEDY;
    }
    let k = row.top_k_of(vocab).map(|k| k as usize);
    let bounded_by = |parts: usize| k.is_some_and(|k| k <= MAX_K_BOUNDED && k * 8 <= parts * 7);
    let by_slices = bounded_by(vocab.div_ceil(SLICE));
    let by_groups = bounded_by(vocab.div_ceil(GROUP)) && !by_slices;
    let (renormalised, tried) = (row.is_renormalised(vocab), row.tries(vocab));
    let min_p = row.min_p_offset > f32::NEG_INFINITY;
    let share = row.top_p.is_some() && !renormalised;
    let about = share && (by_slices || by_groups) && !tried;
    [
        (RENORMALISED, renormalised),
        (TOP_K, k.is_some()),
        (TOP_P, row.top_p.is_some()),
        (MIN_P, min_p),
        (TRIED, tried),
        (BY_SLICES, by_slices),
        (BY_GROUPS, by_groups),
        (MASS, (share && !about) || tried || (k.is_none() && !min_p)),
        (MASS_ABOUT, about),
        (PLACED, few && tried && row.top_p.is_some()),
    ]
    .into_iter()
    .map(|(flag, is_so)| if is_so { flag } else { 0 })
    .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;
    use crate::params::TopKTopP;

    #[test]
    fn parameters_lie_where_the_kernels_look() {
        let params = SamplingParams::new().top_k(7).top_p(0.5).seed(9);
        let params = params.resolve().unwrap();
        let words = DeviceParams::new(&params, 10, false).words();
        assert_eq!(words[0] as u32, params.scale.to_bits());
        assert_eq!(words[1], u64::from(f32::NEG_INFINITY.to_bits()) | 7 << 32);
        let flags = TOP_K | TOP_P | RENORMALISED;
        assert_eq!(words[2..], [1 << 63, 9, u64::from(flags)]);
    }

    #[test]
    fn flags_are_those_of_the_kernels() {
        let source = include_str!("../kernels/definition.h");
        for (name, flag) in [
            ("GREEDY", GREEDY),
            ("RENORMALISED", RENORMALISED),
            ("TOP_K", TOP_K),
            ("TOP_P", TOP_P),
            ("MIN_P", MIN_P),
            ("TRIED", TRIED),
            ("BY_SLICES", BY_SLICES),
            ("BY_GROUPS", BY_GROUPS),
            ("MASS", MASS),
            ("MASS_ABOUT", MASS_ABOUT),
            ("PLACED", PLACED),
        ] {
            assert!(
                source.contains(&format!("\n#define {name} {flag}u")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_flag_is_there_where_it_makes_a_difference() {
        let p = SamplingParams::new;
        for (params, expected) in [
            (p(), MASS),
            (p().temperature(0.0).top_k(5).top_p(0.9).min_p(0.1), GREEDY),
            (p().top_k(50), TOP_K | BY_SLICES),
            (p().top_k(152_000).top_p(1.0).min_p(0.0), MASS),
            (p().top_k(160).min_p(0.1), TOP_K | BY_SLICES | MIN_P),
            (p().top_k(161), TOP_K),
            (p().top_k(19_001), TOP_K | TRIED | MASS),
            (p().top_p(0.9).min_p(0.1), TOP_P | TRIED | MIN_P | MASS),
            (p().min_p(0.1), MIN_P),
            (
                p().top_k(50).top_p(0.9),
                TOP_K | TOP_P | RENORMALISED | BY_SLICES,
            ),
            (
                p().top_k(50).top_p(0.9).order(TopKTopP::Joint),
                TOP_K | TOP_P | BY_SLICES | MASS_ABOUT,
            ),
        ] {
            assert_eq!(
                flags(&params.resolve().unwrap(), 152_000, false),
                expected,
                "{params:?}"
            );
        }
        let few = |params: SamplingParams| flags(&params.resolve().unwrap(), 152_000, true);
        assert_eq!(few(p().top_p(0.9)), TOP_P | TRIED | MASS | PLACED);
        assert_eq!(few(p().top_k(19_001)), TOP_K | TRIED | MASS);
        assert_eq!(few(p()), MASS);
        // Of 10 slices, seven eighths are 8; of 63 groups, 55.
        let top_k = |k, vocab| flags(&p().top_k(k).resolve().unwrap(), vocab, false);
        assert_eq!(top_k(8, 5000), TOP_K | BY_SLICES);
        assert_eq!(top_k(9, 5000), TOP_K | BY_GROUPS);
        assert_eq!(top_k(160, 5000), TOP_K | BY_GROUPS);
        assert_eq!(top_k(55, 1000), TOP_K | BY_GROUPS);
        assert_eq!(top_k(56, 1000), TOP_K);
    }
}
