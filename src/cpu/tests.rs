//! The fast rows against the reference, for every instruction set of the machine that runs the tests.

use super::arch::Level;
use super::slice::Logit;
use super::{Row, Workspace, sample};
use crate::params::{SamplingParams, TopKTopP};
use crate::reference;
use half::{bf16, f16};
use proptest::prelude::*;

/// Rows that have gone wrong somewhere: ties, masks, far offsets, flat and peaked ones, all lengths.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let len = prop_oneof![1usize..40, 500usize..530, 1000usize..4000];
    let kind = 0..8u8;
    (len, kind, any::<u64>()).prop_map(|(len, kind, seed)| row(len, kind, seed))
}

fn row(len: usize, kind: u8, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut normal = |scale: f32| {
        let sum: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
        (sum - 6.0) * scale
    };
    let row: Vec<f32> = (0..len).map(|_| normal(1.0)).collect();
    match kind {
        0 => row,
        1 => row.iter().map(|z| z * 5.0).collect(),
        2 => row.iter().map(|z| (z * 4.0).round() / 4.0).collect(),
        3 => vec![row[0]; len],
        4 => row
            .iter()
            .map(|z| if *z < 0.5 { f32::NEG_INFINITY } else { z * 3.0 })
            .collect(),
        5 => row.iter().map(|z| z * 3.0 + 2e6).collect(),
        6 => row
            .iter()
            .map(|z| if *z < 1.0 { -1e30 } else { z * 8.0 - 3.0 })
            .collect(),
        // One token far above a flat tail, and a zero of either sign.
        _ => {
            let mut row: Vec<f32> = row
                .iter()
                .map(|z| if *z < 0.0 { -0.0 } else { 0.0 })
                .collect();
            row[len / 2] = 18.0;
            row
        }
    }
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(0.0), Just(1.0), Just(1e-5), Just(1e6), 0.05f64..3.0];
    let top_k = prop::option::of(prop_oneof![1usize..10, 1usize..600, Just(5000)]);
    let top_p = prop::option::of(prop_oneof![
        0.001f64..1.0,
        Just(1.0),
        Just(1e-12),
        Just(0.999999)
    ]);
    let min_p = prop::option::weighted(0.3, prop_oneof![0.0f64..1.0, Just(1e-5), Just(1.0)]);
    (
        temperature,
        top_k,
        top_p,
        min_p,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(t, k, p, min_p, joint, seed)| {
            let mut params = SamplingParams::new().temperature(t).seed(seed);
            if let Some(k) = k {
                params = params.top_k(k);
            }
            if let Some(p) = p {
                params = params.top_p(p);
            }
            if let Some(p) = min_p {
                params = params.min_p(p);
            }
            params.order(if joint {
                TopKTopP::Joint
            } else {
                TopKTopP::Renormalised
            })
        })
}

fn check<T: Logit>(
    logits: &[T],
    wide: &[f32],
    params: &SamplingParams,
    rounds: u32,
    ws: &mut Workspace,
) {
    let resolved = params.resolve().unwrap();
    for position in [0, 1, u64::MAX] {
        let want = reference::sample_row(wide, &resolved, position, rounds);
        let row = Row {
            logits,
            params: &resolved,
            position,
        };
        for level in Level::available() {
            let got = sample(&row, rounds, ws, level);
            assert_eq!(
                got, want,
                "{level:?}, {rounds} rounds, position {position}, {params:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn equals_the_reference(row in rows(), params in params(), rounds in 0u32..5) {
        let mut ws = Workspace::default();
        check(&row, &row, &params, rounds, &mut ws);
        let narrow: Vec<f16> = row.iter().map(|z| f16::from_f32(*z)).collect();
        let wide: Vec<f32> = narrow.iter().map(|z| z.to_f32()).collect();
        check(&narrow, &wide, &params, rounds, &mut ws);
        let narrow: Vec<bf16> = row.iter().map(|z| bf16::from_f32(*z)).collect();
        let wide: Vec<f32> = narrow.iter().map(|z| z.to_f32()).collect();
        check(&narrow, &wide, &params, rounds, &mut ws);
    }
}

/// Large enough that slices outnumber k, and candidates outnumber what is selected at once.
#[test]
fn equals_the_reference_on_large_rows() {
    let mut ws = Workspace::default();
    for kind in 0..8 {
        let row = row(40_000, kind, 7 + u64::from(kind));
        for k in [1, 20, 5000, 30_000] {
            for order in [TopKTopP::Joint, TopKTopP::Renormalised] {
                let params = SamplingParams::new()
                    .temperature(1.5)
                    .top_k(k)
                    .top_p(0.97)
                    .order(order);
                check(&row, &row, &params, 2, &mut ws);
            }
            check(&row, &row, &SamplingParams::new().top_k(k), 4, &mut ws);
        }
        check(
            &row,
            &row,
            &SamplingParams::new().temperature(1.5).top_p(0.5),
            0,
            &mut ws,
        );
        check(&row, &row, &SamplingParams::new().min_p(0.01), 4, &mut ws);
    }
}
