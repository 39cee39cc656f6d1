//! Text generation with Qwen2, Qwen2.5 and Qwen3 models, sampled by candle-sampler.
//!
//! - [`args`]: the command line.
//! - [`source`]: where the model is.
//! - [`model`]: loading it, and how it wants to be asked.
//! - [`choose`]: who chooses the next token, candle-sampler or Candle.
//! - [`generate`]: the loop: forward, penalty, sample, print; and what it took.

mod args;
mod choose;
#[path = "../common/mod.rs"]
mod common;
mod generate;
mod model;
mod source;

use anyhow::{Context, Result};
use args::{Args, DeviceKind};
use candle_core::Device;
use clap::Parser;
use common::one_line;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    args.sampling()?.validate().context("the sampling flags")?;
    let stop = stop_on_ctrl_c()?;
    let _trace = args.tracing.then(|| {
        use tracing_subscriber::prelude::*;
        let (layer, guard) = tracing_chrome::ChromeLayerBuilder::new().build();
        tracing_subscriber::registry().with(layer).init();
        guard
    });

    let device = device(args.device())?;
    let mut chooser = choose::Chooser::new(args, &device)?;
    let (mut model, tokenizer) = model::load(args, &device)?;
    chooser.warm_up(model.dtype(), &device)?;
    let prompt = model.prompt(args);
    let summary = generate::generate(
        args,
        &mut model,
        &tokenizer,
        &mut chooser,
        &prompt,
        &device,
        &stop,
    )?;
    summary.print(args.stats);
    Ok(())
}

/// The first Ctrl-C lets the token in progress finish; a second one ends the program at once.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// Where the model runs.
fn device(kind: DeviceKind) -> Result<Device> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda if !cfg!(feature = "cuda") => {
            anyhow::bail!("--device cuda: this build knows no GPU (add --features cuda to cargo's)")
        }
        DeviceKind::Cuda => Device::new_cuda(0)
            .context("--device cuda: cannot open a CUDA device (try --device cpu)"),
        DeviceKind::Auto if candle_core::utils::cuda_is_available() => Ok(Device::new_cuda(0)?),
        // Candle has no AMD device: there the model runs on the CPU, and only the sampler on the GPU.
        DeviceKind::Auto | DeviceKind::Hip => Ok(Device::Cpu),
    }
}
