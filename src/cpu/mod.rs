//! The CPU backend: rows of a batch in parallel, each row with the widest vectors the CPU has.
//!
//! - [`arch`]: the vector types and the choice among them.
//! - [`slice`]: what is computed on one slice of a row.
//! - [`row`]: the sampling of one row: its first pass, and what the parameters ask for.
//! - [`tries`]: tokens drawn from the whole row, in the hope that one is kept.
//! - [`search`]: where the kept tokens end, and the draw from them; [`look`] is its looks at the row, [`guess`] its
//!   guesses from a sample, [`place`] places in the order of tokens, [`tokens`] those around the end.

mod arch;
mod guess;
mod look;
mod place;
mod row;
mod search;
mod slice;
#[cfg(test)]
mod tests;
mod tokens;
mod tries;

pub(crate) use row::Workspace;
pub(crate) use slice::Logit;

use crate::error::RowError;
use crate::params::RowParams;
use arch::{Level, Portable};
use rayon::prelude::*;

/// One row to draw from.
pub(crate) struct Row<'a, T> {
    pub(crate) logits: &'a [T],
    pub(crate) params: &'a RowParams,
    pub(crate) position: u64,
}

/// Draws one token per row into `ids`, [`crate::INVALID_TOKEN`] where a row cannot be sampled.
///
/// `row` gives the `i`-th row. Rows are spread over as many workspaces as there are, one thread each.
pub(crate) fn sample_batch<'a, T: Logit + 'a>(
    row: impl Fn(usize) -> Row<'a, T> + Sync,
    ids: &mut [u32],
    workspaces: &mut [Workspace],
) {
    let level = Level::detect();
    let sample_chunk = |first: usize, ids: &mut [u32], workspace: &mut Workspace| {
        for (i, id) in ids.iter_mut().enumerate() {
            let drawn = sample(&row(first + i), workspace, level);
            *id = drawn.unwrap_or(crate::INVALID_TOKEN);
        }
    };
    let chunk = ids.len().div_ceil(workspaces.len()).max(1);
    if chunk >= ids.len() {
        return sample_chunk(0, ids, &mut workspaces[0]);
    }
    ids.par_chunks_mut(chunk)
        .zip(workspaces.par_iter_mut())
        .enumerate()
        .for_each(|(i, (ids, workspace))| sample_chunk(i * chunk, ids, workspace));
}

fn sample<T: Logit>(
    row: &Row<'_, T>,
    workspace: &mut Workspace,
    level: Level,
) -> Result<u32, RowError> {
    // Each function below is the generic code compiled for one instruction set.
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx2,fma,popcnt,bmi1")]
        fn avx512<T: Logit>(r: &Row<'_, T>, ws: &mut Workspace) -> Result<u32, RowError> {
            // SAFETY: the features are enabled for this very function.
            unsafe { row::sample_row::<arch::Avx512, T>(r.logits, r.params, r.position, ws) }
        }
        #[target_feature(enable = "avx2,fma,popcnt,bmi1")]
        fn avx2<T: Logit>(r: &Row<'_, T>, ws: &mut Workspace) -> Result<u32, RowError> {
            // SAFETY: the features are enabled for this very function.
            unsafe { row::sample_row::<arch::Avx2, T>(r.logits, r.params, r.position, ws) }
        }
        match level {
            // SAFETY: `detect` found the features.
            Level::Avx512 => return unsafe { avx512(row, workspace) },
            // SAFETY: `detect` found the features.
            Level::Avx2 => return unsafe { avx2(row, workspace) },
            Level::Portable => {}
        }
    }
    let _ = level;
    // SAFETY: the portable vectors need nothing.
    unsafe { row::sample_row::<Portable, T>(row.logits, row.params, row.position, workspace) }
}
