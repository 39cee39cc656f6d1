//! Softmax and prefix sum of contiguous rows.

use super::{Kernels, Summaries, View, grid};
use crate::gpu::{BLOCK, DeviceParams, slices};
use crate::ops::contiguous_rows;
use crate::params::SamplingParams;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, Error, Layout, Result, bail};

pub(crate) fn softmax(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match &storage.slice {
        CudaStorageSlice::F32(data) => softmax_rows("f32", data, storage.device(), layout),
        CudaStorageSlice::F16(data) => softmax_rows("f16", data, storage.device(), layout),
        CudaStorageSlice::BF16(data) => softmax_rows("bf16", data, storage.device(), layout),
        _ => bail!(
            "softmax: dtype {:?} is not one of F32, F16, BF16",
            storage.dtype()
        ),
    }
}

fn softmax_rows<T: CudaDType + DeviceRepr>(
    dtype: &str,
    data: &CudaSlice<T>,
    device: &CudaDevice,
    layout: &Layout,
) -> Result<CudaStorage> {
    /// As `SLICES_PER_WRITER` in kernels/softmax.hip.
    const SLICES_PER_WRITER: usize = 8;
    let (elements, last) = contiguous_rows("softmax", layout)?;
    // SAFETY: the kernels write every element that exists.
    let mut out = unsafe { device.alloc::<T>(elements.len())? };
    if elements.is_empty() {
        return Ok(CudaStorage::wrap_cuda_slice(out, device.clone()));
    }
    let kernels = Kernels::of(device)?;
    let stream = device.cuda_stream();
    let rows = elements.len() / last;
    let data = data.slice(elements);
    let mut summaries = Summaries::new(device, rows, last)?;
    let plain = SamplingParams::new().resolve().map_err(Error::wrap)?;
    let words = DeviceParams::from(&plain).words();
    let mut params = device.alloc_zeros::<u64>(words.len())?;
    device.memcpy_htod(&words, &mut params)?;
    let logits = View {
        data,
        rows,
        vocab: last,
        stride: last,
    };
    kernels.launch_slices(&stream, dtype, &logits, &params, true, &mut summaries)?;

    let vocab = last as u32;
    let (scale, inverse) = (plain.scale, plain.inverse);
    let function = kernels.function(&format!("softmax_{dtype}"))?;
    let mut launch = stream.launch_builder(&function);
    launch
        .arg(&logits.data)
        .arg(&vocab)
        .arg(&scale)
        .arg(&inverse);
    launch.arg(&summaries.largest).arg(&summaries.mass);
    launch.arg(&mut out);
    // SAFETY: the arguments are those of `softmax_*` in kernels/softmax.hip.
    unsafe { launch.launch(grid(rows * slices(last).div_ceil(SLICES_PER_WRITER))?) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

pub(crate) fn prefix_sum(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match &storage.slice {
        CudaStorageSlice::F32(data) => prefix_sum_rows("f32", data, storage.device(), layout),
        CudaStorageSlice::U32(data) => prefix_sum_rows("u32", data, storage.device(), layout),
        _ => bail!(
            "prefix-sum: dtype {:?} is not one of F32, U32",
            storage.dtype()
        ),
    }
}

fn prefix_sum_rows<T: CudaDType + DeviceRepr>(
    dtype: &str,
    data: &CudaSlice<T>,
    device: &CudaDevice,
    layout: &Layout,
) -> Result<CudaStorage> {
    let (elements, last) = contiguous_rows("prefix-sum", layout)?;
    // SAFETY: the first launch writes every element.
    let mut out = unsafe { device.alloc::<T>(elements.len())? };
    if elements.is_empty() {
        return Ok(CudaStorage::wrap_cuda_slice(out, device.clone()));
    }
    let kernels = Kernels::of(device)?;
    let stream = device.cuda_stream();
    let rows = elements.len() / last;
    let data = data.slice(elements);
    let chunks = last.div_ceil(BLOCK as usize);
    // SAFETY: the second launch writes every element.
    let mut before = unsafe { device.alloc::<T>(rows * chunks)? };
    let (length, count) = (last as u32, rows as u32);

    let function = kernels.function(&format!("scan_chunks_{dtype}"))?;
    let mut launch = stream.launch_builder(&function);
    launch.arg(&data).arg(&length).arg(&mut out);
    // SAFETY: the arguments are those of `scan_chunks_*` in kernels/prefix_sum.hip.
    unsafe { launch.launch(grid(rows * chunks)?) }.w()?;

    let function = kernels.function(&format!("sum_totals_{dtype}"))?;
    let mut launch = stream.launch_builder(&function);
    launch.arg(&out).arg(&length).arg(&count).arg(&mut before);
    // SAFETY: the arguments are those of `sum_totals_*`.
    unsafe { launch.launch(grid(rows.div_ceil(BLOCK as usize))?) }.w()?;

    let function = kernels.function(&format!("add_before_{dtype}"))?;
    let mut launch = stream.launch_builder(&function);
    launch.arg(&length).arg(&before).arg(&mut out);
    // SAFETY: the arguments are those of `add_before_*`.
    unsafe { launch.launch(grid(rows * chunks)?) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}
