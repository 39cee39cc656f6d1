//! Sampling: the rows of one sampler on one device.

use super::{Cuda, address};
use crate::gpu::launch::{Kernels, Logits};
use crate::gpu::rows::{Rows, State};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, PinnedHostSlice};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, Result};

pub(crate) struct Sampling {
    gpu: Cuda,
    rows: Rows<Cuda>,
    /// Where kernels write ids that are wanted on the host.
    on_host: Option<OnHost>,
}

/// Pinned memory, and where it is: to ask it for that costs a call of the driver each time.
struct OnHost {
    memory: PinnedHostSlice<u32>,
    address: u64,
}

/// A batch, its vocabulary, and elements from one row to the next.
type RowsOf = (usize, usize, usize);

impl Sampling {
    pub(crate) fn new(device: &CudaDevice, batch: usize, vocab: usize) -> Result<Self> {
        let gpu = Cuda::new(device)?;
        let rows = Rows::new(&gpu, batch, vocab)?;
        Ok(Self {
            gpu,
            rows,
            on_host: None,
        })
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
        shape: RowsOf,
        state: State,
    ) -> Result<CudaStorage> {
        // SAFETY: the last launch writes every id.
        let mut ids = unsafe { self.gpu.device.alloc::<u32>(shape.0)? };
        let stream = self.gpu.stream.clone();
        {
            let (to, _written) = ids.device_ptr_mut(&stream);
            // SAFETY: there is an id for each row, and the guard orders this with other uses of them.
            unsafe { self.launch(storage, start, shape, to, state)? };
        }
        Ok(CudaStorage::wrap_cuda_slice(ids, self.gpu.device.clone()))
    }

    /// The same with the ids on the host. The kernels write them there themselves, which is sooner than a copy, and this waits for
    /// the stream once.
    pub(crate) fn sample_to_host(
        &mut self,
        storage: &CudaStorage,
        start: usize,
        shape: RowsOf,
        state: State,
    ) -> Result<Vec<u32>> {
        let batch = shape.0;
        let ids = match self.on_host.take() {
            Some(ids) if ids.memory.len() >= batch => ids,
            _ => {
                let context = self.gpu.stream.context();
                // SAFETY: ids are read after they have been written.
                let mut memory = unsafe { context.alloc_pinned_with_flags(batch.max(1), 0) }.w()?;
                let address = memory.as_mut_ptr().w()? as u64;
                OnHost { memory, address }
            }
        };
        // Pinned memory has the same address on the device.
        let to = ids.address;
        // SAFETY: there is room for the ids, and it stays until the stream has come by.
        let launched = unsafe { self.launch(storage, start, shape, to, state) };
        self.gpu.stream.synchronize().w()?;
        self.on_host = Some(ids);
        launched?;
        // SAFETY: so many ids have been written there, and nothing writes any more.
        Ok(unsafe { std::slice::from_raw_parts(to as *const u32, batch) }.to_vec())
    }

    /// # Safety
    ///
    /// There must be room for the ids at address `to`, ordered with other uses of it.
    unsafe fn launch(
        &mut self,
        storage: &CudaStorage,
        start: usize,
        (batch, vocab, stride): RowsOf,
        to: u64,
        state: State,
    ) -> Result<()> {
        // Before its address is asked for, which has fewer words for it.
        Kernels::of(storage.dtype())?;
        if batch == 0 {
            return Ok(());
        }
        let Self { gpu, rows, .. } = self;
        let end = start + (batch - 1) * stride + vocab;
        let (logits, _read) = address(&storage.slice, start..end, &gpu.stream)?;
        let logits = Logits {
            address: logits,
            dtype: storage.dtype(),
            rows: batch,
            vocab,
            stride,
        };
        // SAFETY: the range of elements covers every row, the guard orders this with other uses of it, and the caller vouches for
        // the ids.
        unsafe { rows.sample(gpu, &logits, to, state) }
    }
}
