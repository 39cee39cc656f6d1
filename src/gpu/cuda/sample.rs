//! Sampling: the rows of one sampler on one device.

use super::{Cuda, address};
use crate::gpu::launch::{Kernels, Logits};
use crate::gpu::rows::{Rows, State};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, PinnedHostSlice};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, Result};
use std::time::{Duration, Instant};

pub(crate) struct Sampling {
    gpu: Cuda,
    rows: Rows<Cuda>,
    /// Where kernels write ids that are wanted on the host.
    on_host: Option<OnHost>,
}

/// So long the host looks for ids before it waits for the stream; not at all on Windows, whose drivers may keep launches back until
/// somebody waits for them.
const LOOKING: Duration = Duration::from_micros(if cfg!(windows) { 0 } else { 200 });

/// Pinned memory, which has the same address on the device, and where it is: to ask it for that costs a call of the driver each time.
struct OnHost {
    memory: PinnedHostSlice<u32>,
    address: u64,
}

impl OnHost {
    /// Not a token, nor what stands for a row without one.
    const MISSING: u32 = u32::MAX - 1;

    fn new(gpu: &Cuda, batch: usize) -> Result<Self> {
        let context = gpu.stream.context();
        // SAFETY: ids are read after they have been written.
        let mut memory = unsafe { context.alloc_pinned_with_flags(batch.max(1), 0) }.w()?;
        let address = memory.as_mut_ptr().w()? as u64;
        Ok(Self { memory, address })
    }

    fn id(&self, row: usize) -> *mut u32 {
        assert!(row < self.memory.len());
        (self.address as *mut u32).wrapping_add(row)
    }

    /// Before a launch that writes them.
    fn forget(&mut self, batch: usize) {
        for row in 0..batch {
            // SAFETY: it is there, and ours: the last call has seen all that its launch wrote.
            unsafe { self.id(row).write_volatile(Self::MISSING) };
        }
    }

    fn read(&self, row: usize) -> u32 {
        // SAFETY: it is there, and has been written by `forget`. The device writes each id once and as a whole, maybe now.
        unsafe { self.id(row).read_volatile() }
    }

    /// Looks for them until all are there; false if that takes long.
    fn arrive(&self, batch: usize) -> bool {
        let began = Instant::now();
        (0..batch).all(|row| {
            while self.read(row) == Self::MISSING {
                if began.elapsed() > LOOKING {
                    return false;
                }
                std::hint::spin_loop();
            }
            true
        })
    }
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

    /// The same with the ids on the host. The kernels write them there themselves, which is sooner than a copy, and this looks for them
    /// there: the stream would say 2 to 3 µs later that it is done.
    pub(crate) fn sample_to_host(
        &mut self,
        storage: &CudaStorage,
        start: usize,
        shape: RowsOf,
        state: State,
    ) -> Result<Vec<u32>> {
        let batch = shape.0;
        let mut ids = match self.on_host.take() {
            Some(ids) if ids.memory.len() >= batch => ids,
            _ => OnHost::new(&self.gpu, batch)?,
        };
        ids.forget(batch);
        // SAFETY: there is room for the ids, and it stays until they have come or the stream has come by.
        let launched = unsafe { self.launch(storage, start, shape, ids.address, state) };
        if launched.is_err() || !ids.arrive(batch) {
            self.gpu.stream.synchronize().w()?;
        }
        let read = (0..batch).map(|row| ids.read(row)).collect();
        self.on_host = Some(ids);
        launched.map(|()| read)
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
