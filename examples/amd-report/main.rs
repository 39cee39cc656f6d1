//! What this crate does on an AMD GPU: a report in Markdown, to be pasted into an issue.
//!
//! - [`machine`]: what the report is of.
//! - [`rows`]: logits of every kind that has misled a sampler, and the parameters to draw from them.
//! - [`check`]: the GPU's tokens against the CPU's.
//! - [`times`]: how long draws take.
//! - [`device`]: logits in the GPU's memory, as engines have them.

mod check;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod machine;
mod rows;
mod times;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_sampler::hip::HipDevice;
use candle_sampler::{Sampler, SamplingParams};
use clap::Parser;
use common::one_line;
use std::process::ExitCode;
use std::time::Instant;

/// Compares an AMD GPU's tokens with the CPU's, times draws, and prints a report in Markdown.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Which GPU, counted from 0.
    #[arg(long, default_value_t = 0)]
    device: usize,

    /// Logits and draws follow from it: the same seed repeats a report.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// A small part of the report, to see whether anything works.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether every token was the CPU's.
fn run(args: &Args) -> Result<bool> {
    let gpu = HipDevice::new(args.device)?;
    println!("# candle-sampler on {}\n", machine::title(&gpu));
    machine::print(&gpu);
    report(args, &gpu).inspect_err(|error| {
        // Also where the report is read.
        println!("\n**Stopped:** {}", one_line(error));
    })
}

fn report(args: &Args, gpu: &HipDevice) -> Result<bool> {
    let sampler = Sampler::new(&[SamplingParams::new()])?;
    let mut sampler = sampler.on_hip(gpu).context("the kernels")?;
    let logits = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    let start = Instant::now();
    sampler.sample(&logits).context("the kernels")?;
    let first = start.elapsed().as_secs_f64();
    sampler.sample(&logits)?;
    let second = (start.elapsed().as_secs_f64() - first) * 1e3;
    println!(
        "| kernels for f32 | first draw {first:.1} s (they are compiled, or read from disk); second {second:.1} ms |"
    );

    let equal = check::run(gpu, args.seed, args.quick)?;
    times::run(gpu, args.seed, args.quick)?;
    Ok(equal)
}
