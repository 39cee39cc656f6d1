//! Logits of every kind that has misled a sampler, and the parameters to draw from them.

use candle_sampler::SamplingParams;
use candle_sampler::TopKTopP::{Joint, Renormalised};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

pub fn normal(rng: &mut StdRng, vocab: usize, spread: f32) -> Vec<f32> {
    let draw = |_| -> f32 { StandardNormal.sample(rng) };
    (0..vocab).map(draw).map(|z| z * spread).collect()
}

/// Among them rows that are no distribution: from NaN and from nothing but −inf no token can be drawn, +inf wins outright.
pub fn kinds(vocab: usize, seed: u64) -> Vec<(&'static str, Vec<f32>)> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let place = rng.random_range(0..vocab);
    let only = |at: usize, inside: f32, outside: f32| {
        let mut row = vec![outside; vocab];
        row[at] = inside;
        row
    };
    let masked = |rng: &mut StdRng, mask: f32, share: f64| -> Vec<f32> {
        let row = normal(rng, vocab, 3.0);
        let hide = |(i, z)| {
            if i > 0 && rng.random_bool(share) {
                mask
            } else {
                z
            }
        };
        row.into_iter().enumerate().map(hide).collect()
    };
    let with = |mut row: Vec<f32>, value: f32| {
        row[place] = value;
        row[vocab - 1] = value;
        row
    };
    let ties = normal(rng, vocab, 4.0).iter().map(|z| z.round()).collect();
    let signs = (0..vocab)
        .map(|i| if i % 3 == 0 { 0.0 } else { -0.0 })
        .collect();
    let far = |rng: &mut StdRng, by: f32| normal(rng, vocab, 1.0).iter().map(|z| z + by).collect();
    vec![
        ("N(0,1)", normal(rng, vocab, 1.0)),
        ("N(0,3)", normal(rng, vocab, 3.0)),
        ("N(0,5)", normal(rng, vocab, 5.0)),
        ("N(0,0.01)", normal(rng, vocab, 0.01)),
        ("all equal", vec![1.5; vocab]),
        ("one-hot", only(place, 30.0, -30.0)),
        ("ties", ties),
        ("zeros of both signs", signs),
        (
            "N(0,3), 90 % masked with -inf",
            masked(rng, f32::NEG_INFINITY, 0.9),
        ),
        ("N(0,3), half masked with -1e30", masked(rng, -1e30, 0.5)),
        (
            "all but the last masked with -inf",
            only(vocab - 1, -3.0, f32::NEG_INFINITY),
        ),
        ("N(0,1) + 2e6", far(rng, 2e6)),
        ("N(0,1) - 2e6", far(rng, -2e6)),
        (
            "N(0,1) with +inf",
            with(normal(rng, vocab, 1.0), f32::INFINITY),
        ),
        ("N(0,1) with NaN", with(normal(rng, vocab, 1.0), f32::NAN)),
        ("all -inf", vec![f32::NEG_INFINITY; vocab]),
    ]
}

/// Every filter alone and combined, in both orders, and temperatures.
pub fn settings(vocab: usize) -> Vec<SamplingParams> {
    let t = SamplingParams::new;
    let (half, slices) = ((vocab / 2).max(1), vocab.div_ceil(512));
    vec![
        t(),
        t().temperature(0.0),
        t().temperature(1e-5).top_p(0.9),
        t().temperature(0.7).top_k(20).top_p(0.8),
        t().temperature(1.5),
        t().top_k(1),
        t().top_k(50),
        t().top_k(slices + 1),
        t().top_k(half).temperature(1.5),
        t().top_k(vocab + 5).top_p(0.999),
        t().top_p(0.9),
        t().top_p(1e-9),
        t().top_p(0.999).temperature(1.5),
        t().min_p(0.05),
        t().min_p(1.0),
        t().min_p(0.01).top_p(0.3).temperature(0.7),
        t().top_k(50).top_p(0.9).order(Renormalised),
        t().top_k(50).top_p(0.9).order(Joint),
        t().top_k(half)
            .top_p(0.5)
            .order(Renormalised)
            .temperature(1.5),
        t().top_k(half).top_p(0.5).order(Joint).temperature(1.5),
        t().top_k(20).top_p(0.8).min_p(0.02).order(Renormalised),
        t().top_k(20).top_p(0.8).min_p(0.02).order(Joint),
    ]
}
