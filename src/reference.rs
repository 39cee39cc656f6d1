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
use crate::definition::{TRIES, min_p_threshold, nucleus_limit, philox, scale_random};
use crate::error::RowError;
use crate::params::{RowParams, SamplingParams};
use candle_core::Error;

/// The token that `params` draw from `logits` (one row) at `position`.
///
/// Fails on parameters out of range ([`crate::ParamError`]), on NaN, and where all logits are −inf
/// ([`RowError`]).
pub fn sample(logits: &[f32], params: &SamplingParams, position: u64) -> candle_core::Result<u32> {
    let params = params.resolve().map_err(Error::wrap)?;
    sample_row(logits, &params, position).map_err(Error::wrap)
}

/// The ids that can be drawn, ascending: what passes every filter.
///
/// Fails as [`sample`] does.
pub fn kept(logits: &[f32], params: &SamplingParams) -> candle_core::Result<Vec<u32>> {
    let params = params.resolve().map_err(Error::wrap)?;
    let top = first_token(logits).map_err(Error::wrap)?;
    if params.greedy || top.logit() == f32::INFINITY {
        return Ok(vec![top.id()]);
    }
    Ok(Row::new(logits, &params, top).kept(&params))
}

pub(crate) fn sample_row(
    logits: &[f32],
    params: &RowParams,
    position: u64,
) -> Result<u32, RowError> {
    let top = first_token(logits)?;
    if params.greedy || top.logit() == f32::INFINITY {
        return Ok(top.id());
    }
    let row = Row::new(logits, params, top);
    let random = |round| philox::random(params.seed, position, round);
    if !params.filters(logits.len()) {
        return Ok(row.draw_from_all(random(0)));
    }
    let kept = row.kept(params);
    if !params.tries(logits.len()) {
        return Ok(row.draw_from_kept(&kept, random(0)));
    }
    for round in 0..TRIES {
        let id = row.draw_from_all(random(round));
        if kept.contains(&id) {
            return Ok(id);
        }
    }
    Ok(row.draw_from_kept(&kept, random(TRIES)))
}

/// The first token in the order: the argmax.
fn first_token(logits: &[f32]) -> Result<Key, RowError> {
    if logits.iter().any(|z| z.is_nan()) {
        return Err(RowError::Nan);
    }
    let keys = (0..).zip(logits).map(|(id, &z)| Key::new(z, id));
    match keys.max() {
        Some(top) if top.logit() > f32::NEG_INFINITY => Ok(top),
        _ => Err(RowError::AllMasked),
    }
}

/// A row with a finite largest logit.
struct Row<'a> {
    logits: &'a [f32],
    top: Key,
    /// One entry a slice; `None` where no token of the slice has mass.
    slices: Vec<Option<SliceScale>>,
    /// The slice that sets the row's unit.
    unit: SliceScale,
}

impl<'a> Row<'a> {
    fn new(logits: &'a [f32], params: &RowParams, top: Key) -> Self {
        let scale = params.scale().measured_from(top.logit());
        let slices: Vec<_> = logits
            .chunks(SLICE)
            .map(|s| scale.slice(s.iter().copied().fold(f32::NEG_INFINITY, f32::max)))
            .collect();
        let unit = slices[top.id() as usize / SLICE].expect("the largest logit has mass");
        Self {
            logits,
            top,
            slices,
            unit,
        }
    }

    /// One token's weight in its slice's unit.
    fn weight(&self, id: u32) -> u64 {
        let slice = self.slices[id as usize / SLICE];
        slice.map_or(0, |s| u64::from(s.weight(self.logits[id as usize])))
    }

    /// A weight, or a sum of weights, of slice `j` in the row's unit.
    fn in_row_units(&self, j: usize, weight: u64) -> u64 {
        self.slices[j].map_or(0, |s| s.to_row_units(weight, self.unit))
    }

    /// One token's mass.
    fn mass(&self, id: u32) -> u64 {
        self.in_row_units(id as usize / SLICE, self.weight(id))
    }

    fn ids_of(&self, j: usize) -> std::ops::Range<u32> {
        (j * SLICE) as u32..self.logits.len().min((j + 1) * SLICE) as u32
    }

    /// A whole slice's mass: its weights are summed before they are brought to the row's unit.
    fn slice_mass(&self, j: usize) -> u64 {
        self.in_row_units(j, self.ids_of(j).map(|id| self.weight(id)).sum())
    }

    /// The ids that pass every filter, ascending.
    fn kept(&self, params: &RowParams) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.logits.len() as u32).collect();
        order.sort_by_key(|&id| std::cmp::Reverse(Key::new(self.logits[id as usize], id)));

        let top_k = params.top_k_of(self.logits.len()).map(|k| k as usize);
        let threshold = min_p_threshold(params, self.top.logit());
        let limit = params.top_p.map(|p| {
            let of_these = match top_k {
                Some(k) if params.is_renormalised(self.logits.len()) => {
                    order[..k].iter().map(|&id| self.mass(id)).sum()
                }
                _ => (0..self.slices.len()).map(|j| self.slice_mass(j)).sum(),
            };
            nucleus_limit(p, of_these)
        });

        let mut kept = Vec::new();
        let mut mass_above = 0;
        for id in order {
            let z = self.logits[id as usize];
            let inside = top_k.is_none_or(|k| kept.len() < k)
                && limit.is_none_or(|limit| mass_above < limit)
                && z >= threshold;
            // −inf is never kept.
            if !inside || z == f32::NEG_INFINITY {
                break;
            }
            kept.push(id);
            mass_above += self.mass(id);
        }
        kept.sort();
        kept
    }

    /// Inverse CDF over the kept tokens.
    fn draw_from_kept(&self, kept: &[u32], random: u64) -> u32 {
        let mut r = scale_random(random, kept.iter().map(|&id| self.mass(id)).sum());
        for &id in kept {
            let mass = self.mass(id);
            if r < mass {
                return id;
            }
            r -= mass;
        }
        unreachable!("the random number is below the sum of the masses")
    }

    /// Inverse CDF over the whole row: first over the slices, then over one slice's tokens.
    fn draw_from_all(&self, random: u64) -> u32 {
        let slices = 0..self.slices.len();
        let mut r = scale_random(random, slices.clone().map(|j| self.slice_mass(j)).sum());
        for j in slices {
            let mass = self.slice_mass(j);
            if r >= mass {
                r -= mass;
                continue;
            }
            let mut weights = 0;
            for id in self.ids_of(j) {
                weights += self.weight(id);
                if self.in_row_units(j, weights) > r {
                    return id;
                }
            }
        }
        unreachable!("the random number is below the sum of the masses")
    }
}
