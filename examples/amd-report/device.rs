//! Logits in the GPU's memory, as engines have them: HIP's own calls, on the null stream.

use anyhow::{Result, bail};
use candle_core::{DType, Tensor, WithDType};
use candle_sampler::Sampler;
use candle_sampler::hip::{DeviceLogits, HipDevice};
use half::{bf16, f16};
use hip_sys as _; // links the library; its declarations have an enumeration where these have an i32
use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn hipRuntimeGetVersion(version: *mut c_int) -> c_int;
    fn hipDriverGetVersion(version: *mut c_int) -> c_int;
    fn hipSetDevice(device: c_int) -> c_int;
    fn hipMalloc(memory: *mut *mut c_void, bytes: usize) -> c_int;
    fn hipFree(memory: *mut c_void) -> c_int;
    fn hipMemsetAsync(to: *mut c_void, byte: c_int, bytes: usize, stream: *mut c_void) -> c_int;
    fn hipMemcpyAsync(
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn hipStreamSynchronize(stream: *mut c_void) -> c_int;
}

const TO_DEVICE: c_int = 1;
const TO_HOST: c_int = 2;
const STREAM: *mut c_void = std::ptr::null_mut();

fn check(function: &str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        _ => bail!("{function} failed: hipError_t ({code})"),
    }
}

/// Of the runtime and the driver, where they say.
pub fn versions() -> (Option<i32>, Option<i32>) {
    let ask = |get: unsafe extern "C" fn(*mut c_int) -> c_int| {
        let mut version = 0;
        // SAFETY: an integer to write to.
        (unsafe { get(&mut version) } == 0).then_some(version)
    };
    (ask(hipRuntimeGetVersion), ask(hipDriverGetVersion))
}

/// Memory of the GPU that is current on this thread.
struct Memory(*mut c_void);

impl Memory {
    /// So many bytes, all of them 0xff: a NaN in every dtype.
    fn new(bytes: usize) -> Result<Self> {
        let mut start = std::ptr::null_mut();
        // SAFETY: an address to write to, then as many bytes as were allocated.
        unsafe {
            check("hipMalloc", hipMalloc(&mut start, bytes))?;
            let memory = Self(start);
            check("hipMemset", hipMemsetAsync(start, 0xff, bytes, STREAM))?;
            Ok(memory)
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once. HIP waits for what still uses it.
        unsafe { hipFree(self.0) };
    }
}

/// How rows lie in a buffer, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub offset: usize,
    pub stride: usize,
}

/// Rows of logits on the GPU, and room for their ids.
pub struct Rows {
    description: DeviceLogits,
    ids: Memory,
    _logits: Memory,
}

impl Rows {
    /// Copies `[batch, vocab]` logits there, NaN around each row.
    pub fn new(gpu: &HipDevice, logits: &Tensor, place: Place) -> Result<Self> {
        match logits.dtype() {
            DType::F32 => Self::upload::<f32>(gpu, logits, place),
            DType::F16 => Self::upload::<f16>(gpu, logits, place),
            _ => Self::upload::<bf16>(gpu, logits, place),
        }
    }

    fn upload<T: WithDType>(gpu: &HipDevice, logits: &Tensor, place: Place) -> Result<Self> {
        let (rows, vocab) = logits.dims2()?;
        let Place { offset, stride } = place;
        assert!(stride >= vocab);
        // SAFETY: HIP checks the index.
        check("hipSetDevice", unsafe {
            hipSetDevice(gpu.index() as c_int)
        })?;
        let memory = Memory::new((offset + rows * stride) * size_of::<T>())?;
        let ids = Memory::new(rows * size_of::<u32>())?;
        let start = memory.0.cast::<T>().wrapping_add(offset);
        for row in 0..rows {
            let values = logits.get(row)?.to_vec1::<T>()?;
            let to = start.wrapping_add(row * stride).cast();
            // SAFETY: there is room for the row, and the values stay until it is copied.
            unsafe {
                let (from, bytes) = (values.as_ptr().cast(), size_of_val(&values[..]));
                check(
                    "hipMemcpy",
                    hipMemcpyAsync(to, from, bytes, TO_DEVICE, STREAM),
                )?;
                check("hipMemcpy", hipStreamSynchronize(STREAM))?;
            }
        }
        Ok(Self {
            description: DeviceLogits {
                address: start.cast_const().cast(),
                dtype: T::DTYPE,
                rows,
                vocab,
                stride,
            },
            ids,
            _logits: memory,
        })
    }

    /// Submits a draw.
    pub fn draw(&mut self, sampler: &mut Sampler) -> Result<()> {
        // SAFETY: logits and ids are as described and stay, for HIP waits before it frees them; nobody else writes there.
        Ok(unsafe { sampler.sample_device(self.description, self.ids.0.cast(), STREAM) }?)
    }

    /// Waits for the draws.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the null stream is always there.
        check("hipStreamSynchronize", unsafe {
            hipStreamSynchronize(STREAM)
        })
    }

    /// Waits for the draws, and copies the last one's ids.
    pub fn ids(&self) -> Result<Vec<u32>> {
        let mut ids = vec![0u32; self.description.rows];
        let (to, bytes) = (ids.as_mut_ptr().cast(), size_of_val(&ids[..]));
        // SAFETY: so many are there, and `ids` has room for them and stays.
        unsafe {
            check(
                "hipMemcpy",
                hipMemcpyAsync(to, self.ids.0, bytes, TO_HOST, STREAM),
            )
        }?;
        self.wait()?;
        Ok(ids)
    }
}
