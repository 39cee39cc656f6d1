//! Drawing one token a row: the op behind [`crate::Sampler`].

use crate::cpu::{self, Logit, Row, Workspace};
use crate::params::{RowParams, SamplingParams};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, WithDType, bail};
use std::cell::RefCell;

/// Draws one token a row, given the rows' parameters and positions: the function that
/// [`crate::Sampler::sample`] applies, without its state. Shapes, dtypes and errors are the same.
pub fn sample(logits: &Tensor, rows: &[SamplingParams], positions: &[u64]) -> Result<Tensor> {
    if rows.len() != positions.len() {
        bail!(
            "sample: {} rows of parameters, but {} positions",
            rows.len(),
            positions.len()
        )
    }
    let mut sampler = crate::Sampler::new(rows)?;
    for (row, &position) in positions.iter().enumerate() {
        sampler.set_position(row, position);
    }
    sampler.sample(logits)
}

/// The largest vocabulary: sums of this many weights fit 63 bits.
const MAX_VOCAB: usize = 1 << 24;

/// Fewer logits than this are not worth another thread.
const LOGITS_PER_THREAD: usize = 1 << 14;

/// What a sampler keeps between calls, besides parameters and positions.
#[derive(Default)]
pub(crate) struct Scratch {
    /// One a thread.
    cpu: Vec<Workspace>,
    #[cfg(feature = "cuda")]
    cuda: Option<Box<crate::gpu::cuda::Sampling>>,
    /// Where the host's rows are drawn, if not on the CPU.
    #[cfg(feature = "hip")]
    pub(crate) hip: Option<crate::gpu::hip::Sampling>,
}

pub(crate) struct Sample<'a> {
    params: &'a [RowParams],
    positions: &'a [u64],
    // Candle hands ops out by shared reference.
    scratch: RefCell<&'a mut Scratch>,
}

impl<'a> Sample<'a> {
    pub(crate) fn new(
        params: &'a [RowParams],
        positions: &'a [u64],
        scratch: &'a mut Scratch,
    ) -> Self {
        let scratch = RefCell::new(scratch);
        Self {
            params,
            positions,
            scratch,
        }
    }

    /// (batch, vocab, elements from one row to the next)
    fn shape(&self, layout: &Layout) -> Result<(usize, usize, usize)> {
        let (batch, vocab, stride) = match (layout.dims(), layout.stride()) {
            (&[vocab], _) => (1, vocab, vocab),
            (&[batch, vocab], &[stride, _]) => (batch, vocab, stride),
            (dims, _) => {
                bail!("sample: logits have shape {dims:?}, expected [batch, vocab] or [vocab]")
            }
        };
        self.check(batch, vocab)?;
        Ok((batch, vocab, stride))
    }

    fn check(&self, batch: usize, vocab: usize) -> Result<()> {
        if batch != self.params.len() {
            bail!(
                "sample: the sampler has {} rows, the logits {batch}",
                self.params.len()
            )
        }
        if !(1..=MAX_VOCAB).contains(&vocab) {
            bail!("sample: the vocabulary has {vocab} tokens, expected 1 to {MAX_VOCAB}")
        }
        Ok(())
    }

    fn host_rows<T: Logit + WithDType>(&self, data: &[T], layout: &Layout) -> Result<Vec<u32>> {
        let (batch, vocab, stride) = self.shape(layout)?;
        let data = &data[layout.start_offset()..];
        let scratch = &mut **self.scratch.borrow_mut();
        #[cfg(feature = "hip")]
        if let Some(hip) = &mut scratch.hip {
            return hip.sample_host(data, (batch, vocab, stride), self.state());
        }
        let workspaces = &mut scratch.cpu;
        let threads = (batch * vocab / LOGITS_PER_THREAD).clamp(1, rayon::current_num_threads());
        if workspaces.len() < threads {
            workspaces.resize_with(threads, Workspace::default);
        }
        let row = |i| Row {
            logits: &data[i * stride..][..vocab],
            params: &self.params[i],
            position: self.positions[i],
        };
        let mut ids = vec![0; batch];
        cpu::sample_batch(row, &mut ids, &mut workspaces[..threads]);
        Ok(ids)
    }

    #[cfg(any(feature = "cuda", feature = "hip"))]
    fn state(&self) -> crate::gpu::State<'_> {
        crate::gpu::State {
            params: self.params,
            positions: self.positions,
        }
    }

    /// The op on rows that no tensor holds: they and the ids are in the memory of an AMD GPU.
    ///
    /// # Safety
    ///
    /// As for [`crate::Sampler::sample_device`].
    #[cfg(feature = "hip")]
    pub(crate) unsafe fn hip_rows(
        &self,
        logits: &crate::hip::DeviceLogits,
        ids: *mut u32,
        stream: *mut std::ffi::c_void,
    ) -> Result<()> {
        self.check(logits.rows, logits.vocab)?;
        if logits.rows > 0 && (logits.address.is_null() || ids.is_null()) {
            bail!("sample: the address of the logits or of the ids is null")
        }
        let hip = &mut self.scratch.borrow_mut().hip;
        let Some(hip) = hip else {
            bail!("sample: the sampler is on no AMD GPU (Sampler::on_hip puts it there)")
        };
        // SAFETY: the caller vouches for the addresses and the stream.
        unsafe { hip.sample_device(logits, ids, stream, self.state()) }
    }
}

impl CustomOp1 for Sample<'_> {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ids = match storage {
            CpuStorage::F32(data) => self.host_rows(data, layout)?,
            CpuStorage::F16(data) => self.host_rows(data, layout)?,
            CpuStorage::BF16(data) => self.host_rows(data, layout)?,
            other => bail!(
                "sample: logits have dtype {:?}, expected F32, F16 or BF16",
                other.dtype()
            ),
        };
        let shape = Shape::from(ids.len());
        Ok((CpuStorage::U32(ids), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda(storage, layout, |sampling, start, shape| {
            let ids = sampling.sample(storage, start, shape, self.state())?;
            Ok((ids, Shape::from(shape.0)))
        })
    }
}

#[cfg(feature = "cuda")]
impl Sample<'_> {
    /// The op, with the ids on the host.
    pub(crate) fn cuda_to_host(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<Vec<u32>> {
        self.on_cuda(storage, layout, |sampling, start, shape| {
            sampling.sample_to_host(storage, start, shape, self.state())
        })
    }

    /// Calls `draw` with the rows on the storage's device, where the logits begin, and their shape.
    fn on_cuda<R>(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
        draw: impl FnOnce(&mut crate::gpu::cuda::Sampling, usize, (usize, usize, usize)) -> Result<R>,
    ) -> Result<R> {
        use crate::gpu::cuda::Sampling;
        let shape @ (batch, vocab, _) = self.shape(layout)?;
        let device = storage.device();
        let sampling = &mut self.scratch.borrow_mut().cuda;
        let sampling = match sampling {
            Some(sampling) if sampling.fits(device, batch, vocab) => sampling,
            _ => sampling.insert(Box::new(Sampling::new(device, batch, vocab)?)),
        };
        draw(sampling, layout.start_offset(), shape)
    }
}

/// Row `row` of `[batch, vocab]` logits, or the only one of `[vocab]`.
pub(crate) fn row_of(logits: &Tensor, row: usize) -> Result<Tensor> {
    match logits.rank() {
        1 => Ok(logits.clone()),
        2 => logits.get(row),
        _ => Err(Error::msg("logits have neither one dimension nor two")),
    }
}
