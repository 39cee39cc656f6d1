//! Rows of the host, drawn on a GPU: the CPU's tokens.

use crate::common::{batch_of, mixed, normal, rng, row, sources};
use crate::library::{calls_of, current_device, live, set_device};
use crate::standin::{Layout, outside};
use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::hip::HipDevice;
use candle_sampler::{INVALID_TOKEN, LogitsProcessor, Sampler, Sampling, SamplingParams, TopKTopP};

fn gpus() -> [HipDevice; 2] {
    [0, 1].map(|index| HipDevice::new(index).expect("it is there"))
}

pub fn ids(sampler: &mut Sampler, logits: &Tensor) -> Result<Vec<u32>> {
    sampler.sample(logits)?.to_vec1()
}

/// Draws on the CPU and on a GPU, so many times.
fn equal(gpu: &HipDevice, logits: &Tensor, params: &[SamplingParams], calls: usize) -> Result<()> {
    let (mut cpu, mut hip) = (Sampler::new(params)?, Sampler::new(params)?.on_hip(gpu)?);
    for call in 0..calls {
        let (want, got) = (ids(&mut cpu, logits)?, ids(&mut hip, logits)?);
        assert_eq!(got.len(), want.len());
        for (row, (got, want)) in got.iter().zip(&want).enumerate() {
            let (target, params) = (gpu.target(), &params[row]);
            assert_eq!(
                got, want,
                "{target}, {logits:?}, call {call}, row {row}: {params:?}"
            );
        }
    }
    Ok(())
}

/// Queues that do nothing before somebody waits, and queues that get ahead in three ways.
pub const ORDERS: [&[(&str, &str)]; 4] = [
    &[],
    &[("STANDIN_SEED", "1")],
    &[("STANDIN_SEED", "2")],
    &[("STANDIN_SEED", "3")],
];

#[test]
fn of_all_filters_and_dtypes() -> Result<()> {
    let setup = (Layout::Together, ORDERS[1]);
    if outside("tokens::of_all_filters_and_dtypes", &[setup]) {
        return Ok(());
    }
    for (vocab, batch) in [(1, 11), (513, 11), (3000, 22), (40_000, 3), (600, 270)] {
        let sources = sources(vocab);
        // Not always from the first filter on.
        let params = mixed(batch + 7, vocab).split_off(7);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let logits = batch_of(&sources, batch).to_dtype(dtype)?;
            for gpu in gpus() {
                equal(&gpu, &logits, &params, 1 + usize::from(vocab < 1000))?;
            }
        }
    }
    assert_eq!(
        live(),
        12,
        "the kernels of two GPUs for three dtypes stay, for few rows and for some"
    );
    Ok(())
}

#[test]
fn of_batches_of_one_and_none() -> Result<()> {
    let setup = (Layout::Apart, ORDERS[2]);
    if outside("tokens::of_batches_of_one_and_none", &[setup]) {
        return Ok(());
    }
    let sources = sources(2000);
    for (i, params) in mixed(11, 2000).into_iter().enumerate() {
        let (gpu, logits) = (&gpus()[i % 2], sources.get(i % 10)?);
        let params = [params];
        equal(gpu, &logits, &params, 2)?;
        equal(gpu, &logits.unsqueeze(0)?, &params, 1)?;
    }
    let none = Tensor::zeros((0, 2000), DType::F32, &Device::Cpu)?;
    equal(&gpus()[0], &none, &[], 2)
}

#[test]
fn of_views() -> Result<()> {
    if outside("tokens::of_views", &[(Layout::Together, ORDERS[0])]) {
        return Ok(());
    }
    let (rows, vocab) = (5, 1003);
    let params = mixed(rows, vocab);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let logits = batch_of(&sources(vocab), rows).to_dtype(dtype)?;
        for (gpu, left) in gpus().iter().zip([1, 4]) {
            let around = logits
                .pad_with_zeros(1, left, 10)?
                .pad_with_zeros(0, 1, 2)?;
            let inside = around.narrow(1, left, vocab)?.narrow(0, 1, rows)?;
            equal(gpu, &inside, &params, 1)?;
            equal(gpu, &logits.t()?.contiguous()?.t()?, &params, 1)?;
            let often = logits.narrow(0, 4, 1)?.broadcast_as((rows, vocab))?;
            equal(gpu, &often, &params, 1)?;
        }
    }
    Ok(())
}

/// Whatever the queues do, with another vocabulary in between, and the rows changing hands.
#[test]
fn of_changing_rows_in_any_order_of_execution() -> Result<()> {
    let setups = ORDERS.map(|order| (Layout::Apart, order));
    if outside(
        "tokens::of_changing_rows_in_any_order_of_execution",
        &setups,
    ) {
        return Ok(());
    }
    let (logits, wider) = (batch_of(&sources(2000), 4), batch_of(&sources(3000), 4));
    let params = mixed(6, 2000);
    for gpu in gpus() {
        let mut cpu = Sampler::new(&params[2..])?;
        let mut hip = Sampler::new(&params[2..])?.on_hip(&gpu)?;
        for step in 0..8 {
            for sampler in [&mut cpu, &mut hip] {
                match step {
                    2 => sampler.replace_row(2, &params[3].clone().top_k(9))?,
                    4 => sampler.set_position(3, 1 << 40),
                    5 => sampler.set_position(0, u64::MAX),
                    7 => sampler.replace_row(0, &params[1])?,
                    _ => (),
                }
            }
            let logits = if step % 4 == 3 { &wider } else { &logits };
            assert_eq!(
                ids(&mut hip, logits)?,
                ids(&mut cpu, logits)?,
                "step {step}"
            );
            for row in 0..4 {
                assert_eq!(hip.position(row), cpu.position(row));
            }
        }
        // It can go to the other one.
        let mut hip = hip.on_hip(&gpus()[1 - gpu.index()])?;
        assert_eq!(ids(&mut hip, &logits)?, ids(&mut cpu, &logits)?);
    }
    assert_eq!(live(), 2);
    Ok(())
}

#[test]
fn are_not_drawn_from_bad_rows() -> Result<()> {
    let setup = (Layout::Together, ORDERS[3]);
    if outside("tokens::are_not_drawn_from_bad_rows", &[setup]) {
        return Ok(());
    }
    let mut rows = vec![normal(&mut rng(1), 700, 1.0); 4];
    rows[1][5] = f32::NAN;
    rows[2] = vec![f32::NEG_INFINITY; 700];
    let logits = Tensor::new(rows, &Device::Cpu)?;
    let params = vec![SamplingParams::new(); 4];
    for gpu in gpus() {
        let mut hip = Sampler::new(&params)?.on_hip(&gpu)?;
        let want = ids(&mut Sampler::new(&params)?, &logits)?;
        assert_eq!(want[1..3], [INVALID_TOKEN; 2]);
        assert_eq!(ids(&mut hip, &logits)?, want);
        let mut fails = |logits: &Tensor, expected: &str| {
            let error = hip.sample_to_vec(logits).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
            hip.position(3)
        };
        let nan = "row 1 cannot be sampled: the logits contain NaN";
        assert_eq!(fails(&logits, nan), 2, "the others were drawn");
        let few = "the sampler has 4 rows, the logits 2";
        assert_eq!(fails(&logits.narrow(0, 1, 2)?, few), 2);
        let wide = "expected F32, F16 or BF16";
        assert_eq!(fails(&logits.to_dtype(DType::F64)?, wide), 2);
    }
    Ok(())
}

#[test]
fn of_the_drop_in() -> Result<()> {
    if outside("tokens::of_the_drop_in", &[(Layout::Apart, ORDERS[0])]) {
        return Ok(());
    }
    let logits = row(&normal(&mut rng(3), 3000, 3.0));
    let (p, k, temperature) = (0.9, 50, 0.8);
    let plain = SamplingParams::new().temperature(temperature).seed(7);
    let joint = plain.clone().top_k(k).top_p(p).order(TopKTopP::Joint);
    for (sampling, params) in [
        (Sampling::ArgMax, plain.clone().temperature(0.0)),
        (Sampling::All { temperature }, plain.clone()),
        (Sampling::TopK { k, temperature }, plain.clone().top_k(k)),
        (Sampling::TopP { p, temperature }, plain.clone().top_p(p)),
        (Sampling::TopKThenTopP { k, p, temperature }, joint),
    ] {
        for gpu in gpus() {
            let processor = LogitsProcessor::from_sampling(7, sampling.clone());
            let mut processor = processor.on_hip(&gpu)?;
            let mut cpu = Sampler::new(std::slice::from_ref(&params))?;
            for dtype in [DType::F32, DType::F64, DType::BF16] {
                let logits = logits.to_dtype(dtype)?;
                let known = match dtype {
                    DType::F64 => logits.to_dtype(DType::F32)?,
                    _ => logits.clone(),
                };
                let want = ids(&mut cpu, &known)?[0];
                assert_eq!(processor.sample(&logits)?, want, "{sampling:?}, {dtype:?}");
            }
        }
    }
    // These stay on the CPU.
    let gpu = &gpus()[0];
    let gumbel = LogitsProcessor::from_sampling(7, Sampling::GumbelSoftmax { temperature });
    let mut gumbel = gumbel.on_hip(gpu)?;
    let (calls, token) = calls_of(|| gumbel.sample(&logits));
    assert!(calls.is_empty() && token? < 3000);
    let mut all = LogitsProcessor::new(7, Some(1.0), None).on_hip(gpu)?;
    let only_nine = |p: &mut [f32]| {
        let kept = p[9];
        p.fill(0.0);
        p[9] = kept;
    };
    let (calls, token) = calls_of(|| all.sample_f(&logits, only_nine));
    assert!(calls.is_empty() && token? == 9);
    Ok(())
}

/// Threads have their own current devices, which stay as they are.
#[test]
fn on_any_thread() -> Result<()> {
    if outside("tokens::on_any_thread", &[(Layout::Together, ORDERS[1])]) {
        return Ok(());
    }
    let (logits, params) = (batch_of(&sources(1500), 4), mixed(4, 1500));
    let mut cpu = Sampler::new(&params)?;
    let want: Vec<_> = (0..4)
        .map(|_| ids(&mut cpu, &logits))
        .collect::<Result<_>>()?;
    let mut samplers = Vec::new();
    for gpu in gpus() {
        let mut hip = Sampler::new(&params)?.on_hip(&gpu)?;
        assert_eq!(ids(&mut hip, &logits)?, want[0]);
        samplers.push(hip);
    }
    assert_eq!(current_device(), 0);
    std::thread::scope(|scope| {
        for (index, mut hip) in samplers.into_iter().enumerate() {
            let (logits, want) = (&logits, &want);
            scope.spawn(move || {
                set_device(1 - index);
                for want in &want[1..] {
                    assert_eq!(&ids(&mut hip, logits).expect("ids"), want);
                }
                assert_eq!(current_device(), 1 - index);
            });
        }
    });
    assert_eq!(live(), 2);
    Ok(())
}

/// After the first: one upload, two launches, one download, one wait.
#[test]
fn take_few_calls() -> Result<()> {
    if outside("tokens::take_few_calls", &[(Layout::Together, ORDERS[0])]) {
        return Ok(());
    }
    let logits = batch_of(&sources(2000), 3);
    for gpu in gpus() {
        let mut hip = Sampler::new(&mixed(3, 2000))?.on_hip(&gpu)?;
        ids(&mut hip, &logits)?;
        for _ in 0..3 {
            let (mut calls, _) = calls_of(|| ids(&mut hip, &logits));
            calls.retain(|call| call != "hipGetDevice" && call != "hipSetDevice");
            let few = [
                "hipMemcpyAsync",
                "hipStreamWaitEvent",
                "hipModuleLaunchKernel",
                "hipModuleLaunchKernel",
                "hipEventRecord",
                "hipMemcpyAsync",
                "hipStreamSynchronize",
            ];
            assert_eq!(calls, few);
        }
        // Of a row that is replaced, the parameters are uploaded, and the position.
        hip.replace_row(1, &SamplingParams::new().seed(9))?;
        let (calls, _) = calls_of(|| ids(&mut hip, &logits));
        let copies = calls.iter().filter(|&call| call == "hipMemcpyAsync");
        assert_eq!(copies.count(), 4);
    }
    Ok(())
}

/// The device has 1 MiB.
#[test]
fn need_memory() -> Result<()> {
    let setup = [("STANDIN_MEMORY", "1048576")];
    if outside("tokens::need_memory", &[(Layout::Apart, &setup)]) {
        return Ok(());
    }
    let params = mixed(2, 1000);
    let mut cpu = Sampler::new(&params)?;
    let mut hip = Sampler::new(&params)?.on_hip(&gpus()[1])?;
    let two_rows = |vocab| row(&normal(&mut rng(4), vocab, 2.0)).broadcast_as((2, vocab));
    // There is no room for the second's logits and the third's at the same time.
    for vocab in [1000, 60_000, 75_000, 1000] {
        let logits = two_rows(vocab)?;
        assert_eq!(ids(&mut hip, &logits)?, ids(&mut cpu, &logits)?, "{vocab}");
        let error = hip
            .sample(&two_rows(1 << 18)?)
            .expect_err("2 MiB")
            .to_string();
        let expected = "hipMalloc failed: hipErrorOutOfMemory (2)";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(hip.position(0), cpu.position(0));
    }
    drop(hip);
    assert_eq!(live(), 1);
    Ok(())
}
