//! The arithmetic that every backend shares, and that decides every token.
//!
//! Nothing here depends on the order or the grouping of floating-point sums, so a CPU, an NVIDIA GPU
//! and an AMD GPU can compute the same integers and therefore pick the same token. `docs/definition.md`
//! tells the whole procedure in prose; [`crate::reference`] runs it in the plainest Rust we could write.
//!
//! - [`order`]: the total order of tokens (larger logit first, then lower id) as one `u64` key.
//! - [`weight`]: a logit's probability mass as an integer, and how slices of a row are merged.
//! - [`philox`]: the counter-based random numbers.

pub(crate) mod order;
pub(crate) mod philox;
pub(crate) mod weight;

use crate::params::RowParams;

/// So many tokens at most are drawn from the whole row and refused, before one is drawn from the kept ones.
pub(crate) const TRIES: u32 = 4;

/// The integer `floor(u · mass / 2⁶⁴)` for the random 64 bits `u`: uniform in `0..mass`.
#[inline(always)]
pub(crate) fn scale_random(u: u64, mass: u64) -> u64 {
    ((u as u128 * mass as u128) >> 64) as u64
}

/// The nucleus limit in mass: a token is inside the nucleus when the mass above it is *below* this.
///
/// `top_p` is `p · 2⁶⁴`; the result is `ceil(p · mass)`, so that the strict comparison with an integer
/// is the comparison with the real number `p · mass`, and the token that crosses `p` is kept.
#[inline(always)]
pub(crate) fn nucleus_limit(top_p: u64, mass: u64) -> u64 {
    let product = top_p as u128 * mass as u128;
    (product >> 64) as u64 + u64::from(product as u64 != 0)
}

/// The smallest logit that min-p keeps: `max + T·ln(min_p)`, one rounded f32 addition.
#[inline(always)]
pub(crate) fn min_p_threshold(params: &RowParams, max: f32) -> f32 {
    max + params.min_p_offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_random_covers_the_mass_and_never_reaches_it() {
        assert_eq!(scale_random(0, 10), 0);
        assert_eq!(scale_random(u64::MAX, 10), 9);
        assert_eq!(scale_random(u64::MAX, (1 << 63) - 1), (1 << 63) - 2);
        assert_eq!(scale_random(1 << 63, 10), 5);
    }

    #[test]
    fn nucleus_limit_rounds_up_unless_exact() {
        let half = 1u64 << 63;
        assert_eq!(nucleus_limit(half, 10), 5);
        assert_eq!(nucleus_limit(half, 11), 6);
        assert_eq!(nucleus_limit(1, 10), 1, "the first token is always inside");
        assert_eq!(nucleus_limit(u64::MAX, 10), 10);
    }
}
