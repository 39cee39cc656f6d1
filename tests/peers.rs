//! Mistakes that other samplers made, each a test that ours does not make it; on a CUDA device, where the tests
//! are built for one and find it. The names in brackets are the public reports: FI FlashInfer, V vLLM, S SGLang, T TensorRT-LLM, A aiter, C Candle.

mod common;

use candle_core::{DType, Result, Tensor};
use candle_sampler::{INVALID_TOKEN, Sampler, SamplingParams, TopKTopP, ops, reference};
use common::{device, normal, rng};
use std::collections::BTreeSet;

fn row(logits: &[f32]) -> Tensor {
    common::row(logits).to_device(&device()).expect("a copy")
}

/// Logits with these probabilities.
fn logits_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

fn draws(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<u32> {
    let batch = row(logits).broadcast_as((n, logits.len())).expect("a view");
    let rows: Vec<_> = (0..n as u64)
        .map(|seed| params.clone().seed(seed))
        .collect();
    Sampler::new(&rows)
        .expect("valid")
        .sample_to_vec(&batch)
        .expect("tokens")
}

fn seen(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<u32> {
    let seen: BTreeSet<u32> = draws(logits, params, n).into_iter().collect();
    seen.into_iter().collect()
}

// Ties

#[test]
fn ties_at_the_boundary_do_not_break_top_k() {
    // FI#3774: k = 2 kept three tokens.
    let logits = logits_of(&[0.4, 0.3, 0.3, 0.0]);
    assert_eq!(seen(&logits, &SamplingParams::new().top_k(2), 3000), [0, 1]);
    assert_eq!(
        reference::kept(&logits, &SamplingParams::new().top_k(2)).unwrap(),
        [0, 1]
    );
}

#[test]
fn tied_maxima_with_k_1_are_the_argmax() -> Result<()> {
    let mut logits = vec![20.0f32; 2000];
    (logits[700], logits[1500]) = (21.375, 21.375);
    let logits = row(&logits).to_dtype(DType::BF16)?;
    for seed in 0..200 {
        let mut sampler = Sampler::new(&[SamplingParams::new().top_k(1).seed(seed)])?;
        assert_eq!(sampler.sample_to_vec(&logits)?, [700]);
    }
    Ok(())
}

#[test]
fn top_k_comes_before_top_p_unless_joint() {
    // S#36173
    let logits = logits_of(&[0.35, 0.25, 0.20, 0.05, 0.05, 0.05, 0.05]);
    let params = SamplingParams::new().top_k(4).top_p(0.82);
    assert_eq!(seen(&logits, &params, 3000), [0, 1, 2]);
    assert_eq!(
        seen(&logits, &params.order(TopKTopP::Joint), 3000),
        [0, 1, 2, 3]
    );
}

#[test]
fn many_equal_values_keep_exactly_k() {
    // V#33538
    for k in [1, 7, 500, 5000] {
        let kept = reference::kept(&[3.0; 6000], &SamplingParams::new().top_k(k)).unwrap();
        assert_eq!(kept, (0..k as u32).collect::<Vec<_>>());
        let most = draws(&[3.0; 6000], &SamplingParams::new().top_k(k), 2000)
            .into_iter()
            .max();
        assert!(most.unwrap() < k as u32);
    }
}

// Tails (the long tail itself is in distribution.rs)

#[test]
fn no_random_number_beats_a_mask() {
    // S#25106: u = 1.0 gave +inf noise.
    let mut logits = vec![f32::NEG_INFINITY; 4000];
    (logits[17], logits[3999]) = (-50.0, -51.0);
    assert_eq!(seen(&logits, &SamplingParams::new(), 50_000), [17, 3999]);
}

// Zero, −inf, NaN

#[test]
fn a_token_of_probability_zero_is_never_drawn() {
    // pytorch#4858, T#1590
    let mut logits = normal(&mut rng(5), 3000, 1.0);
    for z in logits.iter_mut().step_by(2) {
        *z = -1e4;
    }
    assert!(
        draws(&logits, &SamplingParams::new(), 60_000)
            .iter()
            .all(|id| id % 2 == 1 && *id < 3000)
    );
}

#[test]
fn ids_are_below_the_vocabulary() {
    // FI#384, V#53029
    for vocab in [1, 2, 3, 31, 33, 511, 512, 513, 1023, 1025] {
        for params in [
            SamplingParams::new().temperature(5.0),
            SamplingParams::new().temperature(5.0).top_k(vocab / 2 + 1),
            SamplingParams::new().temperature(5.0).top_p(0.99999),
        ] {
            let ids = draws(&normal(&mut rng(6), vocab, 1.0), &params, 2000);
            assert!(
                ids.iter().all(|&id| (id as usize) < vocab),
                "{vocab} tokens"
            );
            assert!(
                vocab == 1 || ids.iter().any(|&id| id != ids[0]),
                "{vocab} tokens"
            );
        }
    }
}

#[test]
fn an_all_nan_row_is_marked() -> Result<()> {
    // FI#2402, V#23814
    let logits = Tensor::full(f32::NAN, (3, 100_352), &device())?;
    let mut sampler = Sampler::new(&vec![SamplingParams::new().top_p(0.9); 3])?;
    assert_eq!(
        sampler.sample(&logits)?.to_vec1::<u32>()?,
        [INVALID_TOKEN; 3]
    );
    Ok(())
}

#[test]
fn a_negative_temperature_is_refused() {
    // V#22180
    assert!(Sampler::new(&[SamplingParams::new().temperature(-0.5)]).is_err());
}

#[test]
fn the_softmax_survives_large_masks() -> Result<()> {
    // FI#1178
    let mut logits = vec![f32::NEG_INFINITY; 200_000];
    logits[150_000] = -3.0;
    let p = ops::softmax(&row(&logits))?.to_vec1::<f32>()?;
    assert_eq!(p[150_000], 1.0);
    assert_eq!(p.iter().sum::<f32>(), 1.0);
    Ok(())
}

#[test]
fn temperature_zero_is_greedy_not_uniform() {
    let logits = normal(&mut rng(7), 5000, 1.0);
    let best = reference::kept(&logits, &SamplingParams::new().top_k(1)).unwrap();
    assert_eq!(
        seen(&logits, &SamplingParams::new().temperature(0.0), 100),
        best
    );
}

// Hangs

#[test]
fn denormal_and_adjacent_logits_end() {
    // FI#769: flush-to-zero stalled the pivots. FI#3623: adjacent floats stalled the search.
    let denormal: Vec<f32> = (0..4000).map(|i| f32::from_bits(i % 7)).collect();
    let adjacent: Vec<f32> = (0..4000)
        .map(|i| f32::from_bits(1.0f32.to_bits() + i % 3))
        .collect();
    for logits in [denormal, adjacent] {
        for k in [1, 3, 100, 3999] {
            let params = SamplingParams::new().top_k(k).top_p(0.3);
            assert!(draws(&logits, &params, 50).iter().all(|&id| id < 4000));
        }
        let kept = reference::kept(&logits, &SamplingParams::new().top_k(2)).unwrap();
        let largest = logits.iter().copied().fold(0.0, f32::max);
        assert!(kept.iter().all(|&id| logits[id as usize] == largest));
    }
}

#[test]
fn masked_rows_with_k_1_end() -> Result<()> {
    // FI#1049: [206, 100352]
    let mut logits = vec![f32::NEG_INFINITY; 100_352];
    logits[99_999] = 0.5;
    let batch = row(&logits).broadcast_as((206, 100_352))?;
    let mut sampler = Sampler::new(&vec![SamplingParams::new().top_k(1).top_p(0.9); 206])?;
    assert_eq!(sampler.sample_to_vec(&batch)?, [99_999; 206]);
    Ok(())
}

// Indexing

#[test]
fn padded_rows_do_not_leak_their_padding() -> Result<()> {
    // V#42684: vocabulary 100,278 in rows of 100,288.
    let padded = Tensor::full(100f32, (4, 100_288), &device())?;
    let inside = Tensor::randn(0f32, 1., (4, 100_278), &device())?;
    let logits = padded
        .slice_assign(&[0..4, 0..100_278], &inside)?
        .narrow(1, 0, 100_278)?;
    let mut sampler = Sampler::new(&vec![SamplingParams::new(); 4])?;
    for _ in 0..50 {
        assert!(
            sampler
                .sample_to_vec(&logits)?
                .iter()
                .all(|&id| id < 100_278)
        );
    }
    Ok(())
}

#[test]
fn more_elements_than_32_bits_count() -> Result<()> {
    // FI#2937: 32,769 × 131,072
    let mut logits = vec![-20f32; 131_072];
    logits[131_071] = 20.0;
    let batch = row(&logits).broadcast_as((32_769, 131_072))?;
    let mut sampler = Sampler::new(&vec![SamplingParams::new().top_k(3); 32_769])?;
    assert!(
        sampler
            .sample_to_vec(&batch)?
            .iter()
            .all(|&id| id == 131_071)
    );
    Ok(())
}

#[test]
fn k_beyond_the_vocabulary_in_a_mixed_batch() -> Result<()> {
    let logits = row(&normal(&mut rng(8), 600, 1.0)).broadcast_as((3, 600))?;
    let base = SamplingParams::new().seed(4);
    let mut sampler = Sampler::new(&[base.clone().top_k(600), base.clone().top_k(100_000), base])?;
    for _ in 0..50 {
        let ids = sampler.sample_to_vec(&logits)?;
        assert!(
            ids[0] == ids[1] && ids[1] == ids[2],
            "{ids:?}: k ≥ vocab filters nothing"
        );
    }
    Ok(())
}

// Seeds and parameters

#[test]
fn every_row_has_its_own_seed() -> Result<()> {
    // FI#4861: only the first row's seed was used.
    let logits = row(&normal(&mut rng(9), 5000, 0.5)).broadcast_as((4, 5000))?;
    let sample = |seeds: [u64; 4]| {
        let rows: Vec<_> = seeds
            .iter()
            .map(|&s| SamplingParams::new().seed(s))
            .collect();
        Sampler::new(&rows)?.sample_to_vec(&logits)
    };
    let (different, same) = (sample([1111, 2222, 3333, 4444])?, sample([1111; 4])?);
    assert_eq!(same, [same[0]; 4]);
    assert_eq!(different[0], same[0]);
    assert!(
        different[1..].iter().all(|id| *id != same[0]),
        "{different:?}"
    );
    Ok(())
}

#[test]
fn every_row_has_its_own_parameters() -> Result<()> {
    // FI#5339: p or k of the wrong row.
    let logits = normal(&mut rng(10), 4000, 1.0);
    let rows: Vec<_> = (0..64u64)
        .map(|i| {
            let p = SamplingParams::new()
                .seed(i)
                .temperature(0.3 + i as f64 / 40.0);
            match i % 4 {
                0 => p.top_k(1 + i as usize),
                1 => p.top_p(0.1 + i as f64 / 80.0),
                2 => p.min_p(i as f64 / 200.0),
                _ => p.top_k(3 + i as usize).top_p(0.5),
            }
        })
        .collect();
    let together = Sampler::new(&rows)?.sample_to_vec(&row(&logits).broadcast_as((64, 4000))?)?;
    for (i, params) in rows.iter().enumerate() {
        assert_eq!(
            together[i],
            reference::sample(&logits, params, 0)?,
            "row {i}"
        );
    }
    Ok(())
}

#[test]
fn a_batchmate_changes_nothing() -> Result<()> {
    // S#35697, V#51226
    let mine = normal(&mut rng(11), 2000, 1.0);
    let params = [
        SamplingParams::new().seed(3).top_p(0.9),
        SamplingParams::new().seed(8),
    ];
    let mut expected = None;
    for seed in 0..20 {
        let other = normal(&mut rng(seed), 2000, 4.0);
        let logits = Tensor::stack(&[row(&mine), row(&other)], 0)?;
        let mut sampler = Sampler::new(&params)?;
        let ids: Vec<u32> = (0..5)
            .map(|_| Ok(sampler.sample_to_vec(&logits)?[0]))
            .collect::<Result<_>>()?;
        assert_eq!(*expected.get_or_insert(ids.clone()), ids);
    }
    Ok(())
}

#[test]
fn the_generator_moves_on() -> Result<()> {
    // A#2035
    let logits = row(&[0f32; 1 << 16]);
    let mut sampler = Sampler::new(&[SamplingParams::new()])?;
    let ids: BTreeSet<u32> = (0..100)
        .map(|_| Ok(sampler.sample_to_vec(&logits)?[0]))
        .collect::<Result<_>>()?;
    assert!(
        ids.len() > 95,
        "{} distinct tokens in 100 draws of 65,536",
        ids.len()
    );
    Ok(())
}

// Determinism

#[test]
fn a_run_repeats_itself() {
    // FI#4831: float atomics differed from run to run.
    let logits = normal(&mut rng(12), 50_000, 3.0);
    let params = SamplingParams::new().top_p(0.95);
    assert_eq!(draws(&logits, &params, 300), draws(&logits, &params, 300));
}
