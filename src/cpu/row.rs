//! One row, fast: the same tokens as [`crate::reference`], from one read of the logits where the
//! distribution is peaked, and one more look at a part of them where it is flat.
//!
//! The first pass leaves each slice's largest logit and, if it is wanted, its mass. Where the parameters
//! say so, [`super::tries`] then draws from the whole row, and asks whether the token is kept. Else, or if
//! none was, [`super::search`] finds where the kept tokens end, and draws from them.

use super::arch::Lanes;
use super::guess::Sample;
use super::look::Picked;
use super::place::{Cut, Limit};
use super::search::{Search, slice_of};
use super::slice::{Logit, fetch_ahead, largest, mass};
use super::tokens::Tokens;
use crate::definition::order::Key;
use crate::definition::weight::{SLICE, Scale};
use crate::definition::{TRIES, min_p_threshold, nucleus_limit, philox};
use crate::error::RowError;
use crate::params::RowParams;

/// What a row needs beside its logits; kept between calls, so that nothing is allocated in steady state.
#[derive(Default)]
pub(crate) struct Workspace {
    /// The largest logit of each slice.
    pub(super) largest: Vec<f32>,
    /// The mass of each slice: its share of the row's. Empty if not wanted.
    pub(super) sums: Vec<u64>,
    /// The mass of each slice's tokens above the last look's upper place.
    pub(super) kept: Vec<u64>,
    /// Tokens around the end of the kept ones, by id, and how many are there up to each slice's end.
    pub(super) tokens: Tokens,
    pub(super) ends: Vec<usize>,
    /// Slices, to be ordered by their largest logits.
    pub(super) peaks: Vec<Key>,
    pub(super) picked: Picked,
    pub(super) sample: Sample,
}

/// The token that `params` draw from `row` at `position`.
///
/// # Safety
///
/// The CPU must have the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn sample_row<V: Lanes, T: Logit>(
    row: &[T],
    params: &RowParams,
    position: u64,
    workspace: &mut Workspace,
) -> Result<u32, RowError> {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let filters = params.filters(row.len());
        let top_k = params.top_k_of(row.len());
        let renormalised = params.is_renormalised(row.len());
        let tries = params.tries(row.len());
        // Whether the mass of the whole row is wanted.
        let of_all = params.top_p.is_some() && !renormalised;
        let sum = !params.greedy && (!filters || tries || of_all);

        let top = first_pass::<V, T>(row, params.scale(), sum, workspace)?;
        if params.greedy || top.logit() == f32::INFINITY {
            return Ok(top.id());
        }
        let scale = params.scale().measured_from(top.logit());
        let mut search = Search::<V, T>::new(row, scale, top, workspace);
        let whole = if sum { search.adopt_sums() } else { 0 };
        let random = |round| philox::random(params.seed, position, round);
        if !filters {
            return Ok(search.draw_from_all(random(0)));
        }

        let share_of = |mass| params.top_p.map_or(u64::MAX, |p| nucleus_limit(p, mass));
        let mut limit = Limit {
            tokens: top_k.unwrap_or(u32::MAX),
            mass: if renormalised {
                u64::MAX
            } else {
                share_of(whole)
            },
        };
        let mut low = Cut::LOWEST;
        if params.min_p_offset > f32::NEG_INFINITY {
            low = Cut::below_logit(min_p_threshold(params, top.logit()));
        }
        // The top k may be a distribution of their own: then their mass is what p is a share of.
        let mut top_k_first = renormalised;
        let mut from = if top_k_first { Cut::LOWEST } else { low };
        loop {
            if limit.tokens == 1 || search.mass_of(top) >= limit.mass {
                return Ok(top.id());
            }
            if tries {
                match search.draw_tries(limit, low, random) {
                    Ok(id) => return Ok(id),
                    Err(place) => from = place,
                }
            }
            search.keep(limit, from);
            if !top_k_first {
                break;
            }
            top_k_first = false;
            limit.mass = share_of(search.kept_mass());
            match search.keep_less(limit, low) {
                None => break,
                Some(place) => from = place,
            }
        }
        let round = if tries { TRIES } else { 0 };
        Ok(search.draw_from_kept(random(round)))
    }
}

/// Reads the row once: every slice's largest logit, on request every slice's mass (with base 0, in its
/// own units), and the first token in the order.
#[inline(always)]
unsafe fn first_pass<V: Lanes, T: Logit>(
    row: &[T],
    scale: Scale,
    sum: bool,
    ws: &mut Workspace,
) -> Result<Key, RowError> {
    ws.largest.clear();
    ws.sums.clear();
    let mut buffer = [0.0; SLICE];
    let mut top = (f32::NEG_INFINITY, 0);
    for (j, tokens) in row.chunks(SLICE).enumerate() {
        let z = T::slice(tokens, &mut buffer);
        // SAFETY: the caller vouches for V's instructions.
        let (most, nan) = unsafe { largest::<V>(z) };
        if nan {
            return Err(RowError::Nan);
        }
        if most > top.0 {
            top = (most, j);
        }
        ws.largest.push(most);
        if sum {
            ws.sums.push(match scale.slice(most) {
                // SAFETY: as above.
                Some(slice) => unsafe {
                    fetch_ahead::<V, T>(tokens);
                    mass::<V>(z, slice)
                },
                None => 0,
            });
        }
    }
    let (logit, j) = top;
    if logit == f32::NEG_INFINITY {
        return Err(RowError::AllMasked);
    }
    let first = j * SLICE;
    let z = T::slice(slice_of(row, j), &mut buffer);
    let id = z.iter().position(|&x| x == logit);
    let id = first + id.expect("the slice's largest logit");
    Ok(Key::new(logit, id as u32))
}
