//! Softmax and prefix sum of contiguous rows.

use super::{Cuda, address};
use crate::device_params::DeviceParams;
use crate::gpu::launch::{Argument, Gpu, Kernel, Kernels, Logits, Params, Summaries};
use crate::gpu::{BLOCK, Unit, slices};
use crate::ops::contiguous_rows;
use crate::params::SamplingParams;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CudaStorage, DType, Error, Layout, Result, bail};
use half::{bf16, f16};

pub(crate) fn softmax(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match storage.dtype() {
        DType::F32 => softmax_rows::<f32>(storage, layout),
        DType::F16 => softmax_rows::<f16>(storage, layout),
        DType::BF16 => softmax_rows::<bf16>(storage, layout),
        other => bail!("softmax: dtype {other:?} is not one of F32, F16, BF16"),
    }
}

fn softmax_rows<T: CudaDType + DeviceRepr>(
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    /// As `SLICES_PER_WRITER` in kernels/softmax.hip.
    const SLICES_PER_WRITER: usize = 8;
    let device = storage.device();
    let (elements, vocab) = contiguous_rows("softmax", layout)?;
    // SAFETY: the kernels write every element that exists.
    let mut out = unsafe { device.alloc::<T>(elements.len())? };
    if !elements.is_empty() {
        let gpu = Cuda::new(device)?;
        let rows = elements.len() / vocab;
        let plain = SamplingParams::new().resolve().map_err(Error::wrap)?;
        let words = DeviceParams::new(&plain, vocab, false).words();
        let mut params = gpu.allocate(words.len())?;
        gpu.upload(&words, &mut params, 0)?;
        let mut summaries = Summaries::new(&gpu, rows, vocab)?;
        let (logits, _read) = address(&storage.slice, elements, &gpu.stream)?;
        let (to, _written) = out.device_ptr_mut(&gpu.stream);
        let logits = Logits {
            address: logits,
            dtype: storage.dtype(),
            rows,
            vocab,
            stride: vocab,
        };
        let arguments = [
            Argument::Address(logits.address),
            Argument::U32(vocab as u32),
            Argument::F32(plain.scale),
            Argument::F32(plain.inverse),
            summaries.largest(),
            summaries.mass(),
            Argument::Address(to),
        ];
        let (read, softmax) = Kernels::of(logits.dtype)?.softmax;
        let params = Params {
            memory: &params,
            shared: true,
            weighed: true,
            placed: false,
        };
        let writers = rows * slices(vocab).div_ceil(SLICES_PER_WRITER);
        // SAFETY: the logits and the output are where the guards keep them, the rest was made here; the arguments are those
        // of `softmax_*` in kernels/softmax.hip.
        unsafe {
            let nowhere = Argument::Address(0);
            summaries.read(&gpu, read, &logits, params, nowhere, nowhere)?;
            gpu.launch(softmax, [writers, 1], &arguments)?;
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

pub(crate) fn prefix_sum(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    const F32: [&str; 3] = ["scan_chunks_f32", "sum_totals_f32", "add_before_f32"];
    const U32: [&str; 3] = ["scan_chunks_u32", "sum_totals_u32", "add_before_u32"];
    let kernel = |name| Kernel::new(name, Unit::Ops, BLOCK);
    match storage.dtype() {
        DType::F32 => prefix_sum_rows::<f32>(F32.map(kernel), storage, layout),
        DType::U32 => prefix_sum_rows::<u32>(U32.map(kernel), storage, layout),
        other => bail!("prefix-sum: dtype {other:?} is not one of F32, U32"),
    }
}

fn prefix_sum_rows<T: CudaDType + DeviceRepr>(
    [scan_chunks, sum_totals, add_before]: [Kernel; 3],
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    let device = storage.device();
    let (elements, length) = contiguous_rows("prefix-sum", layout)?;
    // SAFETY: the first launch writes every element.
    let mut out = unsafe { device.alloc::<T>(elements.len())? };
    if !elements.is_empty() {
        let gpu = Cuda::new(device)?;
        let rows = elements.len() / length;
        let chunks = rows * length.div_ceil(BLOCK as usize);
        // 4 bytes a chunk; the second launch writes them all.
        let before = gpu.allocate(chunks.div_ceil(2))?;
        let (from, _read) = address(&storage.slice, elements, &gpu.stream)?;
        let (to, _written) = out.device_ptr_mut(&gpu.stream);
        let (from, to) = (Argument::Address(from), Argument::Address(to));
        let before = Argument::Address(Cuda::address(&before));
        let (length, count) = (Argument::U32(length as u32), Argument::U32(rows as u32));
        // SAFETY: the arguments are those of kernels/prefix_sum.hip, the addresses as for the softmax.
        unsafe {
            gpu.launch(scan_chunks, [chunks, 1], &[from, length, to])?;
            let blocks = rows.div_ceil(BLOCK as usize);
            gpu.launch(sum_totals, [blocks, 1], &[to, length, count, before])?;
            gpu.launch(add_before, [chunks, 1], &[length, before, to])?;
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}
