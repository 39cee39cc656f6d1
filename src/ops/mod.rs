//! The numerics as Candle custom ops, each usable alone.
//!
//! - [`softmax`]: softmax over the last dimension.
//! - [`prefix_sum`]: inclusive prefix sum over the last dimension.
//! - [`sample`]: one token a row, without a [`crate::Sampler`]'s state.

mod prefix_sum;
mod sample;
mod softmax;

pub use prefix_sum::{PrefixSum, prefix_sum};
pub use sample::sample;
pub(crate) use sample::{Sample, Scratch, row_of};
pub use softmax::{Softmax, softmax};

use candle_core::{Layout, Result, bail};
use std::ops::Range;

/// Where the elements of a contiguous input are, and the length of its last dimension.
pub(crate) fn contiguous_rows(op: &str, layout: &Layout) -> Result<(Range<usize>, usize)> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "{op}: the input must be contiguous, its strides are {:?}",
            layout.stride()
        )
    };
    let Some(&last) = layout.dims().last() else {
        bail!("{op}: a scalar has no last dimension")
    };
    Ok((start..end, last))
}

/// Applies `f` to each row (the last dimension) of `data`, in parallel, into a new vector.
fn map_rows<T, U>(data: &[T], row: usize, f: impl Fn(&[T], &mut [U]) + Sync) -> Vec<U>
where
    T: Sync,
    U: Copy + Default + Send,
{
    use rayon::prelude::*;
    let mut out = vec![U::default(); data.len()];
    if row > 0 {
        let rows = data.par_chunks(row).zip(out.par_chunks_mut(row));
        rows.for_each(|(from, to)| f(from, to));
    }
    out
}
