//! `LogitsProcessor` against Candle's own: the same token for the same seed, and an error where it errs.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::{LogitsProcessor, Sampling};
use candle_transformers::generation as candle;
use common::{kinds, real, row};

/// The same sampling in both crates' enums.
fn both(ours: Sampling) -> (Sampling, candle::Sampling) {
    use candle::Sampling as C;
    let theirs = match ours {
        Sampling::ArgMax => C::ArgMax,
        Sampling::All { temperature } => C::All { temperature },
        Sampling::TopK { k, temperature } => C::TopK { k, temperature },
        Sampling::TopP { p, temperature } => C::TopP { p, temperature },
        Sampling::TopKThenTopP { k, p, temperature } => C::TopKThenTopP { k, p, temperature },
        Sampling::GumbelSoftmax { temperature } => C::GumbelSoftmax { temperature },
    };
    (ours, theirs)
}

/// Every seeded mode, with the parameters at their ends and between.
fn samplings(vocab: usize) -> Vec<Sampling> {
    let mut all = vec![Sampling::ArgMax];
    for temperature in [0.3, 1.0, 1.7] {
        all.push(Sampling::All { temperature });
        for p in [0.0, 1e-6, 0.5, 0.9, 0.999, 1.0] {
            all.push(Sampling::TopP { p, temperature });
        }
        for k in [1, 2, 40, vocab.div_ceil(2), vocab, vocab + 7] {
            all.push(Sampling::TopK { k, temperature });
            for p in [0.0, 0.4, 0.95, 1.0] {
                all.push(Sampling::TopKThenTopP { k, p, temperature });
            }
        }
    }
    all
}

/// Draws `draws` tokens from both, asserts that they are equal, and returns how many there were.
/// Where Candle fails, ours must fail.
fn compare(what: &str, logits: &Tensor, sampling: Sampling, draws: usize) -> usize {
    let (ours, theirs) = both(sampling.clone());
    let mut ours = LogitsProcessor::from_sampling(299_792_458, ours);
    let mut theirs = candle::LogitsProcessor::from_sampling(299_792_458, theirs);
    for i in 0..draws {
        match (ours.sample(logits), theirs.sample(logits)) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{what}, {sampling:?}, draw {i}"),
            (Err(_), Err(_)) => {}
            (got, want) => panic!("{what}, {sampling:?}, draw {i}: {got:?}, Candle {want:?}"),
        }
    }
    draws
}

#[test]
fn equals_candle_on_synthetic_rows() {
    let mut drawn = 0;
    for (vocab, draws, stride) in [
        (1, 4, 1),
        (2, 10, 1),
        (111, 40, 1),
        (32_000, 3, 1),
        (151_936, 2, 7),
    ] {
        let mut turn = 0;
        for (kind, logits) in kinds(vocab, vocab as u64) {
            let logits = row(&logits);
            for sampling in samplings(vocab) {
                // Candle sorts at length: the large vocabularies take fewer draws, the largest every seventh case.
                turn += 1;
                if turn % stride == 0 {
                    drawn += compare(&format!("{kind}, {vocab} tokens"), &logits, sampling, draws);
                }
            }
        }
    }
    assert!(drawn >= 30_000, "only {drawn} draws");
}

#[test]
fn equals_candle_on_real_rows() {
    let mut drawn = 0;
    for (i, logits) in real().iter().enumerate() {
        let full = row(logits);
        for (sampling, draws) in [
            (Sampling::ArgMax, 2),
            (Sampling::All { temperature: 0.8 }, 60),
            (
                Sampling::TopP {
                    p: 0.9,
                    temperature: 0.8,
                },
                60,
            ),
            (
                Sampling::TopP {
                    p: 0.95,
                    temperature: 1.5,
                },
                30,
            ),
            (
                Sampling::TopK {
                    k: 50,
                    temperature: 0.8,
                },
                60,
            ),
            (
                Sampling::TopK {
                    k: 5000,
                    temperature: 1.5,
                },
                30,
            ),
            (
                Sampling::TopKThenTopP {
                    k: 50,
                    p: 0.9,
                    temperature: 0.8,
                },
                60,
            ),
        ] {
            drawn += compare(&format!("real row {i}"), &full, sampling, draws);
        }
        // The 2,000 largest alone: the same ties, and a draw costs Candle little.
        let mut top = logits.clone();
        top.sort_by(|a, b| b.total_cmp(a));
        let top = row(&top[..2000]);
        for sampling in samplings(2000) {
            drawn += compare(&format!("top of real row {i}"), &top, sampling, 50);
        }
    }
    assert!(drawn >= 20_000, "only {drawn} draws");
}

#[test]
fn equals_candle_for_16_bit_logits_and_views() -> Result<()> {
    let wide = row(&kinds(1001, 5)[1].1);
    let batch = Tensor::stack(&[&wide, &wide.neg()?, &(&wide * 0.5)?], 0)?;
    let columns = batch.t()?.contiguous()?;
    for sampling in samplings(1001) {
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            compare(
                &format!("{dtype:?}"),
                &wide.to_dtype(dtype)?,
                sampling.clone(),
                3,
            );
        }
        compare("offset view", &batch.get(1)?, sampling.clone(), 3);
        compare(
            "narrowed view",
            &wide.narrow(0, 13, 501)?,
            sampling.clone(),
            3,
        );
        compare("strided view", &columns.t()?.get(2)?, sampling.clone(), 3);
    }
    Ok(())
}

#[test]
fn fails_where_candle_fails() -> Result<()> {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (what, logits) in [
        ("NaN among others", vec![1.0, nan, 2.0]),
        ("NaN first", vec![nan, 1.0]),
        ("all NaN", vec![nan; 5]),
        ("all -inf", vec![-inf; 5]),
        ("+inf", vec![1.0, inf, 2.0]),
        ("two +inf", vec![inf, inf]),
        ("huge", vec![1e38, -1e38, 3e38]),
    ] {
        for sampling in samplings(logits.len()) {
            compare(what, &row(&logits), sampling, 3);
        }
    }
    let sampling = |t| Sampling::TopP {
        p: 0.5,
        temperature: t,
    };
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        compare(
            "temperature",
            &row(&[1.0, 2.0, 3.0]),
            sampling(temperature),
            3,
        );
    }
    for p in [-1.0, 2.0, f64::NAN] {
        compare(
            "p",
            &row(&[1.0, 2.0, 3.0]),
            Sampling::TopP { p, temperature: 1. },
            3,
        );
        for k in [0, 2, 9] {
            compare(
                "k, p",
                &row(&[1.0, 2.0, 3.0]),
                Sampling::TopKThenTopP {
                    k,
                    p,
                    temperature: 1.,
                },
                3,
            );
        }
    }
    compare(
        "k",
        &row(&[1.0, 2.0]),
        Sampling::TopK {
            k: 0,
            temperature: 1.,
        },
        1,
    );
    let square = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
    compare("two rows", &square, sampling(1.0), 1);
    let mut any = LogitsProcessor::from_sampling(1, sampling(1.0));
    assert!(any.sample(&row(&[nan, 1.0])).is_err(), "NaN is an error");
    Ok(())
}

#[test]
fn the_probabilities_pass_through_the_callers_function() -> Result<()> {
    let logits = row(&kinds(500, 3)[0].1);
    for sampling in samplings(500) {
        for case in 0..4 {
            let f = |probabilities: &mut [f32]| {
                for (i, p) in probabilities.iter_mut().enumerate() {
                    match case {
                        0 => *p = if i % 3 == 0 { 0.0 } else { *p },
                        1 => *p *= 7.0,
                        2 => *p = -0.0,
                        _ => *p = if i == 3 { f32::NAN } else { *p - 1e-4 },
                    }
                }
            };
            let (ours, theirs) = both(sampling.clone());
            let got = LogitsProcessor::from_sampling(4, ours).sample_f(&logits, f);
            let want = candle::LogitsProcessor::from_sampling(4, theirs).sample_f(&logits, f);
            assert_eq!(got.is_ok(), want.is_ok(), "{sampling:?}, case {case}");
            if let (Ok(got), Ok(want)) = (got, want) {
                assert_eq!(got, want, "{sampling:?}, case {case}");
            }
        }
    }
    Ok(())
}

#[test]
fn new_chooses_as_candles_does() -> Result<()> {
    let logits = row(&kinds(300, 8)[0].1);
    for temperature in [
        None,
        Some(0.0),
        Some(1e-8),
        Some(1e-7),
        Some(0.7),
        Some(-3.0),
    ] {
        for top_p in [None, Some(0.0), Some(0.8), Some(1.0)] {
            let mut ours = LogitsProcessor::new(11, temperature, top_p);
            let mut theirs = candle::LogitsProcessor::new(11, temperature, top_p);
            for _ in 0..50 {
                assert_eq!(
                    ours.sample(&logits).ok(),
                    theirs.sample(&logits).ok(),
                    "{temperature:?} {top_p:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_batch_of_one_is_a_row() -> Result<()> {
    let logits = row(&kinds(300, 9)[0].1);
    for sampling in samplings(300) {
        let mut a = LogitsProcessor::from_sampling(5, sampling.clone());
        let mut b = LogitsProcessor::from_sampling(5, sampling.clone());
        assert_eq!(
            a.sample(&logits).ok(),
            b.sample(&logits.unsqueeze(0)?).ok(),
            "{sampling:?}"
        );
    }
    Ok(())
}

/// No seed reaches Gumbel noise, so the frequencies are compared instead: within five deviations.
#[test]
fn gumbel_follows_the_softmax() -> Result<()> {
    let (logits, draws) = ([0.0f32, 1.0, 2.0, -1.0], 20_000);
    let temperature = 0.8;
    let e = logits.map(|z| (f64::from(z) / temperature).exp());
    let mut ours = LogitsProcessor::from_sampling(0, Sampling::GumbelSoftmax { temperature });
    let mut counts = [0f64; 4];
    for _ in 0..draws {
        counts[ours.sample(&row(&logits))? as usize] += 1.0;
    }
    for (i, count) in counts.iter().enumerate() {
        let p = e[i] / e.iter().sum::<f64>();
        let (mean, deviation) = (p * draws as f64, (p * (1.0 - p) * draws as f64).sqrt());
        assert!(
            (count - mean).abs() < 5.0 * deviation,
            "token {i}: {count}, expected {mean}"
        );
    }
    Ok(())
}
