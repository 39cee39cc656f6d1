//! Sampling on a CUDA device, one JSON line a figure.
//!
//! ```text
//! cargo bench --features cuda --bench gpu                               # synthetic rows
//! ROWS=logits.safetensors cargo bench --features cuda --bench gpu       # real ones too
//! ```
//!
//! Steady state: 20 calls of `Sampler::sample` captured in one graph; a replay's time over 20, median of 60
//! replays. Candle's `LogitsProcessor` and ours: wall time of one call with the token on the host.

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::{LogitsProcessor, Sampler, Sampling, SamplingParams, TopKTopP};
use candle_transformers::generation as candle;
use std::time::Instant;

const CALLS: usize = 20;
const REPLAYS: usize = 60;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// µs of a call in steady state.
fn steady(device: &Device, logits: &Tensor, params: &SamplingParams) -> Result<f64> {
    let Device::Cuda(cuda) = device else {
        unreachable!("a CUDA device")
    };
    let stream = cuda.cuda_stream();
    let batch = logits.dim(0)?;
    let rows: Vec<_> = (0..batch as u64)
        .map(|seed| params.clone().seed(seed))
        .collect();
    let mut sampler = Sampler::new(&rows)?;
    for _ in 0..3 {
        sampler.sample(logits)?;
    }
    device.synchronize()?;
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .expect("a capture");
    let ids = (0..CALLS)
        .map(|_| sampler.sample(logits))
        .collect::<Result<Vec<_>>>()?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .expect("a graph")
        .expect("launches");
    let event = || {
        stream
            .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
            .expect("an event")
    };
    let mut times = Vec::new();
    for replay in 0..REPLAYS + 5 {
        let start = event();
        graph.launch().expect("a replay");
        let end = event();
        end.synchronize().expect("the end");
        let ms = f64::from(start.elapsed_ms(&end).expect("a time"));
        if replay >= 5 {
            times.push(ms * 1e3 / CALLS as f64);
        }
    }
    drop(ids);
    Ok(median(times))
}

/// µs of a call that brings the token to the host.
fn wall(device: &Device, calls: usize, mut call: impl FnMut() -> Result<u32>) -> Result<f64> {
    let mut times = Vec::new();
    for i in 0..calls + 3 {
        device.synchronize()?;
        let start = Instant::now();
        call()?;
        if i >= 3 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(median(times))
}

fn main() -> Result<()> {
    let device = match Device::new_cuda_with_stream(0) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no CUDA device: {error}");
            return Ok(());
        }
    };
    if let Device::Cuda(cuda) = &device {
        // SAFETY: one stream does everything. (A capture cannot wait for events of work before it.)
        unsafe { cuda.disable_event_tracking() };
    }
    let t = SamplingParams::new().temperature(0.8);
    let both = t.clone().top_k(50).top_p(0.9);
    let modes = [
        ("greedy", t.clone().temperature(0.0)),
        ("no filter", t.clone()),
        ("top-k 50", t.clone().top_k(50)),
        ("top-p 0.9", t.clone().top_p(0.9)),
        ("top-k 50, top-p 0.9", both.clone()),
        ("top-k 50, top-p 0.9, joint", both.order(TopKTopP::Joint)),
        ("min-p 0.05", t.clone().min_p(0.05)),
        ("top-p 0.9, T 1.5", t.temperature(1.5).top_p(0.9)),
    ];
    let mut sources = vec![("normal", 151_936, None), ("normal", 32_000, None)];
    let real = std::env::var("ROWS").ok().map(|path| -> Result<Tensor> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        tensors
            .into_values()
            .next()
            .expect("a tensor")
            .to_dtype(DType::F32)
    });
    if let Some(rows) = real.transpose()? {
        sources.push(("real", rows.dim(1)?, Some(rows)));
    }
    for (kind, vocab, rows) in &sources {
        for batch in [1usize, 8, 64, 512] {
            let logits = match rows {
                Some(rows) => {
                    let count = rows.dim(0)?;
                    let places = (0..batch).map(|i| (i % count) as u32);
                    rows.index_select(&Tensor::from_iter(places, &Device::Cpu)?, 0)?
                        .to_device(&device)?
                }
                None => (Tensor::randn(0f32, 1., (batch, *vocab), &device)? * 3.)?,
            };
            for dtype in [DType::F32, DType::BF16] {
                let logits = logits.to_dtype(dtype)?;
                for (mode, params) in &modes {
                    let us = steady(&device, &logits, params)?;
                    println!(
                        r#"{{"what": "sampler", "mode": "{mode}", "rows": "{kind}", "vocab": {vocab}, "dtype": "{}", "batch": {batch}, "us": {us:.2}}}"#,
                        dtype.as_str()
                    );
                }
            }
        }
    }
    let one = match &sources.last().expect("rows").2 {
        Some(rows) => rows.get(1)?.to_device(&device)?,
        None => (Tensor::randn(0f32, 1., 151_936, &device)? * 3.)?,
    };
    let temperature = 0.8;
    macro_rules! processors {
        ($($mode:literal: $variant:ident { $($field:ident: $value:expr),* };)*) => {$(
            let mut theirs = candle::LogitsProcessor::from_sampling(
                1, candle::Sampling::$variant { $($field: $value),* });
            let mut ours = LogitsProcessor::from_sampling(1, Sampling::$variant { $($field: $value),* });
            let candle = wall(&device, 50, || theirs.sample(&one))?;
            let ours = wall(&device, 200, || ours.sample(&one))?;
            println!(
                r#"{{"what": "one row, token on the host", "mode": "{}", "candle_us": {candle:.1}, "ours_us": {ours:.1}}}"#,
                $mode
            );
        )*};
    }
    processors! {
        "argmax": ArgMax {};
        "all": All { temperature: temperature };
        "top-k 50": TopK { k: 50, temperature: temperature };
        "top-p 0.9": TopP { p: 0.9, temperature: temperature };
        "top-k 50, top-p 0.9": TopKThenTopP { k: 50, p: 0.9, temperature: temperature };
    }
    Ok(())
}
