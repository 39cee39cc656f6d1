//! NVIDIA GPUs, through Candle's `cuda` device: its context, its stream, its allocator.
//!
//! - this file: the driver that carries out launch plans.
//! - [`module`]: the kernels compiled and loaded, once for each device.
//! - [`sample`] and [`ops`]: from Candle's storage to a plan, and back.

mod module;
mod ops;
mod sample;

pub(crate) use ops::{prefix_sum, softmax};
pub(crate) use sample::Sampling;

use super::BLOCK;
use super::launch::{Argument, Gpu, Kernel, checked};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, SyncOnDrop, sys,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{Result, bail};
use module::{Function, Module};
use std::ops::Range;
use std::sync::Arc;

/// Lanes of a wave (a warp).
const WAVE: u32 = 32;

/// A device with its kernels.
pub(crate) struct Cuda {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<Module>,
}

impl Cuda {
    pub(crate) fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            stream: device.cuda_stream(),
            module: Module::of(device)?,
        })
    }
}

/// Memory that one stream alone uses, so that its address is all that launches need.
pub(crate) struct Memory {
    words: CudaSlice<u64>,
    address: u64,
}

impl Gpu for Cuda {
    type Memory = Memory;

    fn wave(&self) -> u32 {
        WAVE
    }

    fn has_room_for_small_blocks(&self) -> bool {
        self.module.has_room_for_small_blocks()
    }

    fn cache(&self) -> Option<usize> {
        Some(self.module.cache)
    }

    fn allocate(&self, words: usize) -> Result<Memory> {
        // SAFETY: kernels and uploads write before anything is read.
        let words = unsafe { self.device.alloc::<u64>(words)? };
        let address = words.device_ptr(&self.stream).0;
        Ok(Memory { words, address })
    }

    fn address(memory: &Memory) -> u64 {
        memory.address
    }

    fn upload(&self, words: &[u64], memory: &mut Memory, at: usize) -> Result<()> {
        let mut place = memory.words.slice_mut(at..at + words.len());
        self.device.memcpy_htod(words, &mut place)
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        let [columns, rows] = checked(grid, (1 << 31) - 1)?;
        let Function { function, alone } = self.module.function(kernel)?;
        let early = self.module.launches_early;
        // The kernels wait for the launch before by themselves (`wait_for_last_launch` in kernels/portable.h), so that this one's blocks
        // may begin while that one's last run. Large ones, as those that draw, would all be put on the first multiprocessors that have
        // room: where there is one for each, they ask for so much shared memory that each gets one.
        let apart = kernel.threads == BLOCK && grid[0] * grid[1] <= self.module.multiprocessors;
        let begin_early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let mut attributes = [begin_early];
        let config = sys::CUlaunchConfig {
            gridDimX: columns,
            gridDimY: rows,
            gridDimZ: 1,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: if early && apart { alone } else { 0 },
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(early),
        };
        let mut values: Vec<_> = arguments.iter().map(Argument::value).collect();
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: the caller vouches for the arguments, which CUDA copies; stream and function are alive.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function.cu_function(),
                values.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .w()
    }
}

/// Where these elements of a storage of floats begin. What is launched while the guard lives is ordered with the other
/// uses of the storage.
fn address<'a>(
    data: &'a CudaStorageSlice,
    elements: Range<usize>,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    fn of<'a, T>(
        data: &'a CudaSlice<T>,
        elements: Range<usize>,
        stream: &'a CudaStream,
    ) -> (u64, SyncOnDrop<'a>) {
        data.slice(elements).view_ptr(stream)
    }
    Ok(match data {
        CudaStorageSlice::F32(data) => of(data, elements, stream),
        CudaStorageSlice::F16(data) => of(data, elements, stream),
        CudaStorageSlice::BF16(data) => of(data, elements, stream),
        CudaStorageSlice::U32(data) => of(data, elements, stream),
        _ => bail!("no kernel reads this dtype"),
    })
}
