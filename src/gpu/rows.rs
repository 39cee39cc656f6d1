//! A sampler's rows in device memory: parameters, positions, workspace.

use super::launch::{Argument, Gpu, Kernels, Logits, Params, Summaries};
use super::slices;
use crate::device_params::DeviceParams;
use crate::params::RowParams;
use candle_core::Result;

/// The rows' parameters and positions, as the sampler has them.
#[derive(Clone, Copy)]
pub(crate) struct State<'a> {
    pub(crate) params: &'a [RowParams],
    pub(crate) positions: &'a [u64],
}

/// Allocated once; what the host changes is uploaded before the next draw.
pub(crate) struct Rows<G: Gpu> {
    /// What the device has, as far as the host knows; a row that differs is uploaded.
    known: Vec<(DeviceParams, u64)>,
    params: G::Memory,
    /// Advanced by the kernels.
    positions: G::Memory,
    capacity: usize,
    summaries: Summaries<G>,
    /// u64, one a slice: masses above a place.
    kept: G::Memory,
    /// What the blocks of a row leave for each other.
    wide: G::Memory,
}

/// Words of one row's parameters.
const PARAM_WORDS: usize = size_of::<DeviceParams>() / size_of::<u64>();

/// Words of a row in `wide`, as in `kernels/row.h`.
pub(super) const WIDE_WORDS: usize = 8544;

/// What a row's block gathers in shared memory, as in `kernels/candidates.h`.
pub(super) const CAPACITY: usize = 3584;

/// Blocks that work on rows together: one for each multiprocessor of a large GPU.
const BLOCKS: usize = 128;
/// More would not be faster at looking at a row; each first finds out where to look.
const LOOKING_BLOCKS_A_ROW: usize = 32;
/// Where some rows need no look, every row has at most so many blocks, and all together so many: those that find nothing to do
/// cost little, not nothing.
const MIXED_BLOCKS_A_ROW: usize = 16;
const MIXED_BLOCKS: usize = 2048;
/// Of so few rows the blocks that draw ask for tries at once, at most so many a row, and the first read divides their masses so that less is asked.
const FEW_ROWS: usize = 16;
const DRAWING_BLOCKS_A_ROW: usize = 32;
/// Otherwise as many do, in a launch of their own, as a large GPU has at once, or as there are rows.
const ASKING_BLOCKS: usize = 264;
/// Of more rows than that so many have tries in doubt that to bound them by groups first takes less.
const BOUNDED_ROWS: usize = 128;
/// So many rows are drawn from by small blocks, where the GPU has twice as many of these at once.
const MANY_ROWS: usize = ASKING_BLOCKS + 1;

/// Who asks for tries of which the slices do not tell whether they are kept: `Stage` in `kernels/try.h`.
#[derive(Clone, Copy)]
enum Stage {
    ByItsBlocks,
    ToBeAsked,
    ToBeBounded,
    Asked,
}

/// Blocks for each of so many rows that share the device.
fn blocks_a_row(rows: usize) -> usize {
    // Where a row would have few, two on a multiprocessor are better than half as many.
    (BLOCKS / rows).max((2 * BLOCKS / rows).min(4)).max(1)
}

impl<G: Gpu> Rows<G> {
    /// Room for these rows, nothing uploaded yet.
    pub(crate) fn new(gpu: &G, batch: usize, vocab: usize) -> Result<Self> {
        Ok(Self {
            known: Vec::new(),
            params: gpu.allocate(PARAM_WORDS * batch.max(1))?,
            positions: gpu.allocate(batch.max(1))?,
            capacity: batch,
            summaries: Summaries::new(gpu, batch, vocab)?,
            kept: gpu.allocate((batch * slices(vocab)).max(1))?,
            wide: gpu.allocate(WIDE_WORDS * batch.max(1))?,
        })
    }

    /// Whether there is room for such logits.
    pub(crate) fn fit(&self, batch: usize, vocab: usize) -> bool {
        self.capacity >= batch && self.summaries.fit(batch, vocab)
    }

    /// Uploads the rows that have changed: all at first, then those that were replaced or moved.
    fn upload(&mut self, gpu: &G, State { params, positions }: State, vocab: usize) -> Result<()> {
        let few = params.len() <= FEW_ROWS;
        let wanted = params.iter().map(|row| DeviceParams::new(row, vocab, few));
        let wanted = wanted.zip(positions.iter().copied());
        if self.known.is_empty() {
            let all: Vec<_> = wanted.collect();
            let words: Vec<u64> = all.iter().flat_map(|(params, _)| params.words()).collect();
            gpu.upload(&words, &mut self.params, 0)?;
            gpu.upload(positions, &mut self.positions, 0)?;
            self.known = all;
            return Ok(());
        }
        for (row, (wanted, known)) in wanted.zip(&mut self.known).enumerate() {
            if wanted.0 != known.0 {
                gpu.upload(&wanted.0.words(), &mut self.params, row * PARAM_WORDS)?;
            }
            if wanted.1 != known.1 {
                gpu.upload(&[wanted.1], &mut self.positions, row)?;
            }
            *known = wanted;
        }
        Ok(())
    }

    /// Draws one token a row into `ids`, a device address with room for them. Nothing waits.
    ///
    /// # Safety
    ///
    /// The logits must be where they are said to be, there must be room for the ids, and everything must stay there until
    /// the stream has come by. These rows must have been made for as many.
    pub(crate) unsafe fn sample(
        &mut self,
        gpu: &G,
        logits: &Logits,
        ids: u64,
        state: State,
    ) -> Result<()> {
        let kernels = Kernels::of(logits.dtype)?;
        if logits.rows == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for it all.
        let drawn = self
            .upload(gpu, state, logits.vocab)
            .and_then(|()| unsafe { self.launch(gpu, kernels, logits, ids) });
        match drawn {
            Ok(()) => {
                for (_, position) in &mut self.known {
                    *position = position.wrapping_add(1);
                }
            }
            // How far it got is not known: everything is uploaded again next time.
            Err(_) => self.known.clear(),
        }
        drawn
    }

    /// # Safety
    ///
    /// As for [`Rows::sample`]; parameters and positions must have been uploaded.
    unsafe fn launch(
        &mut self,
        gpu: &G,
        kernels: &Kernels,
        logits: &Logits,
        ids: u64,
    ) -> Result<()> {
        let (vocab, rows) = (logits.vocab, logits.rows);
        let address = Argument::Address(logits.address);
        let stride = Argument::I64(logits.stride as i64);
        let params_at = Argument::Address(G::address(&self.params));
        let kept = Argument::Address(G::address(&self.kept));
        let wide = Argument::Address(G::address(&self.wide));
        let known = self.known.iter().map(|(params, _)| params);
        let params = Params {
            memory: &self.params,
            shared: false,
            weighed: known.clone().any(DeviceParams::is_weighed),
            placed: known.clone().any(DeviceParams::is_placed),
        };
        // SAFETY: the caller vouches for the logits, and the summaries fit.
        unsafe {
            self.summaries
                .read(gpu, kernels.slices, logits, params, kept, wide)?
        };
        let tried = known.clone().any(DeviceParams::is_tried);
        let looked_at = match vocab > CAPACITY {
            true => known.filter(|row| row.wants_look()).count(),
            false => 0,
        };
        let drawing = match rows {
            ..=FEW_ROWS => &kernels.few_rows,
            MANY_ROWS.. if gpu.has_room_for_small_blocks() => &kernels.many_rows,
            _ => &kernels.some_rows,
        };
        let draw_by = |after_look: bool, grid: [usize; 2], parts: usize, stage: Stage| {
            let arguments = [
                address,
                stride,
                Argument::U32(vocab as u32),
                params_at,
                Argument::Address(G::address(&self.positions)),
                self.summaries.largest(),
                self.summaries.groups(),
                self.summaries.mass(),
                kept,
                wide,
                Argument::U32(u32::from(after_look)),
                Argument::Address(ids),
                Argument::U32(parts as u32),
                Argument::U32(stage as u32),
            ];
            let (kernel, arguments) = match tried {
                true => (drawing.r#try, &arguments[..]),
                // It has no use for the last two.
                false => (drawing.draw, &arguments[..arguments.len() - 2]),
            };
            // SAFETY: the caller vouches for the logits and the ids, the rest is ours; the arguments are those of `draw_*` and `try_*`.
            unsafe { gpu.launch(kernel, grid, arguments) }
        };
        let draw = |after_look: bool| {
            if !tried || vocab <= CAPACITY {
                draw_by(after_look, [rows, 1], 1, Stage::ByItsBlocks)
            } else if rows <= FEW_ROWS {
                let most = DRAWING_BLOCKS_A_ROW.min(slices(vocab));
                let parts = blocks_a_row(rows).min(most);
                draw_by(after_look, [rows, parts], parts, Stage::ByItsBlocks)
            } else {
                let stage = match rows > BOUNDED_ROWS {
                    true => Stage::ToBeBounded,
                    false => Stage::ToBeAsked,
                };
                draw_by(after_look, [rows, 1], 1, stage)?;
                // The kernel divides them by the rows that have something to ask.
                let blocks = ASKING_BLOCKS.max(rows);
                draw_by(after_look, [blocks, 1], blocks, Stage::Asked)
            }
        };
        if looked_at == 0 {
            return draw(false);
        }
        let all_rows = looked_at == rows;
        let most = if all_rows {
            LOOKING_BLOCKS_A_ROW
        } else {
            MIXED_BLOCKS_A_ROW.min(MIXED_BLOCKS / rows)
        };
        let looking = blocks_a_row(looked_at).min(most).min(slices(vocab)).max(1);
        let arguments = [
            address,
            stride,
            Argument::U32(vocab as u32),
            params_at,
            self.summaries.largest(),
            self.summaries.groups(),
            self.summaries.mass(),
            kept,
            wide,
            Argument::U32(looking as u32),
            Argument::U32(u32::from(all_rows)),
        ];
        // SAFETY: as for `draw`; the arguments are those of `look_*`.
        unsafe { gpu.launch(kernels.look, [rows, looking], &arguments)? };
        draw(true)
    }
}
