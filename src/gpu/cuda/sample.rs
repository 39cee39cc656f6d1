//! Sampling: the rows of one sampler on one device.

use super::{Cuda, address};
use crate::gpu::launch::{Kernels, Logits};
use crate::gpu::rows::Rows;
use crate::params::RowParams;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::DevicePtrMut;
use candle_core::{CudaStorage, Result};

pub(crate) struct Sampling {
    gpu: Cuda,
    rows: Rows<Cuda>,
}

impl Sampling {
    pub(crate) fn new(device: &CudaDevice, batch: usize, vocab: usize) -> Result<Self> {
        let gpu = Cuda::new(device)?;
        let rows = Rows::new(&gpu, batch, vocab)?;
        Ok(Self { gpu, rows })
    }

    /// Whether these rows can serve such logits.
    pub(crate) fn fits(&self, device: &CudaDevice, batch: usize, vocab: usize) -> bool {
        self.gpu.device.id() == device.id() && self.rows.fit(batch, vocab)
    }

    /// Draws one token for each row of `[batch, vocab]` logits, which begin at element `start` and are `stride` apart. The ids
    /// stay on the device, and nothing waits for them.
    pub(crate) fn sample(
        &mut self,
        storage: &CudaStorage,
        start: usize,
        (batch, vocab, stride): (usize, usize, usize),
        params: &[RowParams],
        positions: &[u64],
    ) -> Result<CudaStorage> {
        let Self { gpu, rows } = self;
        Kernels::of(storage.dtype())?;
        // SAFETY: the second launch writes every id.
        let mut ids = unsafe { gpu.device.alloc::<u32>(batch)? };
        if batch > 0 {
            let end = start + (batch - 1) * stride + vocab;
            let (logits, _read) = address(&storage.slice, start..end, &gpu.stream)?;
            let (to, _written) = ids.device_ptr_mut(&gpu.stream);
            let logits = Logits {
                address: logits,
                dtype: storage.dtype(),
                rows: batch,
                vocab,
                stride,
            };
            // SAFETY: the range of elements covers every row, there is an id for each, and the guards order this with other
            // uses of both.
            unsafe { rows.sample(gpu, &logits, to, params, positions)? };
        }
        Ok(CudaStorage::wrap_cuda_slice(ids, gpu.device.clone()))
    }
}
