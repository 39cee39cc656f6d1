//! Sampling: the rows of one sampler on one device.

use super::api::{self, Handle};
use super::device::hip;
use super::module::Module;
use super::owned::{Event, Memory, Pinned, Stream};
use super::{Hip, HipDevice};
use crate::gpu::launch::{Kernels, Logits};
use crate::gpu::rows::{Rows, State};
use candle_core::{DType, Result, WithDType};
use std::ffi::c_void;
use std::sync::Arc;

/// Rows of logits in a GPU's memory, for [`Sampler::sample_device`](crate::Sampler::sample_device).
#[derive(Clone, Copy, Debug)]
pub struct DeviceLogits {
    /// Where the first row begins; a multiple of the dtype's size.
    pub address: *const c_void,
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// How many rows.
    pub rows: usize,
    /// Logits in a row, side by side: 1 to 2²⁴.
    pub vocab: usize,
    /// From the beginning of one row to that of the next, in elements.
    pub stride: usize,
}

/// What a sampler has on a device.
pub(crate) struct Sampling {
    // Dropped in this order: device memory first, for which HIP waits until the device is idle.
    workspace: Workspace,
    host: Option<Host>,
    stream: Stream,
}

/// What draws need beside logits, parameters and ids. One draw at a time can use it.
struct Workspace {
    rows: Option<Rows<Hip>>,
    /// When the last draw is done with it, on whichever stream that was.
    used: Event,
    device: HipDevice,
    module: Arc<Module>,
}

/// Room for logits from the host, and for their ids on the way back.
struct Host {
    logits: Memory,
    ids: Memory,
    logits_here: Pinned,
    ids_here: Pinned,
}

impl Sampling {
    /// Fails where nothing could compile kernels; they are compiled when they are first launched.
    pub(crate) fn new(device: &HipDevice) -> Result<Self> {
        let workspace = Workspace {
            rows: None,
            module: Module::of(device)?,
            used: Event::new(device)?,
            device: device.clone(),
        };
        Ok(Self {
            workspace,
            host: None,
            stream: Stream::new(device)?,
        })
    }

    /// Draws one token for each row of `[batch, vocab]` logits on the host, which begin with `data` and are `stride` apart.
    pub(crate) fn sample_host<T: WithDType>(
        &mut self,
        data: &[T],
        shape: (usize, usize, usize),
        state: State,
    ) -> Result<Vec<u32>> {
        if shape.0 == 0 {
            return Ok(Vec::new());
        }
        let ids = self.through_the_device(data, shape, state);
        if ids.is_err() {
            self.workspace.recover(self.stream.handle);
        }
        ids
    }

    fn through_the_device<T: WithDType>(
        &mut self,
        data: &[T],
        (batch, vocab, stride): (usize, usize, usize),
        state: State,
    ) -> Result<Vec<u32>> {
        let Self {
            workspace,
            host,
            stream,
        } = self;
        let row = vocab * size_of::<T>();
        let (logits_bytes, ids_bytes) = (batch * row, batch * size_of::<u32>());
        let host = match host {
            Some(host) if host.fit(logits_bytes, ids_bytes) => host,
            _ => {
                // The old one first: there may be no room for both.
                *host = None;
                host.insert(Host::new(&workspace.device, logits_bytes, ids_bytes)?)
            }
        };
        for i in 0..batch {
            host.logits_here
                .write(i * row, &data[i * stride..][..vocab]);
        }
        let logits = Logits {
            address: host.logits.start.0 as u64,
            dtype: T::DTYPE,
            rows: batch,
            vocab,
            stride: vocab,
        };
        let ids = host.ids.start.0;
        // SAFETY: all four places have room, and nobody touches them before the stream has come by: it is waited for here, or,
        // where something fails, in `recover`. The kernels follow the copy of the logits, and the ids the kernels.
        unsafe {
            stream.copy(
                host.logits.start.0,
                host.logits_here.start.0,
                logits_bytes,
                api::TO_DEVICE,
            )?;
            workspace.draw(stream.handle, &logits, ids as u64, state)?;
            stream.copy(host.ids_here.start.0, ids, ids_bytes, api::TO_HOST)?;
        }
        stream.wait()?;
        Ok(host.ids_here.read_u32(batch))
    }

    /// Draws one token for each row of logits on the device, in the order of `stream`, into `ids`. Nothing waits.
    ///
    /// # Safety
    ///
    /// The logits must be where they are said to be, there must be room for the ids, and both must stay until the stream has
    /// come by. The stream must be alive and the device's.
    pub(crate) unsafe fn sample_device(
        &mut self,
        logits: &DeviceLogits,
        ids: *mut u32,
        stream: *mut c_void,
        state: State,
    ) -> Result<()> {
        let logits = Logits {
            address: logits.address as u64,
            dtype: logits.dtype,
            rows: logits.rows,
            vocab: logits.vocab,
            stride: logits.stride,
        };
        // The caller's mistake, which leaves everything as it is.
        Kernels::of(logits.dtype)?;
        if logits.rows == 0 {
            return Ok(());
        }
        let stream = Handle(stream);
        // SAFETY: the caller vouches for all of it.
        let drawn = unsafe { self.workspace.draw(stream, &logits, ids as u64, state) };
        if drawn.is_err() {
            self.workspace.recover(stream);
        }
        drawn
    }
}

impl Workspace {
    /// # Safety
    ///
    /// As for [`Sampling::sample_device`].
    unsafe fn draw(
        &mut self,
        stream: Handle,
        logits: &Logits,
        ids: u64,
        state: State,
    ) -> Result<()> {
        let gpu = Hip {
            device: self.device.clone(),
            module: self.module.clone(),
            stream,
        };
        let rows = match &mut self.rows {
            Some(rows) if rows.fit(logits.rows, logits.vocab) => rows,
            rows => {
                *rows = None;
                rows.insert(Rows::new(&gpu, logits.rows, logits.vocab)?)
            }
        };
        // SAFETY: the caller vouches for the stream, the logits and the ids; the rows have room, and no draw on another
        // stream uses them at the same time.
        unsafe {
            self.used.precede(stream)?;
            rows.sample(&gpu, logits, ids, state)?;
            self.used.record(stream)?;
        }
        Ok(())
    }

    /// After a failure on `stream`: waits for what was still submitted, if the device answers, and forgets the rows, of which
    /// nobody knows what they hold. The next draw begins afresh; where the device is lost, it fails.
    fn recover(&mut self, stream: Handle) {
        // SAFETY: the stream is alive.
        let _ = unsafe { hip!(self.device, hipStreamSynchronize(stream)) };
        self.rows = None;
    }
}

impl Host {
    fn new(device: &HipDevice, logits: usize, ids: usize) -> Result<Self> {
        Ok(Self {
            logits: Memory::new(device, logits)?,
            ids: Memory::new(device, ids)?,
            logits_here: Pinned::new(device, logits)?,
            ids_here: Pinned::new(device, ids)?,
        })
    }

    fn fit(&self, logits: usize, ids: usize) -> bool {
        self.logits_here.bytes >= logits && self.ids_here.bytes >= ids
    }
}
