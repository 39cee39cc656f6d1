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
    let len = prop_oneof![1usize..40, 500usize..530, 1000usize..9100];
    let kind = 0..KINDS;
    (len, kind, any::<u64>()).prop_map(|(len, kind, seed)| row(len, kind, seed))
}

const KINDS: u8 = 15;

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
        // What a sample of the slices' beginnings says is wrong.
        7 => begin_slices(row, |z| z - 6.0),
        8 => begin_slices(row, |z| z + 3.0),
        9 => begin_slices(row, |_| f32::NEG_INFINITY),
        // Slices in all binary orders down to nothing.
        10 => (row.iter().enumerate())
            .map(|(i, z)| z - (i / 512 * 5) as f32)
            .collect(),
        // Slices that lose bits in the row's unit, and together weigh as much as the first token.
        11 => {
            let mut row: Vec<f32> = row.iter().map(|z| z * 0.2).collect();
            row[len / 2] = (len as f32).ln().max(9.0);
            row
        }
        // Slices that hardly overlap: more tokens than are gathered lie above the k-th slice's first.
        12 => (row.iter().enumerate())
            .map(|(i, z)| (z - (i / 512 * 5) as f32) * 0.2)
            .collect(),
        // A mask that leaves neighbours in one slice.
        13 => {
            let kept = len / 1024 * 512..len / 1024 * 512 + 60;
            let masked = |(i, z)| {
                if kept.contains(&i) {
                    z
                } else {
                    f32::NEG_INFINITY
                }
            };
            row.into_iter().enumerate().map(masked).collect()
        }
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

fn begin_slices(mut row: Vec<f32>, f: impl Fn(f32) -> f32) -> Vec<f32> {
    for slice in row.chunks_mut(512) {
        let end = slice.len().min(20) * usize::from(slice.len() > 20);
        slice[..end].iter_mut().for_each(|z| *z = f(*z));
    }
    row
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

fn check<T: Logit>(logits: &[T], wide: &[f32], params: &SamplingParams, ws: &mut Workspace) {
    check_at(&[0, 1, u64::MAX], logits, wide, params, ws);
}

fn check_at<T: Logit>(
    positions: &[u64],
    logits: &[T],
    wide: &[f32],
    params: &SamplingParams,
    ws: &mut Workspace,
) {
    let resolved = params.resolve().unwrap();
    for &position in positions {
        let want = reference::sample_row(wide, &resolved, position);
        let row = Row {
            logits,
            params: &resolved,
            position,
        };
        for level in Level::available() {
            let got = sample(&row, ws, level);
            assert_eq!(got, want, "{level:?}, position {position}, {params:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn equals_the_reference(row in rows(), params in params()) {
        let mut ws = Workspace::default();
        check(&row, &row, &params, &mut ws);
        let narrow: Vec<f16> = row.iter().map(|z| f16::from_f32(*z)).collect();
        let wide: Vec<f32> = narrow.iter().map(|z| z.to_f32()).collect();
        check(&narrow, &wide, &params, &mut ws);
        let narrow: Vec<bf16> = row.iter().map(|z| bf16::from_f32(*z)).collect();
        let wide: Vec<f32> = narrow.iter().map(|z| z.to_f32()).collect();
        check(&narrow, &wide, &params, &mut ws);
    }
}

/// Large enough that tokens are gathered around a guess; the largest, that slices outnumber k.
#[test]
fn equals_the_reference_on_large_rows() {
    let mut ws = Workspace::default();
    let new = || SamplingParams::new().temperature(1.5);
    for (kind, len) in (0..KINDS).flat_map(|kind| [(kind, 8191), (kind, 40_000)]) {
        let row = row(len, kind, 7 + u64::from(kind));
        for k in [1, 3, 20, 40, 200, 5000, 30_000] {
            for order in [TopKTopP::Joint, TopKTopP::Renormalised] {
                for p in [0.2, 0.97] {
                    check(&row, &row, &new().top_k(k).top_p(p).order(order), &mut ws);
                }
                let all = new().top_k(k).top_p(0.8).min_p(0.02).order(order);
                check(&row, &row, &all, &mut ws);
            }
            check(&row, &row, &new().top_k(k), &mut ws);
        }
        for p in [0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 0.999_999_9] {
            check(&row, &row, &new().top_p(p), &mut ws);
            check(&row, &row, &new().top_p(p).min_p(0.02), &mut ws);
        }
        check(&row, &row, &new(), &mut ws);
        check(&row, &row, &new().min_p(0.01), &mut ws);
    }
}

/// Every token of every slice comes up, the last of a slice and the last that is kept too.
#[test]
fn equals_the_reference_for_many_random_numbers() {
    let mut ws = Workspace::default();
    let positions: Vec<u64> = (0..3000).collect();
    for kind in [2, 3, 11] {
        let row = row(1300, kind, 5);
        for params in [
            SamplingParams::new(),
            SamplingParams::new().top_k(1100),
            SamplingParams::new().top_p(0.9),
            SamplingParams::new().min_p(1e-5),
        ] {
            check_at(&positions, &row, &row, &params, &mut ws);
        }
    }
}

#[test]
fn equals_the_reference_whichever_try_is_kept_if_any() {
    let mut ws = Workspace::default();
    let positions: Vec<u64> = (0..400).collect();
    let new = SamplingParams::new;
    for kind in [0, 2, 3, 11] {
        let row = row(1300, kind, 5);
        for params in [
            new().top_k(3),
            new().top_k(100),
            new().top_k(1100).min_p(0.1),
            new().top_k(400).top_p(0.3).order(TopKTopP::Joint),
            new().top_k(400).top_p(0.3),
            new().top_p(0.1),
            new().top_p(0.3),
            new().top_p(0.3).min_p(1e-5),
            new().top_p(0.9).min_p(0.3),
        ] {
            check_at(&positions, &row, &row, &params, &mut ws);
        }
    }
}
