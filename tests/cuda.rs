//! The CUDA backend against the CPU: equal, not close. Skipped, with the reason, where there is no CUDA device.
//!
//! `cargo test --release --features cuda --test cuda -- --nocapture --test-threads 1` prints what was compared.
#![cfg(feature = "cuda")]

mod common;

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::{
    INVALID_TOKEN, LogitsProcessor, Sampler, Sampling, SamplingParams, TopKTopP, ops,
};
use common::oracle::{Filter, Oracle, chi_square};
use common::{batch_of, kinds, mixed, normal, real, rng, row, sources};

/// A device with a stream of its own (which can be captured), or none.
fn gpu() -> Option<Device> {
    match Device::new_cuda_with_stream(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let error = error.to_string();
            println!(
                "skipped: no CUDA device: {}",
                error.lines().next().unwrap_or_default()
            );
            None
        }
    }
}

/// Draws `calls` times on both devices; returns the rows drawn.
fn compare(
    what: &str,
    gpu: &Device,
    logits: &Tensor,
    params: &[SamplingParams],
    calls: usize,
) -> usize {
    let on_gpu = logits.to_device(gpu).expect("a copy");
    let (mut cpu, mut cuda) = (
        Sampler::new(params).expect("valid"),
        Sampler::new(params).expect("valid"),
    );
    for call in 0..calls {
        let want = cpu
            .sample(logits)
            .and_then(|ids| ids.to_vec1::<u32>())
            .expect("CPU ids");
        let got = cuda
            .sample(&on_gpu)
            .and_then(|ids| ids.to_vec1::<u32>())
            .expect("CUDA ids");
        if got != want {
            let row = got
                .iter()
                .zip(&want)
                .position(|(g, w)| g != w)
                .expect("a difference");
            panic!(
                "{what}, call {call}, row {row}: {} on the GPU, {} on the CPU, {:?}",
                got[row], want[row], params[row]
            );
        }
    }
    params.len() * calls
}

#[test]
fn a_million_draws_equal_the_cpu() {
    let Some(gpu) = gpu() else { return };
    // How much of it to run: a tenth is a quick look, 1 the record.
    let share: f64 = std::env::var("SHARE").map_or(0.05, |s| s.parse().expect("a number"));
    let mut drawn = 0;
    for (vocab, calls) in [
        (1, 60),
        (2, 60),
        (111, 60),
        (32_000, 30),
        (128_256, 8),
        (151_936, 8),
        (262_144, 4),
    ] {
        let sources = sources(vocab);
        let mut here = 0;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let sources = sources.to_dtype(dtype).expect("a float type");
            for batch in [1, 2, 13, 64, 512] {
                let logits = batch_of(&sources, batch);
                let params = mixed(batch, vocab);
                let more = if batch < 64 { 4 } else { 1 };
                let calls = ((calls * more * 4) as f64 * share).ceil() as usize;
                here += compare(
                    &format!("{dtype:?} [{batch}, {vocab}]"),
                    &gpu,
                    &logits,
                    &params,
                    calls,
                );
            }
        }
        println!("vocabulary {vocab}: {here} row-draws, 0 mismatches");
        drawn += here;
    }
    println!("{drawn} row-draws in all, 0 mismatches");
    assert!(drawn as f64 >= 1e6 * share);
}

/// More rows than a large GPU draws from at once by blocks of the usual size; the last time also more logits than its cache holds, which are read by a
/// kernel of their own.
#[test]
fn many_rows_equal_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for vocab in [3000, 20_000, 50_304] {
        let logits = batch_of(&sources(vocab), 280);
        let drawn = compare(&vocab.to_string(), &gpu, &logits, &mixed(280, vocab), 1);
        assert_eq!(drawn, 280);
    }
}

#[test]
fn frequencies_pass_chi_square() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    const BATCH: usize = 500;
    let base = Filter {
        temperature: 0.9,
        ..Filter::default()
    };
    for (kind, logits) in kinds(3000, 4) {
        let rows = row(&logits).to_device(&gpu)?.broadcast_as((BATCH, 3000))?;
        for filter in [
            base,
            Filter {
                k: Some(40),
                ..base
            },
            Filter {
                p: Some(0.951),
                ..base
            },
            Filter {
                min_p: Some(0.05),
                ..base
            },
            Filter {
                k: Some(40),
                p: Some(0.81),
                ..base
            },
            Filter {
                k: Some(701),
                p: Some(0.9),
                order: TopKTopP::Joint,
                ..base
            },
        ] {
            let params: Vec<_> = (0..BATCH as u64)
                .map(|s| filter.params().seed(s + 11))
                .collect();
            let mut sampler = Sampler::new(&params)?;
            let mut drawn = Vec::new();
            for _ in 0..200 {
                drawn.extend(sampler.sample_to_vec(&rows)?);
            }
            chi_square(
                &format!("{kind}, {filter:?}"),
                &Oracle::new(&logits, filter),
                &drawn,
            );
        }
    }
    Ok(())
}

#[test]
fn views_padding_and_misalignment() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let logits = batch_of(&sources(1003), 16).to_dtype(dtype)?;
        let params = mixed(16, 1003);
        let want = Sampler::new(&params)?.sample(&logits)?.to_vec1::<u32>()?;
        for left in [0, 1, 3, 8] {
            let around = logits
                .pad_with_zeros(1, left, 10)?
                .pad_with_zeros(0, 1, 2)?
                .to_device(&gpu)?;
            let view = around.narrow(1, left, 1003)?.narrow(0, 1, 16)?;
            let got = Sampler::new(&params)?.sample(&view)?.to_vec1::<u32>()?;
            assert_eq!(got, want, "{dtype:?}, offset {left}");
        }
        let columns = logits.to_device(&gpu)?.t()?.contiguous()?.t()?;
        assert_eq!(
            Sampler::new(&params)?.sample(&columns)?.to_vec1::<u32>()?,
            want
        );
        let one = logits.to_device(&gpu)?.get(3)?;
        assert_eq!(
            Sampler::new(&params[3..4])?
                .sample(&one)?
                .to_vec1::<u32>()?,
            want[3..4]
        );
    }
    Ok(())
}

#[test]
fn a_rows_token_does_not_depend_on_its_batch() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (logits, params) = (
        batch_of(&sources(32_000), 24).to_device(&gpu)?,
        mixed(24, 32_000),
    );
    let want = Sampler::new(&params)?.sample(&logits)?.to_vec1::<u32>()?;
    for first in [0usize, 5, 17] {
        for count in [1, 3, 7] {
            let part = logits.narrow(0, first, count)?;
            let got = Sampler::new(&params[first..first + count])?
                .sample(&part)?
                .to_vec1::<u32>()?;
            assert_eq!(
                got,
                want[first..first + count],
                "rows {first} to {}",
                first + count
            );
        }
    }
    Ok(())
}

#[test]
fn more_elements_than_32_bits_count() -> Result<()> {
    // FI#2937: 32,769 × 131,072
    let Some(gpu) = gpu() else { return Ok(()) };
    let (batch, vocab) = (32_769, 131_072);
    let logits = match Tensor::zeros((batch, vocab), DType::BF16, &gpu) {
        Ok(logits) => logits,
        Err(error) => {
            println!("skipped: 8.6 GB do not fit: {error}");
            return Ok(());
        }
    };
    let params: Vec<_> = (0..batch as u64)
        .map(|seed| SamplingParams::new().seed(seed))
        .collect();
    let got = Sampler::new(&params)?.sample(&logits)?.to_vec1::<u32>()?;
    let flat = Tensor::zeros(vocab, DType::BF16, &Device::Cpu)?.broadcast_as((batch, vocab))?;
    assert_eq!(got, Sampler::new(&params)?.sample(&flat)?.to_vec1::<u32>()?);
    Ok(())
}

/// A captured `sample` must not wait for the device, and its replays must go on as calls would.
#[test]
fn a_graph_replays_successive_calls() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let Device::Cuda(device) = &gpu else {
        unreachable!()
    };
    // SAFETY: one stream does everything. (Events of work before the capture cannot be waited for in it.)
    unsafe { device.disable_event_tracking() };
    let logits = batch_of(&sources(32_000), 40);
    let params = mixed(40, 32_000);
    let mut cpu = Sampler::new(&params)?;
    let mut cuda = Sampler::new(&params)?;
    let on_gpu = logits.to_device(&gpu)?;
    let stream = device.cuda_stream();
    // The first call compiles and uploads.
    assert_eq!(
        cuda.sample(&on_gpu)?.to_vec1::<u32>()?,
        cpu.sample(&logits)?.to_vec1::<u32>()?
    );
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .expect("a capture");
    let ids = cuda.sample(&on_gpu)?;
    // The ids' memory belongs to the graph: each replay frees what the last one left.
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .expect("no call waited")
        .expect("a graph");
    for replay in 0..20 {
        graph.launch().expect("a replay");
        let want = cpu.sample(&logits)?.to_vec1::<u32>()?;
        assert_eq!(ids.to_vec1::<u32>()?, want, "replay {replay}");
    }
    Ok(())
}

#[test]
fn positions_replacements_and_devices_mix() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let logits = batch_of(&sources(5000), 6);
    let on_gpu = logits.to_device(&gpu)?;
    let params = mixed(6, 5000);
    let (mut cpu, mut both) = (Sampler::new(&params)?, Sampler::new(&params)?);
    for step in 0..12 {
        match step {
            3 => {
                cpu.replace_row(2, &params[3].clone().top_k(9))?;
                both.replace_row(2, &params[3].clone().top_k(9))?;
            }
            7 => {
                cpu.set_position(4, 1 << 40);
                both.set_position(4, 1 << 40);
            }
            _ => {}
        }
        let logits_now = if step % 4 == 2 { &logits } else { &on_gpu };
        let got = both.sample(logits_now)?.to_vec1::<u32>()?;
        assert_eq!(got, cpu.sample(&logits)?.to_vec1::<u32>()?, "step {step}");
        assert_eq!(both.position(4), cpu.position(4));
    }
    // A larger vocabulary needs a larger workspace.
    let wider = batch_of(&sources(9000), 6);
    let got = both.sample(&wider.to_device(&gpu)?)?.to_vec1::<u32>()?;
    assert_eq!(got, cpu.sample(&wider)?.to_vec1::<u32>()?);
    Ok(())
}

#[test]
fn bad_rows_are_marked_and_mistakes_are_errors() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mut rows = vec![normal(&mut rng(1), 700, 1.0); 4];
    rows[1][5] = f32::NAN;
    rows[2] = vec![f32::NEG_INFINITY; 700];
    let rows: Vec<Tensor> = rows.iter().map(|r| row(r)).collect();
    let logits = Tensor::stack(&rows, 0)?.to_device(&gpu)?;
    let mut sampler = Sampler::new(&vec![SamplingParams::new(); 4])?;
    let ids = sampler.sample(&logits)?.to_vec1::<u32>()?;
    assert_eq!((ids[1], ids[2]), (INVALID_TOKEN, INVALID_TOKEN));
    assert!(ids[0] < 700 && ids[0] == ids[3]);
    let error = sampler.sample_to_vec(&logits).unwrap_err().to_string();
    assert!(
        error.contains("row 1 cannot be sampled: the logits contain NaN"),
        "{error}"
    );
    let wrong = sampler
        .sample(&logits.to_dtype(DType::F64)?)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("F64"), "{wrong}");
    assert!(sampler.sample(&logits.narrow(0, 0, 3)?).is_err());
    assert!(
        sampler.sample(&logits)?.to_vec1::<u32>().is_ok(),
        "the sampler goes on"
    );
    Ok(())
}

/// Takes all of the device's memory, so only on request (`OUT_OF_MEMORY=1`).
#[test]
fn out_of_memory_is_an_error() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if std::env::var_os("OUT_OF_MEMORY").is_none() {
        println!("skipped: OUT_OF_MEMORY is not set");
        return Ok(());
    }
    let logits = batch_of(&sources(5000), 64).to_device(&gpu)?;
    let mut sampler = Sampler::new(&mixed(64, 5000))?;
    let mut hoard = Vec::new();
    for size in [1 << 30, 1 << 20, 1 << 12, 1 << 9] {
        // SAFETY: nobody reads this memory.
        while let Ok(taken) = unsafe { Tensor::empty(size, DType::U8, &gpu) } {
            hoard.push(taken);
        }
    }
    let error = sampler
        .sample(&logits)
        .expect_err("nothing is left")
        .to_string();
    println!(
        "with {} allocations in the way: {}",
        hoard.len(),
        error.lines().next().unwrap_or_default()
    );
    assert!(error.contains("OUT_OF_MEMORY"), "{error}");
    drop(hoard);
    let want = Sampler::new(&mixed(64, 5000))?.sample(&logits.to_device(&Device::Cpu)?)?;
    assert_eq!(
        sampler.sample(&logits)?.to_vec1::<u32>()?,
        want.to_vec1::<u32>()?,
        "the sampler goes on"
    );
    Ok(())
}

#[test]
fn the_drop_in_stays_on_the_device() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let logits = row(&real()[1]);
    let on_gpu = logits.to_device(&gpu)?;
    let temperature = 0.8;
    for (sampling, params) in [
        (Sampling::ArgMax, SamplingParams::new().temperature(0.0)),
        (
            Sampling::All { temperature },
            SamplingParams::new().temperature(temperature),
        ),
        (
            Sampling::TopP {
                p: 0.9,
                temperature,
            },
            SamplingParams::new().temperature(temperature).top_p(0.9),
        ),
        (
            Sampling::TopKThenTopP {
                k: 50,
                p: 0.9,
                temperature,
            },
            SamplingParams::new()
                .temperature(temperature)
                .top_k(50)
                .top_p(0.9)
                .order(TopKTopP::Joint),
        ),
    ] {
        let mut processor = LogitsProcessor::from_sampling(7, sampling);
        let mut sampler = Sampler::new(&[params.seed(7)])?;
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let want = match dtype {
                DType::F64 => logits.clone(),
                dtype => logits.to_dtype(dtype)?,
            };
            let want = sampler.sample_to_vec(&want)?[0];
            assert_eq!(processor.sample(&on_gpu.to_dtype(dtype)?)?, want);
        }
    }
    let mut gumbel = LogitsProcessor::from_sampling(7, Sampling::GumbelSoftmax { temperature });
    assert!(gumbel.sample(&on_gpu)? < 151_936);
    let mut all = LogitsProcessor::from_sampling(7, Sampling::All { temperature });
    let only = all.sample_f(&on_gpu, |p| {
        p.iter_mut()
            .enumerate()
            .for_each(|(i, p)| *p *= f32::from(i == 9))
    })?;
    assert_eq!(only, 9);
    Ok(())
}

#[test]
fn softmax_and_prefix_sum_equal_the_cpu() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let bits = |t: Tensor| -> Result<Vec<u32>> {
        let values = t
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        // Which NaN it is does not matter.
        Ok(values
            .iter()
            .map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() })
            .collect())
    };
    for vocab in [1, 2, 511, 513, 5000, 151_936] {
        let logits = sources(vocab);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let logits = logits.to_dtype(dtype)?;
            let got = ops::softmax(&logits.to_device(&gpu)?)?;
            assert_eq!(
                bits(got)?,
                bits(ops::softmax(&logits)?)?,
                "{dtype:?}, {vocab}"
            );
        }
        let values = Tensor::rand(0f32, 1., (3, vocab), &Device::Cpu)?;
        let got = ops::prefix_sum(&values.to_device(&gpu)?)?;
        assert_eq!(bits(got)?, bits(ops::prefix_sum(&values)?)?, "{vocab}");
        let values = (values * 1e9)?.to_dtype(DType::U32)?;
        let got = ops::prefix_sum(&values.to_device(&gpu)?)?.to_vec2::<u32>()?;
        assert_eq!(got, ops::prefix_sum(&values)?.to_vec2::<u32>()?, "{vocab}");
    }
    Ok(())
}
