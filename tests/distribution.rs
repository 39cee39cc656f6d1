//! Is it the right distribution? Kept sets against an f64 sort, frequencies against f64 probabilities.

mod common;

use candle_core::{Device, Result, Tensor};
use candle_sampler::{Sampler, SamplingParams, TopKTopP, reference};
use common::oracle::{Filter, Oracle, chi_square, random_bits};
use common::{kinds, normal, real, rng, row};
use rand::Rng;

/// Asserts that the kept sets are equal, but for tokens that f64 itself places within 2⁻¹⁸ of the
/// boundary. Returns whether there was such a token.
fn same_set(what: &str, logits: &[f32], filter: Filter) -> bool {
    let oracle = Oracle::new(logits, filter);
    let mut ours = vec![false; logits.len()];
    for id in reference::kept(logits, &filter.params()).expect("a kept set") {
        ours[id as usize] = true;
    }
    let mut close = false;
    for &id in &oracle.order {
        let id = id as usize;
        if ours[id] != oracle.kept[id] {
            close = true;
            assert!(
                oracle.margin[id] < 2f64.powi(-18),
                "{what}, {filter:?}: token {id} is {} by {:e}",
                if ours[id] { "kept" } else { "missing" },
                oracle.margin[id]
            );
        }
    }
    close
}

fn random_filter(rng: &mut impl Rng, vocab: usize) -> Filter {
    Filter {
        temperature: rng.random_range(0.2..2.0),
        k: rng
            .random_bool(0.6)
            .then(|| rng.random_range(1..=vocab + 5)),
        p: rng.random_bool(0.6).then(|| rng.random_range(0.01..1.0)),
        min_p: rng.random_bool(0.3).then(|| rng.random_range(0.0001..0.9)),
        order: if rng.random() {
            TopKTopP::Joint
        } else {
            TopKTopP::Renormalised
        },
    }
}

#[test]
fn kept_sets_equal_an_f64_sort_on_random_rows() {
    let mut rng = rng(20);
    let (mut rows, mut close) = (0, 0);
    while rows < 4000 {
        let vocab = *[1, 2, 5, 50, 111, 512, 513, 1500]
            .get(rows / 6 % 8)
            .expect("in range");
        for (kind, logits) in kinds(vocab, rows as u64) {
            close += usize::from(same_set(kind, &logits, random_filter(&mut rng, vocab)));
            rows += 1;
        }
    }
    assert!(
        close * 100 < rows,
        "{close} of {rows} rows hung on the last bits"
    );
}

#[test]
fn kept_sets_equal_an_f64_sort_on_real_rows() {
    for logits in real() {
        for temperature in [0.8, 1.5] {
            for (k, p, min_p) in [
                (None, Some(0.9), None),
                (Some(50), None, None),
                (Some(50), Some(0.9), None),
                (Some(20_000), Some(0.99), None),
                (None, None, Some(0.05)),
            ] {
                for order in [TopKTopP::Joint, TopKTopP::Renormalised] {
                    same_set(
                        "real",
                        &logits,
                        Filter {
                            temperature,
                            k,
                            p,
                            min_p,
                            order,
                        },
                    );
                }
            }
        }
    }
}

/// Draws `draws` tokens from one row: a batch of rows that share it, with seeds of their own.
fn draw(logits: &[f32], params: &SamplingParams, draws: usize) -> Vec<u32> {
    const BATCH: usize = 500;
    let logits = row(logits)
        .broadcast_as((BATCH, logits.len()))
        .expect("a view");
    let rows: Vec<_> = (0..BATCH as u64)
        .map(|s| params.clone().seed(s * 77 + 5))
        .collect();
    let mut sampler = Sampler::new(&rows).expect("valid");
    let calls = 0..draws.div_ceil(BATCH);
    calls
        .flat_map(|_| sampler.sample_to_vec(&logits).expect("tokens"))
        .collect()
}

/// No `p` here is a whole number of equal tokens: f64 sums decide such ties by their rounding.
fn modes() -> Vec<Filter> {
    let base = Filter {
        temperature: 0.9,
        ..Filter::default()
    };
    let joint = Filter {
        order: TopKTopP::Joint,
        ..base
    };
    vec![
        base,
        Filter { k: Some(1), ..base },
        Filter { k: Some(3), ..base },
        Filter {
            k: Some(300),
            ..base
        },
        Filter {
            p: Some(0.5),
            ..base
        },
        Filter {
            p: Some(0.95),
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
            k: Some(40),
            p: Some(0.81),
            ..joint
        },
        Filter {
            k: Some(701),
            p: Some(0.9),
            min_p: Some(0.001),
            ..base
        },
        Filter {
            k: Some(701),
            p: Some(0.9),
            min_p: Some(0.001),
            ..joint
        },
        Filter {
            temperature: 2.0,
            p: Some(0.9005),
            ..base
        },
        Filter {
            temperature: 2.0,
            p: Some(0.3005),
            ..base
        },
        Filter {
            temperature: 2.0,
            p: Some(0.1505),
            ..base
        },
        Filter {
            temperature: 4.0,
            k: Some(1501),
            p: Some(0.2005),
            ..joint
        },
        Filter {
            p: Some(0.6005),
            min_p: Some(0.02),
            ..base
        },
        Filter {
            k: Some(301),
            p: Some(0.3005),
            ..joint
        },
    ]
}

/// Against sums in f64: not the distribution alone, but which token it is.
#[test]
fn tokens_are_those_that_the_random_numbers_stand_for() {
    let mut rows: Vec<_> = [1, 2, 40, 513, 3000]
        .into_iter()
        .flat_map(|vocab| kinds(vocab, 31))
        .collect();
    rows.extend(real().into_iter().map(|logits| ("real", logits)));
    let (mut draws, mut close, mut rounds) = (0, 0, [0; 5]);
    for (kind, logits) in rows {
        for filter in modes() {
            let oracle = Oracle::new(&logits, filter);
            let hangs = oracle.margin.iter().any(|&margin| margin < 2f64.powi(-17));
            for seed in 0..20 {
                let (seed, position) = (seed << 40 | seed, seed << 33);
                let u = |round| random_bits(seed, position, round) as f64 / 2f64.powi(64);
                let (id, margin, round) = oracle.drawn(u);
                let params = filter.params().seed(seed);
                let got = reference::sample(&logits, &params, position).expect("a token");
                draws += 1;
                if hangs || margin < 2f64.powi(-17) {
                    close += 1;
                } else {
                    assert_eq!(got, id, "{kind}, {filter:?}, seed {seed}");
                    rounds[round as usize] += 1;
                }
            }
        }
    }
    assert!(
        close * 20 < draws,
        "{close} of {draws} draws hung on the last bits"
    );
    assert!(
        rounds.iter().all(|&n| n > 100),
        "tokens of each round: {rounds:?}"
    );
}

#[test]
fn frequencies_pass_chi_square_in_every_mode() {
    for (kind, logits) in kinds(3000, 4) {
        for filter in modes() {
            let drawn = draw(&logits, &filter.params(), 60_000);
            chi_square(
                &format!("{kind}, {filter:?}"),
                &Oracle::new(&logits, filter),
                &drawn,
            );
        }
    }
}

#[test]
fn frequencies_pass_chi_square_on_real_rows() {
    for (i, logits) in real().iter().enumerate() {
        for filter in [
            Filter {
                temperature: 0.8,
                ..Filter::default()
            },
            Filter {
                temperature: 0.8,
                p: Some(0.9),
                ..Filter::default()
            },
            Filter {
                temperature: 1.5,
                p: Some(0.9),
                ..Filter::default()
            },
            Filter {
                temperature: 1.5,
                p: Some(0.3),
                ..Filter::default()
            },
            Filter {
                temperature: 1.5,
                k: Some(20_000),
                ..Filter::default()
            },
            Filter {
                temperature: 0.8,
                k: Some(50),
                p: Some(0.9),
                ..Filter::default()
            },
        ] {
            let drawn = draw(logits, &filter.params(), 10_000);
            chi_square(
                &format!("real row {i}, {filter:?}"),
                &Oracle::new(logits, filter),
                &drawn,
            );
        }
    }
}

/// A token 20.5 nats above 262,144 others: together these have 3.3e-4 of the mass, each 1.25e-9, which
/// generators with a floor of 2⁻²⁴ never reach.
#[test]
fn a_long_tail_is_drawn_as_often_as_it_should_be() -> Result<()> {
    const TAIL: usize = 262_144;
    let mut logits = vec![0f32; TAIL + 1];
    logits[1000] = 20.5;
    let draws = 200_000;
    let drawn = draw(&logits, &SamplingParams::new(), draws);
    let tail: Vec<u32> = drawn.into_iter().filter(|&id| id != 1000).collect();
    let share = TAIL as f64 * (-20.5f64).exp();
    let expected = draws as f64 * share / (1.0 + share);
    let deviation = expected.sqrt();
    let (seen, low) = (
        tail.len() as f64,
        tail.iter().filter(|&&id| id < TAIL as u32 / 2).count() as f64,
    );
    assert!(
        (seen - expected).abs() < 4.0 * deviation,
        "{seen} tail tokens, expected {expected:.1}"
    );
    assert!(
        (low - seen / 2.0).abs() < 2.0 * deviation,
        "{low} of {seen} in the first half"
    );
    Ok(())
}

/// A running sum in f32 or bf16 stops growing long before the last of these.
#[test]
fn a_flat_row_is_uniform_to_its_end() {
    let drawn = draw(&vec![0.25; 262_144], &SamplingParams::new(), 20_000);
    for eighth in 0..8u32 {
        let count = drawn.iter().filter(|&&id| id >> 15 == eighth).count() as f64;
        assert!(
            (count - 2500.0).abs() < 5.0 * 46.8,
            "{count} in eighth {eighth}"
        );
    }
}

/// A common offset changes nothing but the last bits of the logits themselves.
#[test]
fn frequencies_do_not_depend_on_an_offset() -> Result<()> {
    let logits: Vec<f32> = normal(&mut rng(9), 400, 2.0)
        .iter()
        .map(|z| (z * 16.0).round() / 16.0)
        .collect();
    let filter = Filter {
        temperature: 1.0,
        p: Some(0.95),
        ..Filter::default()
    };
    let oracle = Oracle::new(&logits, filter);
    for offset in [700_000f32, -700_000.0, 950_000.0, -950_000.0] {
        let moved: Vec<f32> = logits.iter().map(|z| z + offset).collect();
        chi_square(
            &format!("offset {offset}"),
            &oracle,
            &draw(&moved, &filter.params(), 40_000),
        );
    }
    let t = Tensor::new(&[-3e38f32, -3e38, f32::MIN], &Device::Cpu)?;
    let mut sampler = Sampler::new(&[SamplingParams::new()])?;
    let seen: std::collections::BTreeSet<u32> = (0..100)
        .map(|_| sampler.sample_to_vec(&t).map(|ids| ids[0]))
        .collect::<Result<_>>()?;
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [0, 1],
        "two equal maxima, far from zero"
    );
    Ok(())
}
