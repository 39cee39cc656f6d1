//! Rows of logits that the tests share.

#![allow(dead_code)] // each test binary uses its own part

pub mod oracle;

use candle_core::{DType, Device, Tensor};
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
