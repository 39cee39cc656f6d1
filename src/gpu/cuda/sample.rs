//! Sampling: what stays in device memory between calls, and the launches.

use super::{Kernels, Summaries, View, grid};
use crate::gpu::{DeviceParams, slices};
use crate::params::RowParams;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, Result, bail};
use half::{bf16, f16};
use std::sync::Arc;

/// A sampler's rows on one device: parameters, positions and workspace, allocated once.
pub(crate) struct Rows {
    device: CudaDevice,
    kernels: Arc<Kernels>,
    /// What the device has, as far as the host knows; a row that differs is uploaded before a launch.
    known: Vec<(DeviceParams, u64)>,
    params: CudaSlice<u64>,
    /// Advanced by the kernels.
    positions: CudaSlice<u64>,
    summaries: Summaries,
}

/// Words of one row's parameters.
const PARAM_WORDS: usize = size_of::<DeviceParams>() / size_of::<u64>();

/// The logits' place in device memory.
pub(crate) struct Logits<'a> {
    pub(crate) storage: &'a CudaStorage,
    pub(crate) start: usize,
    pub(crate) batch: usize,
    pub(crate) vocab: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl Rows {
    /// Room for these rows on `device`, nothing uploaded yet.
    pub(crate) fn new(device: &CudaDevice, batch: usize, vocab: usize) -> Result<Self> {
        // SAFETY: `upload` writes every row before a kernel reads it, because nothing is known.
        unsafe {
            Ok(Self {
                device: device.clone(),
                kernels: Kernels::of(device)?,
                known: Vec::new(),
                params: device.alloc(PARAM_WORDS * batch.max(1))?,
                positions: device.alloc(batch.max(1))?,
                summaries: Summaries::new(device, batch, vocab)?,
            })
        }
    }

    /// Whether these rows can serve such logits.
    pub(crate) fn fits(&self, device: &CudaDevice, batch: usize, vocab: usize) -> bool {
        self.device.id() == device.id()
            && self.positions.len() >= batch
            && self.summaries.largest.len() >= batch * slices(vocab)
    }

    /// Uploads the rows that have changed: all at first, then those that were replaced or moved.
    fn upload(&mut self, params: &[RowParams], positions: &[u64]) -> Result<()> {
        let wanted = params
            .iter()
            .map(DeviceParams::from)
            .zip(positions.iter().copied());
        if self.known.is_empty() {
            self.known = wanted.collect();
            let all: Vec<u64> = self
                .known
                .iter()
                .flat_map(|(params, _)| params.words())
                .collect();
            if !all.is_empty() {
                self.device
                    .memcpy_htod(&all, &mut self.params.slice_mut(..all.len()))?;
                self.device
                    .memcpy_htod(positions, &mut self.positions.slice_mut(..positions.len()))?;
            }
            return Ok(());
        }
        for (row, (wanted, known)) in wanted.zip(&mut self.known).enumerate() {
            if wanted.0 != known.0 {
                let place = row * PARAM_WORDS..(row + 1) * PARAM_WORDS;
                self.device
                    .memcpy_htod(&wanted.0.words(), &mut self.params.slice_mut(place))?;
            }
            if wanted.1 != known.1 {
                self.device
                    .memcpy_htod(&[wanted.1], &mut self.positions.slice_mut(row..row + 1))?;
            }
            *known = wanted;
        }
        Ok(())
    }

    /// Draws one token a row; the ids stay on the device, and nothing waits for them.
    pub(crate) fn sample(
        &mut self,
        logits: Logits<'_>,
        params: &[RowParams],
        positions: &[u64],
    ) -> Result<CudaStorage> {
        self.upload(params, positions)?;
        // SAFETY: the second launch writes every id.
        let mut ids = unsafe { self.device.alloc::<u32>(logits.batch)? };
        if logits.batch > 0 {
            let storage = logits.storage;
            match &storage.slice {
                CudaStorageSlice::F32(data) => self.launch("f32", data, &logits, &mut ids)?,
                CudaStorageSlice::F16(data) => {
                    self.launch("f16", data as &CudaSlice<f16>, &logits, &mut ids)?
                }
                CudaStorageSlice::BF16(data) => {
                    self.launch("bf16", data as &CudaSlice<bf16>, &logits, &mut ids)?
                }
                _ => {
                    use candle_core::backend::BackendStorage;
                    bail!(
                        "sample: logits have dtype {:?}, expected F32, F16 or BF16",
                        storage.dtype()
                    )
                }
            }
        }
        for (_, position) in &mut self.known {
            *position = position.wrapping_add(1);
        }
        Ok(CudaStorage::wrap_cuda_slice(ids, self.device.clone()))
    }

    fn launch<T: DeviceRepr>(
        &mut self,
        dtype: &str,
        data: &CudaSlice<T>,
        logits: &Logits<'_>,
        ids: &mut CudaSlice<u32>,
    ) -> Result<()> {
        let end = logits.start + (logits.batch - 1) * logits.stride + logits.vocab;
        let view = View {
            data: data.slice(logits.start..end),
            rows: logits.batch,
            vocab: logits.vocab,
            stride: logits.stride,
        };
        let (stride, vocab) = (logits.stride as i64, logits.vocab as u32);
        let stream = self.device.cuda_stream();
        let summaries = &mut self.summaries;
        self.kernels
            .launch_slices(&stream, dtype, &view, &self.params, false, summaries)?;

        let function = self.kernels.function(&format!("draw_{dtype}"))?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&view.data).arg(&stride).arg(&vocab);
        launch.arg(&self.params).arg(&mut self.positions);
        launch.arg(&summaries.largest).arg(&mut summaries.mass);
        launch.arg(ids);
        // SAFETY: the arguments are those of `draw_*` in kernels/sample.hip; there are as many ids and positions as rows.
        unsafe { launch.launch(grid(logits.batch)?) }.w()?;
        Ok(())
    }
}
