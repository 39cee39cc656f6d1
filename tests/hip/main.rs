//! The HIP backend, driven from end to end without an AMD GPU: see [`standin`].
//!
//! - [`devices`]: what a GPU says of itself, and what is said where there is none.
//! - [`tokens`]: rows of the host: the CPU's tokens.
//! - [`addresses`]: rows in the GPU's memory.
//! - [`faults`]: every call of HIP fails once.
//! - [`kernels`]: compiling them, and keeping them on disk.
//! - [`example`]: the example program.
#![cfg(feature = "hip")]

mod addresses;
#[path = "../common/mod.rs"]
mod common;
mod devices;
mod example;
mod faults;
mod kernels;
mod library;
mod standin;
mod tokens;
