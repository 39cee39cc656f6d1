//! AMD GPUs, through HIP.
//!
//! - this file: the driver that carries out launch plans.
//! - [`api`]: HIP's functions and its errors.
//! - [`device`]: a GPU.
//! - [`owned`]: its memory, streams and events.
//! - [`module`]: the kernels compiled and loaded, once for each device.
//! - [`sample`]: from the host's rows, or from an address, to a plan, and back.

mod api;
mod device;
mod module;
mod owned;
mod sample;

pub use api::HipError;
pub use device::HipDevice;
pub use sample::DeviceLogits;
pub(crate) use sample::Sampling;

use super::launch::{Argument, Gpu, Kernel, checked};
use api::Handle;
use candle_core::Result;
use device::hip;
use module::Module;
use owned::Memory;
use std::sync::Arc;

/// A device with its kernels, and the stream on which they run.
#[derive(Clone)]
struct Hip {
    device: HipDevice,
    module: Arc<Module>,
    /// Alive for as long as this is used.
    stream: Handle,
}

impl Gpu for Hip {
    type Memory = Memory;

    fn wave(&self) -> u32 {
        self.device.wave_size()
    }

    /// A compute unit has 64 KiB, or two share 128: for one block each, of whatever size.
    fn has_room_for_small_blocks(&self) -> bool {
        false
    }

    /// Not measured.
    fn cache(&self) -> Option<usize> {
        None
    }

    fn allocate(&self, words: usize) -> Result<Memory> {
        Ok(Memory::new(&self.device, words * size_of::<u64>())?)
    }

    fn address(memory: &Memory) -> u64 {
        memory.start.0 as u64
    }

    fn upload(&self, words: &[u64], memory: &mut Memory, at: usize) -> Result<()> {
        let to = memory.start.offset(at * size_of::<u64>());
        // SAFETY: `memory` has room for these words from `at` on. HIP documents copies as synchronous where the host's memory
        // is not pinned: it has read the words when it returns.
        unsafe {
            hip!(
                self.device,
                hipMemcpyAsync(
                    to.0,
                    words.as_ptr().cast(),
                    size_of_val(words),
                    api::TO_DEVICE,
                    self.stream
                )
            )
        }?;
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        // HIP counts the threads of a dimension in 32 bits.
        let [columns, rows] = checked(grid, u32::MAX / kernel.threads)?;
        let function = self.module.function(kernel)?;
        let mut values: Vec<_> = arguments.iter().map(Argument::value).collect();
        let none = std::ptr::null_mut();
        // SAFETY: the caller vouches for the arguments, which HIP copies; the stream is alive.
        unsafe {
            hip!(
                self.device,
                hipModuleLaunchKernel(
                    function,
                    columns,
                    rows,
                    1,
                    kernel.threads,
                    1,
                    1,
                    0,
                    self.stream,
                    values.as_mut_ptr(),
                    none
                )
            )
        }?;
        Ok(())
    }
}
