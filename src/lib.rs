//! Token sampling for [Candle](https://github.com/huggingface/candle): exact, reproducible, fast.
//!
//! Two types, two promises:
//!
//! - [`LogitsProcessor`] is the drop-in: the API of `candle_transformers::generation::LogitsProcessor`,
//!   and on CPU tensors the same token for the same seed, bit for bit. Changing the `use` line is the
//!   whole migration.
//! - [`Sampler`] is the batched one: `[batch, vocab]` logits in, a `u32` tensor `[batch]` out, with
//!   temperature, top-k, top-p, min-p, seed and position for each row. Its tokens follow one integer
//!   definition, independent of batch, place in the batch and hardware.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use candle_sampler::{Sampler, SamplingParams};
//!
//! let logits = Tensor::new(&[[0f32, 4.0, 1.0], [2.0, 2.5, 0.0]], &Device::Cpu)?;
//! let mut sampler = Sampler::new(&[
//!     SamplingParams::new().temperature(0.0),
//!     SamplingParams::new().temperature(0.8).top_k(2).top_p(0.95).seed(42),
//! ])?;
//! let ids = sampler.sample_to_vec(&logits)?;
//! assert_eq!(ids[0], 1);
//! assert!(ids[1] < 2);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! With the feature `cuda` both work on Candle's CUDA tensors, where the logits stay on the GPU. The kernels are
//! compiled at first use by NVRTC, and must agree with the CPU on every bit.
//!
//! With the feature `hip` a sampler can be put on an AMD GPU (module `hip`), by the same kernels, compiled by hipRTC. Candle
//! has no AMD tensors, so it takes CPU tensors, or addresses in the GPU's memory.
//!
//! The numerics are Candle custom [`ops`]; [`mod@reference`] is the definition in plain Rust, and
//! `docs/definition.md` tells it in prose.

#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

mod cpu;
mod definition;
#[cfg(any(test, feature = "cuda", feature = "hip"))]
mod device_params;
mod error;
#[cfg(any(feature = "cuda", feature = "hip"))]
mod gpu;
#[cfg(feature = "hip")]
pub mod hip;
#[cfg(test)]
mod kernel_tests;
mod logits_processor;
pub mod ops;
mod params;
pub mod reference;
mod sampler;

pub use error::{ParamError, RowError, UnsampleableRow};
pub use logits_processor::{LogitsProcessor, Sampling};
pub use params::{SamplingParams, TopKTopP};
pub use sampler::Sampler;

/// What [`Sampler::sample`] returns for a row from which no token can be drawn (NaN, or all −inf).
pub const INVALID_TOKEN: u32 = u32::MAX;

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
