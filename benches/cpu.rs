//! One thread, one row at a time: Candle's `LogitsProcessor`, ours, and the `Sampler`, on the same rows;
//! then batches on one thread and on all.
//!
//! ```text
//! cargo bench --bench cpu                                        # synthetic rows
//! ROWS=logits.safetensors cargo bench --bench cpu                # [rows, vocab] of any float type
//! cargo bench --bench cpu -- 'top-p'                             # a part of it
//! ```

use candle_core::{D, DType, Device, Result, Tensor};
use candle_sampler::{LogitsProcessor, Sampler, Sampling, SamplingParams, TopKTopP};
use candle_transformers::generation as candle;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::cell::Cell;

const VOCAB: usize = 151_936;
const K: usize = 50;
const P: f64 = 0.9;
const MIN_P: f64 = 0.05;

/// The rows to sample from, f32 `[rows, vocab]`, and what they are.
fn rows() -> Result<(Tensor, &'static str)> {
    let Ok(path) = std::env::var("ROWS") else {
        // Peaked like a language model's: a normal bulk, and a few tokens far above it.
        let bulk = Tensor::randn(0f32, 2.5, (16, VOCAB), &Device::Cpu)?;
        let lift = Tensor::rand(0f32, 1., (16, VOCAB), &Device::Cpu)?;
        let lift = (lift.ge(0.9999f64)?.to_dtype(DType::F32)? * 10.)?;
        return Ok(((bulk + lift)?, "synthetic"));
    };
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let logits = tensors
        .into_values()
        .next()
        .expect("the file holds a tensor");
    Ok((logits.to_dtype(DType::F32)?, "real"))
}

/// Ours and Candle's `Sampling` of the same name.
fn modes(temperature: f64) -> [(&'static str, Sampling, candle::Sampling); 6] {
    use Sampling as Ours;
    use candle::Sampling as Theirs;
    let (t, k, p) = (temperature, K, P);
    [
        ("argmax", Ours::ArgMax, Theirs::ArgMax),
        (
            "all",
            Ours::All { temperature: t },
            Theirs::All { temperature: t },
        ),
        (
            "top-k",
            Ours::TopK { k, temperature: t },
            Theirs::TopK { k, temperature: t },
        ),
        (
            "top-p",
            Ours::TopP { p, temperature: t },
            Theirs::TopP { p, temperature: t },
        ),
        (
            "top-k-top-p",
            Ours::TopKThenTopP {
                k,
                p,
                temperature: t,
            },
            Theirs::TopKThenTopP {
                k,
                p,
                temperature: t,
            },
        ),
        (
            "gumbel",
            Ours::GumbelSoftmax { temperature: t },
            Theirs::GumbelSoftmax { temperature: t },
        ),
    ]
}

fn params(temperature: f64) -> [(&'static str, SamplingParams); 7] {
    let base = SamplingParams::new().temperature(temperature).seed(1);
    let both = base.clone().top_k(K).top_p(P);
    [
        ("greedy", base.clone().temperature(0.0)),
        ("all", base.clone()),
        ("top-k", base.clone().top_k(K)),
        ("top-p", base.clone().top_p(P)),
        ("top-k-top-p", both.clone()),
        ("top-k-top-p-joint", both.order(TopKTopP::Joint)),
        ("min-p", base.min_p(MIN_P)),
    ]
}

fn single(c: &mut Criterion) {
    let (rows, kind) = rows().expect("rows");
    let count = rows.dim(0).expect("two dimensions");
    let rows: Vec<Tensor> = (0..count).map(|i| rows.get(i).expect("a row")).collect();
    let turn = Cell::new(0);
    let next = || &rows[turn.replace(turn.get() + 1) % count];
    for temperature in [0.8, 1.5] {
        let mut group = c.benchmark_group(format!("one {kind} row, T {temperature}"));
        group.sample_size(10 * count.min(10));
        for (name, ours, theirs) in modes(temperature) {
            let mut theirs = candle::LogitsProcessor::from_sampling(1, theirs);
            group.bench_function(BenchmarkId::new("candle", name), |b| {
                b.iter(|| theirs.sample(next()).expect("a token"))
            });
            let mut ours = LogitsProcessor::from_sampling(1, ours);
            group.bench_function(BenchmarkId::new("processor", name), |b| {
                b.iter(|| ours.sample(next()).expect("a token"))
            });
        }
        for (name, params) in params(temperature) {
            let mut sampler = Sampler::new(&[params]).expect("valid");
            group.bench_function(BenchmarkId::new("sampler", name), |b| {
                b.iter(|| sampler.sample_to_vec(next()).expect("a token"))
            });
        }
        group.finish();
    }
    let mut group = c.benchmark_group(format!("floor, one {kind} row"));
    let mut scratch = vec![0f32; rows[0].dim(D::Minus1).expect("a dimension")];
    let plain: Vec<Vec<f32>> = rows.iter().map(|r| r.to_vec1().expect("f32")).collect();
    group.bench_function("copy", |b| {
        b.iter(|| {
            scratch.copy_from_slice(&plain[turn.replace(turn.get() + 1) % count]);
            std::hint::black_box(&mut scratch)[0]
        })
    });
    group.finish();
}

fn batch(c: &mut Criterion) {
    const BATCH: usize = 64;
    let (rows, kind) = rows().expect("rows");
    let count = rows.dim(0).expect("two dimensions") as u32;
    let places =
        Tensor::from_iter((0..BATCH as u32).map(|i| i % count), &Device::Cpu).expect("ids");
    let logits = rows.index_select(&places, 0).expect("rows");
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut group = c.benchmark_group(format!("{BATCH} {kind} rows, T 0.8, top-p"));
    group.sample_size(20);
    for threads in [1, all] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        let rows = (0..BATCH as u64)
            .map(|s| params(0.8)[3].1.clone().seed(s))
            .collect::<Vec<_>>();
        let mut sampler = Sampler::new(&rows).expect("valid");
        group.bench_function(BenchmarkId::new("threads", threads), |b| {
            b.iter(|| pool.install(|| sampler.sample(&logits).expect("tokens")))
        });
    }
    group.finish();
}

fn benches(c: &mut Criterion) {
    // Criterion and Candle both like to use every core; the figures are for one.
    single(c);
    batch(c);
}

criterion_group!(all, benches);
criterion_main!(all);
