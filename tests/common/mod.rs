//! Rows of logits, and parameters, that the tests share.

#![allow(dead_code)] // each test binary uses its own part

pub mod oracle;

use candle_core::{DType, Device, Tensor};
use candle_sampler::{SamplingParams, TopKTopP};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub fn normal(rng: &mut StdRng, vocab: usize, spread: f32) -> Vec<f32> {
    let draw = |_| -> f32 { StandardNormal.sample(rng) };
    (0..vocab).map(draw).map(|z| z * spread).collect()
}

/// Next-token logits of Qwen2.5-Coder-0.5B-Instruct (see `tests/data/README.md`).
pub fn real() -> Vec<Vec<f32>> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/real_rows.safetensors"
    );
    let tensors =
        candle_core::safetensors::load(path, &Device::Cpu).expect("the rows are committed");
    let rows = tensors["logits"]
        .to_dtype(DType::F32)
        .expect("a float type");
    rows.to_vec2().expect("two dimensions")
}

/// A row of each kind that has misled a sampler: the name says which.
pub fn kinds(vocab: usize, seed: u64) -> Vec<(&'static str, Vec<f32>)> {
    let mut rng = rng(seed);
    let mut one_hot = vec![-30.0; vocab];
    one_hot[rng.random_range(0..vocab)] = 30.0;
    let ties = normal(&mut rng, vocab, 4.0)
        .iter()
        .map(|z| z.round())
        .collect();
    let mut masked = normal(&mut rng, vocab, 3.0);
    for z in masked.iter_mut().skip(1) {
        if rng.random_bool(0.9) {
            *z = f32::NEG_INFINITY;
        }
    }
    vec![
        ("N(0,1)", normal(&mut rng, vocab, 1.0)),
        ("N(0,5)", normal(&mut rng, vocab, 5.0)),
        ("flat", vec![1.5; vocab]),
        ("one-hot", one_hot),
        ("ties", ties),
        ("masked", masked),
    ]
}

/// The CUDA device where there is one and the tests are built for it, else the CPU.
pub fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    let open = || match Device::new_cuda(0) {
        Ok(device) if cfg!(feature = "cuda") => device,
        _ => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}

pub fn row(logits: &[f32]) -> Tensor {
    Tensor::new(logits, &Device::Cpu).expect("a row")
}

/// Parameters that differ in every field from row to row, all filters among them.
pub fn mixed(rows: usize, vocab: usize) -> Vec<SamplingParams> {
    let one = |i: usize| {
        let t = [0.8, 1.5, 0.3, 1.0, 1e-5][i / 11 % 5];
        let p = SamplingParams::new()
            .temperature(t)
            .seed(i as u64 * 7919 + 3);
        let k = 1 + i * 37 % vocab;
        match i % 11 {
            0 => p,
            1 => p.temperature(0.0),
            2 => p.top_k(50),
            3 => p.top_p(0.9),
            4 => p.min_p(0.05),
            5 => p.top_k(50).top_p(0.9),
            6 => p.top_k(50).top_p(0.9).order(TopKTopP::Joint),
            7 => p.top_k(k),
            8 => p.top_k(k).top_p(0.7).min_p(0.001),
            9 => p.top_p(0.999),
            _ => p.top_k(k).top_p(0.5).order(TopKTopP::Joint),
        }
    };
    (0..rows).map(one).collect()
}

/// Rows of every kind, real ones where the vocabulary is theirs, and rows that cannot be sampled.
pub fn sources(vocab: usize) -> Tensor {
    let mut rows: Vec<Vec<f32>> = kinds(vocab, 99).into_iter().map(|(_, row)| row).collect();
    rows.push(normal(&mut rng(5), vocab, 3.0));
    if vocab == 151_936 {
        rows.extend(real());
    }
    let mut nan = normal(&mut rng(6), vocab, 1.0);
    nan[vocab - 1] = f32::NAN;
    // A mask that leaves a few neighbours, all in one slice.
    let mut few = vec![f32::NEG_INFINITY; vocab];
    let neighbours = few.iter_mut().skip(vocab / 512 / 2 * 512).take(60);
    neighbours
        .enumerate()
        .for_each(|(i, z)| *z = -0.01 * i as f32);
    rows.extend([nan, vec![f32::NEG_INFINITY; vocab], vec![3e6; vocab], few]);
    Tensor::stack(&rows.iter().map(|r| row(r)).collect::<Vec<_>>(), 0).expect("rows")
}

/// `batch` of the rows, each as often as it comes.
pub fn batch_of(sources: &Tensor, batch: usize) -> Tensor {
    let count = sources.dim(0).expect("rows");
    let places: Vec<u32> = (0..batch).map(|i| (i % count) as u32).collect();
    let places = Tensor::new(places, &Device::Cpu).expect("ids");
    sources.index_select(&places, 0).expect("rows")
}
