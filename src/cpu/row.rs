//! One row, fast: the same tokens as [`crate::reference`], from one read of the logits where the
//! distribution is peaked, and a few where it is flat.
//!
//! The first pass leaves each slice's largest logit and, if the draw needs it, its mass. What follows
//! (how many tokens, how much mass is above a pivot?) looks again only at slices whose largest logit is
//! above the pivot, and there are few of those for any pivot that matters.

use super::arch::Lanes;
use super::slice::{Logit, Tokens, count_above, each_above, find, largest, mass_above};
use crate::definition::order::Key;
use crate::definition::weight::{SLICE, Scale, SliceScale};
use crate::definition::{min_p_threshold, nucleus_limit, philox, scale_random};
use crate::error::RowError;
use crate::params::{RowParams, TopKTopP};

/// What a row needs beside its logits; kept between calls, so that nothing is allocated in steady state.
#[derive(Default)]
pub(crate) struct Workspace {
    /// The largest logit of each slice.
    largest: Vec<f32>,
    /// The mass of each slice above the key in `above_key`, in row units.
    above: Vec<u64>,
    above_key: Option<Key>,
    /// Keys among which the k-th largest is selected.
    keys: Vec<Key>,
}

/// Of this many candidates, the k-th largest is selected in one go instead of bisecting further.
const SELECT_AT_ONCE: usize = 4096;

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
    max_rounds: u32,
    workspace: &mut Workspace,
) -> Result<u32, RowError> {
    // SAFETY: the caller vouches for V's instructions.
    unsafe {
        let slices = row.len().div_ceil(SLICE);
        let top_k = params.top_k_of(row.len());
        let renormalised =
            top_k.is_some() && params.top_p.is_some() && params.order == TopKTopP::Renormalised;
        // Whether a mass of the whole row is wanted, for the nucleus or for the first draw.
        let unbounded =
            params.min_p_offset == f32::NEG_INFINITY && top_k.is_none_or(|k| k as usize > slices);
        let sum = !params.greedy && !renormalised && (params.top_p.is_some() || unbounded);

        let top = first_pass::<V, T>(row, params.scale(), sum, workspace)?;
        if params.greedy || top.logit() == f32::INFINITY {
            return Ok(top.id());
        }
        let scale = params.scale().measured_from(top.logit());
        let unit = scale
            .slice(top.logit())
            .expect("the largest logit has mass");
        let mut search = Search::<V, T> {
            row,
            scale,
            unit,
            ws: workspace,
            buffer: [0.0; SLICE],
            vector: std::marker::PhantomData,
        };
        if sum && scale.base == 0.0 {
            search.adopt_sums();
        }

        let mut low = Key::LOWEST;
        let mut count = None;
        let mut mass = None;
        if let Some(k) = top_k {
            let bound = search.kth_largest_slice(k);
            if renormalised {
                low = search.kth_largest_token(k, bound, top);
            } else {
                count = Some(k);
            }
            if let Some(p) = params.top_p {
                mass = Some(nucleus_limit(p, search.mass_above(low)));
            }
            low = low.max(bound);
        } else if let Some(p) = params.top_p {
            mass = Some(nucleus_limit(p, search.mass_above(low)));
        }
        if params.min_p_offset > f32::NEG_INFINITY {
            low = low.max(Key::below_logit(min_p_threshold(params, top.logit())));
        }
        search.draw_inside(Bounds { low, count, mass }, top, max_rounds, |round| {
            philox::random(params.seed, position, round)
        })
    }
}

/// Reads the row once: every slice's largest logit, on request every slice's mass (with base 0, in its
/// own units, left in `above`), and the first token in the order.
#[inline(always)]
unsafe fn first_pass<V: Lanes, T: Logit>(
    row: &[T],
    scale: Scale,
    sum: bool,
    ws: &mut Workspace,
) -> Result<Key, RowError> {
    ws.largest.clear();
    ws.above.clear();
    ws.above_key = None;
    let mut buffer = [0.0; SLICE];
    let mut top = (f32::NEG_INFINITY, 0);
    for (j, tokens) in row.chunks(SLICE).enumerate() {
        let z = T::widen(tokens, &mut buffer);
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
            ws.above.push(match scale.slice(most) {
                // SAFETY: as above.
                Some(slice) => unsafe { mass_above::<V>(z, slice, f32::NEG_INFINITY) },
                None => 0,
            });
        }
    }
    let (logit, j) = top;
    if logit == f32::NEG_INFINITY {
        return Err(RowError::AllMasked);
    }
    let first = j * SLICE;
    let z = T::widen(&row[first..row.len().min(first + SLICE)], &mut buffer);
    let id = first
        + z.iter()
            .position(|&x| x == logit)
            .expect("the slice's largest logit");
    Ok(Key::new(logit, id as u32))
}

/// Where the search starts, and what "inside" means; see [`crate::reference`].
struct Bounds {
    low: Key,
    count: Option<u32>,
    mass: Option<u64>,
}

/// A row after the first pass.
struct Search<'a, V, T> {
    row: &'a [T],
    scale: Scale,
    unit: SliceScale,
    ws: &'a mut Workspace,
    buffer: Tokens,
    vector: std::marker::PhantomData<V>,
}

impl<V: Lanes, T: Logit> Search<'_, V, T> {
    /// Turns the first pass's sums into row units.
    #[inline(always)]
    fn adopt_sums(&mut self) {
        for (sum, &most) in self.ws.above.iter_mut().zip(&self.ws.largest) {
            *sum = self
                .scale
                .slice(most)
                .map_or(0, |s| s.to_row_units(*sum, self.unit));
        }
        self.ws.above_key = Some(Key::LOWEST);
    }

    /// Slice `j` and the threshold that its tokens above `key` exceed; `None` if there are none.
    #[inline(always)]
    fn cut(&mut self, j: usize, key: Key) -> Option<(&Tokens, f32)> {
        let (first, most) = (j * SLICE, self.ws.largest[j]);
        let logit = key.logit();
        if most < logit {
            return None;
        }
        let (id, next) = (key.id() as usize, first + SLICE);
        // Of the tokens that tie with the key, those with lower ids are above it.
        let threshold = if id <= first {
            logit
        } else {
            key.previous_logit()
        };
        if most <= threshold {
            return None;
        }
        let tokens = &self.row[first..self.row.len().min(next)];
        if id <= first || id >= next {
            return Some((T::widen(tokens, &mut self.buffer), threshold));
        }
        let mut wide = [0.0; SLICE];
        self.buffer = *T::widen(tokens, &mut wide);
        for z in &mut self.buffer[id - first..] {
            if *z == logit {
                *z = f32::NEG_INFINITY;
            }
        }
        Some((&self.buffer, threshold))
    }

    #[inline(always)]
    fn slices(&self) -> usize {
        self.ws.largest.len()
    }

    #[inline(always)]
    unsafe fn count_above(&mut self, key: Key) -> u32 {
        let mut count = 0;
        for j in 0..self.slices() {
            if let Some((z, threshold)) = self.cut(j, key) {
                // SAFETY: the caller vouches for V's instructions.
                count += unsafe { count_above::<V>(z, threshold) };
            }
        }
        count
    }

    /// The mass above `key`; leaves each slice's share in the workspace.
    #[inline(always)]
    unsafe fn mass_above(&mut self, key: Key) -> u64 {
        if self.ws.above_key != Some(key) {
            self.ws.above.clear();
            for j in 0..self.slices() {
                let slice = self.scale.slice(self.ws.largest[j]);
                let unit = self.unit;
                let mass = match (slice, self.cut(j, key)) {
                    (Some(slice), Some((z, threshold))) => {
                        // SAFETY: the caller vouches for V's instructions.
                        let mass = unsafe { mass_above::<V>(z, slice, threshold) };
                        slice.to_row_units(mass, unit)
                    }
                    _ => 0,
                };
                self.ws.above.push(mass);
            }
            self.ws.above_key = Some(key);
        }
        self.ws.above.iter().sum()
    }

    /// A key below the top k: below the k-th largest of the slices' largest tokens, if there are k.
    #[inline(always)]
    fn kth_largest_slice(&mut self, k: u32) -> Key {
        let k = k as usize;
        if k > self.slices() {
            return Key::LOWEST;
        }
        // Slices stand in the order of their ids, so their indices break ties as the ids would.
        let maxima = self.ws.largest.iter().enumerate();
        self.ws.keys.clear();
        self.ws
            .keys
            .extend(maxima.map(|(j, &most)| Key::new(most, j as u32)));
        let (_, kth, _) = self.ws.keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let (most, first) = (kth.logit(), kth.id() as usize * SLICE);
        if most == f32::NEG_INFINITY {
            return Key::LOWEST;
        }
        let tokens = &self.row[first..self.row.len().min(first + SLICE)];
        let z = T::widen(tokens, &mut self.buffer);
        let id = first
            + z.iter()
                .position(|&x| x == most)
                .expect("the slice's largest logit");
        Key::new(most, id as u32).below()
    }

    /// The greatest key below the k-th largest token, given a `low` with at least k tokens above it
    /// (or all there are).
    #[inline(always)]
    unsafe fn kth_largest_token(&mut self, k: u32, mut low: Key, mut high: Key) -> Key {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let mut above_low = self.count_above(low);
            if above_low <= k {
                return low;
            }
            // At least k above `low`, fewer than k above `high`.
            let mut above_high = 0;
            while (above_low - above_high) as usize > SELECT_AT_ONCE {
                let middle = low.midpoint(high);
                let count = self.count_above(middle);
                if count >= k {
                    (low, above_low) = (middle, count);
                } else {
                    (high, above_high) = (middle, count);
                }
            }
            let mut keys = std::mem::take(&mut self.ws.keys);
            keys.clear();
            for j in 0..self.slices() {
                if let Some((z, threshold)) = self.cut(j, low) {
                    each_above::<V>(z, threshold, |i| {
                        let key = Key::new(z[i], (j * SLICE + i) as u32);
                        if key <= high {
                            keys.push(key);
                        }
                    });
                }
            }
            let nth = (k - above_high) as usize - 1;
            let (_, kth, _) = keys.select_nth_unstable_by(nth, |a, b| b.cmp(a));
            let below = kth.below();
            self.ws.keys = keys;
            below
        }
    }

    #[inline(always)]
    unsafe fn inside(&mut self, key: Key, bounds: &Bounds) -> bool {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            bounds.count.is_none_or(|k| self.count_above(key) < k)
                && bounds.mass.is_none_or(|m| self.mass_above(key) < m)
        }
    }

    /// Dual-pivot rejection, and after `max_rounds` a draw from the exact set.
    #[inline(always)]
    unsafe fn draw_inside(
        &mut self,
        bounds: Bounds,
        top: Key,
        max_rounds: u32,
        random: impl Fn(u32) -> u64,
    ) -> Result<u32, RowError> {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let (mut low, mut high) = (bounds.low, top);
            for round in 0..max_rounds {
                let pivot_1 = self.draw(low, random(round));
                if self.inside(pivot_1, &bounds) {
                    return Ok(pivot_1.id());
                }
                let pivot_2 = pivot_1.midpoint(high);
                if self.inside(pivot_2, &bounds) {
                    (low, high) = (pivot_1, pivot_2);
                } else {
                    low = pivot_2;
                }
            }
            while low.below_by_more_than_one(high) {
                let middle = low.midpoint(high);
                if self.inside(middle, &bounds) {
                    high = middle;
                } else {
                    low = middle;
                }
            }
            Ok(self.draw(low, random(max_rounds)).id())
        }
    }

    /// Inverse CDF, ids ascending, over the tokens above `low`.
    #[inline(always)]
    unsafe fn draw(&mut self, low: Key, random: u64) -> Key {
        // SAFETY: the caller vouches for V's instructions.
        unsafe {
            let mut r = scale_random(random, self.mass_above(low));
            let drawn = self.ws.above.iter().position(|&mass| {
                let here = r < mass;
                if !here {
                    r -= mass;
                }
                here
            });
            let j = drawn.expect("the random number is below the total mass");
            let slice = self
                .scale
                .slice(self.ws.largest[j])
                .expect("the slice has mass");
            let target = slice.first_above(r, self.unit);
            let (z, threshold) = self.cut(j, low).expect("the slice has tokens above low");
            let i = find::<V>(z, slice, threshold, target);
            Key::new(z[i], (j * SLICE + i) as u32)
        }
    }
}
