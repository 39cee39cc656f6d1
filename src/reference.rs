//! The definition of a drawn token, in the plainest form: slow, allocating, and readable beside
//! `docs/definition.md`.
//!
//! Every backend must return what [`sample`] returns, bit for bit. Use it to check an engine of your
//! own, or a kernel.
//!
//! ```
//! use candle_sampler::{SamplingParams, reference};
//!
//! let logits = [0.1, 2.0, -1.0, 1.5];
//! let params = SamplingParams::new().top_k(2).seed(7);
//! assert_eq!(reference::kept(&logits, &params)?, [1, 3]);
//! let token = reference::sample(&logits, &params, 0)?;
//! assert!(token == 1 || token == 3);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::definition::order::Key;
use crate::definition::weight::{SLICE, SliceScale};
use crate::definition::{MAX_ROUNDS, min_p_threshold, nucleus_limit, philox, scale_random};
use crate::error::RowError;
use crate::params::{RowParams, SamplingParams, TopKTopP};
use candle_core::Error;

/// The token that `params` draw from `logits` (one row) at `position`.
///
/// Fails on parameters out of range ([`crate::ParamError`]), on NaN, and where all logits are −inf
/// ([`RowError`]).
pub fn sample(logits: &[f32], params: &SamplingParams, position: u64) -> candle_core::Result<u32> {
    let params = params.resolve().map_err(Error::wrap)?;
    sample_row(logits, &params, position, MAX_ROUNDS).map_err(Error::wrap)
}

/// The ids that can be drawn, ascending: what passes every filter.
///
/// Fails as [`sample`] does.
pub fn kept(logits: &[f32], params: &SamplingParams) -> candle_core::Result<Vec<u32>> {
    let params = params.resolve().map_err(Error::wrap)?;
    let top = Row::first_token(logits).map_err(Error::wrap)?;
    if params.greedy || top.logit() == f32::INFINITY {
        return Ok(vec![top.id()]);
    }
    let row = Row::new(logits, &params, top);
    let bounds = row.bounds(&params, top);
    let low = row.threshold(&bounds, bounds.low, top);
    Ok((0..logits.len() as u32)
        .filter(|&id| row.key(id) > low)
        .collect())
}

pub(crate) fn sample_row(
    logits: &[f32],
    params: &RowParams,
    position: u64,
    max_rounds: u32,
) -> Result<u32, RowError> {
    let top = Row::first_token(logits)?;
    if params.greedy || top.logit() == f32::INFINITY {
        return Ok(top.id());
    }
    let row = Row::new(logits, params, top);
    let bounds = row.bounds(params, top);

    // Dual-pivot rejection: every kept token is above `low`, and `high` is inside.
    let (mut low, mut high) = (bounds.low, top);
    for round in 0..max_rounds {
        let token = row.draw(low, philox::random(params.seed, position, round));
        let pivot_1 = row.key(token);
        if row.inside(pivot_1, &bounds) {
            return Ok(token);
        }
        let pivot_2 = pivot_1.midpoint(high);
        if row.inside(pivot_2, &bounds) {
            (low, high) = (pivot_1, pivot_2);
        } else {
            low = pivot_2;
        }
    }
    let low = row.threshold(&bounds, low, high);
    Ok(row.draw(low, philox::random(params.seed, position, max_rounds)))
}

/// Where the search starts, and what "inside" means.
struct Bounds {
    /// No kept token is at or below this key.
    low: Key,
    /// A kept token has fewer than this many tokens above it.
    count: Option<u32>,
    /// A kept token has less than this mass above it.
    mass: Option<u64>,
}

struct Row<'a> {
    logits: &'a [f32],
    /// One entry a slice; `None` where the slice has no mass.
    slices: Vec<Option<SliceScale>>,
    /// The slice that sets the row's unit.
    unit: SliceScale,
}

impl<'a> Row<'a> {
    /// The first token in the order: the argmax.
    fn first_token(logits: &[f32]) -> Result<Key, RowError> {
        if logits.iter().any(|z| z.is_nan()) {
            return Err(RowError::Nan);
        }
        let keys = logits
            .iter()
            .enumerate()
            .map(|(id, &z)| Key::new(z, id as u32));
        match keys.max() {
            Some(top) if top.logit() > f32::NEG_INFINITY => Ok(top),
            _ => Err(RowError::AllMasked),
        }
    }

    fn new(logits: &'a [f32], params: &RowParams, top: Key) -> Self {
        let scale = params.scale().measured_from(top.logit());
        let slices: Vec<_> = logits
            .chunks(SLICE)
            .map(|s| scale.slice(s.iter().copied().fold(f32::NEG_INFINITY, f32::max)))
            .collect();
        let unit = slices[top.id() as usize / SLICE].expect("the largest logit has mass");
        Self {
            logits,
            slices,
            unit,
        }
    }

    fn key(&self, id: u32) -> Key {
        Key::new(self.logits[id as usize], id)
    }

    fn ids(&self) -> std::ops::Range<u32> {
        0..self.logits.len() as u32
    }

    /// Calls `f` for each slice with its scale, its ids, and the weights of those above `low`.
    fn slice_weights(&self, low: Key) -> impl Iterator<Item = (SliceScale, Vec<(u32, u64)>)> {
        self.slices
            .iter()
            .enumerate()
            .filter_map(move |(j, slice)| {
                let slice = (*slice)?;
                let ids = (j * SLICE) as u32..((j + 1) * SLICE).min(self.logits.len()) as u32;
                let weights = ids
                    .filter(|&id| self.key(id) > low)
                    .map(|id| (id, u64::from(slice.weight(self.logits[id as usize]))))
                    .collect();
                Some((slice, weights))
            })
    }

    fn count_above(&self, key: Key) -> u32 {
        self.ids().filter(|&id| self.key(id) > key).count() as u32
    }

    fn mass_above(&self, key: Key) -> u64 {
        self.slice_weights(key)
            .map(|(slice, weights)| {
                slice.to_row_units(weights.iter().map(|(_, w)| w).sum(), self.unit)
            })
            .sum()
    }

    fn bounds(&self, params: &RowParams, top: Key) -> Bounds {
        let mut low = Key::LOWEST;
        if params.min_p_offset > f32::NEG_INFINITY {
            low = low.max(Key::below_logit(min_p_threshold(params, top.logit())));
        }
        let mut count = None;
        let mut nucleus_of = Key::LOWEST;
        if let Some(k) = params.top_k_of(self.logits.len()) {
            let k_largest = |mut keys: Vec<Key>| {
                keys.sort_unstable_by(|a, b| b.cmp(a));
                keys.get(k as usize - 1)
                    .map_or(Key::LOWEST, |key| key.below().max(Key::LOWEST))
            };
            if params.top_p.is_some() && params.order == TopKTopP::Renormalised {
                // The top k are a distribution of their own: their mass is what p is a share of.
                nucleus_of = k_largest(self.ids().map(|id| self.key(id)).collect());
                low = low.max(nucleus_of);
            } else {
                // At least k tokens are at or above the k-th largest of the slices' maxima.
                let maxima = self.ids().map(|id| self.key(id)).collect::<Vec<_>>();
                let maxima = maxima
                    .chunks(SLICE)
                    .map(|s| *s.iter().max().expect("not empty"));
                low = low.max(k_largest(maxima.collect()));
                count = Some(k);
            }
        }
        let mass = params
            .top_p
            .map(|p| nucleus_limit(p, self.mass_above(nucleus_of)));
        Bounds { low, count, mass }
    }

    /// Whether a token with this key is kept. Monotone: what is above a kept token is kept.
    fn inside(&self, key: Key, bounds: &Bounds) -> bool {
        bounds.count.is_none_or(|k| self.count_above(key) < k)
            && bounds.mass.is_none_or(|m| self.mass_above(key) < m)
    }

    /// The greatest key that is not inside, given `low` outside (or a bound) and `high` inside.
    fn threshold(&self, bounds: &Bounds, mut low: Key, mut high: Key) -> Key {
        while low.below_by_more_than_one(high) {
            let middle = low.midpoint(high);
            if self.inside(middle, bounds) {
                high = middle;
            } else {
                low = middle;
            }
        }
        low
    }

    /// Inverse CDF, ids ascending, over the tokens above `low`.
    fn draw(&self, low: Key, random: u64) -> u32 {
        let mut r = scale_random(random, self.mass_above(low));
        for (slice, weights) in self.slice_weights(low) {
            let mass = slice.to_row_units(weights.iter().map(|(_, w)| w).sum(), self.unit);
            if r >= mass {
                r -= mass;
                continue;
            }
            let mut prefix = 0;
            for (id, weight) in weights {
                prefix += weight;
                if slice.to_row_units(prefix, self.unit) > r {
                    return id;
                }
            }
        }
        unreachable!("the random number is below the total mass")
    }
}
