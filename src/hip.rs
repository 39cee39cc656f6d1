//! AMD GPUs (feature `hip`).
//!
//! Candle has no AMD device, so a GPU is opened here, and a sampler put on it:
//!
//! - [`Sampler::on_hip`](crate::Sampler::on_hip) and [`LogitsProcessor::on_hip`](crate::LogitsProcessor::on_hip) draw the
//!   rows of CPU tensors there;
//! - [`Sampler::sample_device`](crate::Sampler::sample_device) draws from logits that are there already, for engines and
//!   versions of Candle that keep their tensors on an AMD GPU.
//!
//! The tokens are those that the CPU draws for the same seeds, positions and parameters.
//!
//! Building needs ROCm's HIP runtime and headers (5.2 or later; `HIP_PATH` says where they are, if not in `/opt/rocm`), running
//! a program needs the runtime and, when a sampler is first put on a GPU, hipRTC. Without a GPU the program starts, and
//! [`HipDevice::new`] fails:
//!
//! ```
//! use candle_sampler::hip::HipDevice;
//!
//! match HipDevice::new(0) {
//!     Ok(gpu) => println!(
//!         "{}, {}, {} compute units, {} GiB",
//!         gpu.name(),
//!         gpu.target(),
//!         gpu.compute_units(),
//!         gpu.memory() >> 30
//!     ),
//!     Err(error) => println!("no AMD GPU: {error}"),
//! }
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("the feature `hip` needs Linux");

pub use crate::gpu::hip::{DeviceLogits, HipDevice, HipError};
