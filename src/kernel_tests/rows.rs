//! Rows and parameters that have misled a sampler, or could.

use super::case::{Case, Element, Place, elementwise, narrow, position_of, sample};
use crate::params::{SamplingParams, TopKTopP};
use crate::{ops, reference};
use candle_core::{DType, Device};
use half::{bf16, f16};
use std::path::Path;
use std::sync::LazyLock;

fn rng(seed: u64) -> rand::rngs::StdRng {
    rand::SeedableRng::seed_from_u64(seed)
}

/// Rows that have misled a sampler.
fn rows(vocab: usize, seed: u64) -> Vec<Vec<f32>> {
    use rand::Rng;
    const INF: f32 = f32::INFINITY;
    let mut rng = rng(seed);
    let mut normal = || -> f32 { (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0 };
    let base: Vec<f32> = (0..vocab).map(|_| normal()).collect();
    let map = |f: &dyn Fn(f32) -> f32| base.iter().map(|&z| f(z)).collect::<Vec<f32>>();
    let put = |mut row: Vec<f32>, z: f32| {
        row[vocab * 2 / 3] = z;
        row
    };
    vec![
        map(&|z| z),
        map(&|z| z * 5.0),
        map(&|z| (z * 4.0).round() / 4.0),
        vec![base[0]; vocab],
        map(&|z| if z < 0.5 { -INF } else { z * 3.0 }),
        map(&|z| z * 3.0 + 2e6),
        map(&|z| z - 1e30),
        map(&|z| if z < 1.0 { -1e30 } else { z * 8.0 - 3.0 }),
        put(map(&|z| if z < 0.0 { -0.0 } else { 0.0 }), 18.0),
        map(&|z| if z < 0.0 { -0.0 } else { 0.0 }),
        put(map(&|z| z), f32::NAN),
        put(map(&|z| z), INF),
        vec![-INF; vocab],
        put(vec![-INF; vocab], -7.0),
        // Far apart: the slices' largest logits.
        (0..vocab)
            .map(|i| if i < vocab / 2 { base[i] } else { -1e30 })
            .collect(),
        // What a grammar may leave.
        (0..vocab)
            .map(|i| if i / 40 == vocab / 90 { base[i] } else { -INF })
            .collect(),
    ]
}

/// Every filter alone and with others, in both orders, at ordinary and at extreme temperatures.
fn params() -> Vec<SamplingParams> {
    let new = SamplingParams::new;
    let mut all = vec![new()];
    all.extend([0.0, 1e-5, 1.5, 1e6].map(|t| new().temperature(t)));
    all.extend([1, 2, 20, 600, 5000, 30_000].map(|k| new().top_k(k)));
    all.extend([1e-12, 0.5, 0.97, 0.999_999].map(|p| new().top_p(p)));
    all.extend([1e-5, 0.05, 1.0].map(|p| new().min_p(p)));
    for order in [TopKTopP::Joint, TopKTopP::Renormalised] {
        for (t, k, p) in [
            (1.0, 1, 0.9),
            (1.0, 20, 0.9),
            (1.5, 600, 0.97),
            (1.0, 5000, 0.999_999),
            (1e6, 1100, 0.5),
            (1e6, 30_000, 0.97),
            (1e-5, 40, 0.3),
        ] {
            all.push(new().temperature(t).top_k(k).top_p(p).order(order));
        }
        all.push(new().top_k(50).top_p(0.8).min_p(0.02).order(order));
    }
    all.push(new().temperature(1.5).top_k(300).min_p(0.01));
    all.push(new().temperature(1e6).top_p(0.9).min_p(1e-5));
    (0..).zip(all).map(|(i, p)| p.seed(i << 33 | i)).collect()
}

/// Each row with `each` of the parameters, another part of them for another `turn`.
fn mixed(vocab: usize, turn: usize, each: usize) -> Vec<(Vec<f32>, SamplingParams)> {
    let params = params();
    let mut next = turn * 7;
    let mut mixed = Vec::new();
    for row in rows(vocab, turn as u64) {
        for _ in 0..each {
            mixed.push((row.clone(), params[next % params.len()].clone()));
            next += 1;
        }
    }
    mixed
}

fn sampling_cases() -> Vec<Case> {
    let dense = Place { offset: 0, gap: 0 };
    let view = Place { offset: 3, gap: 5 };
    let mut cases = vec![sample::<f32>(
        "everything",
        &mixed(1003, 1, params().len()),
        view,
    )];
    for (turn, vocab) in [1, 2, 31, 33, 511, 512, 513, 5000].into_iter().enumerate() {
        let name = vocab.to_string();
        cases.push(sample::<f32>(&name, &mixed(vocab, turn, 4), dense));
        cases.push(sample::<f16>(&name, &mixed(vocab, turn + 10, 2), view));
        cases.push(sample::<bf16>(&name, &mixed(vocab, turn + 20, 2), view));
    }
    // As many candidates as there is room for, when some wave has not come to its last ones.
    for vocab in [3584, 3585, 3840, 4096] {
        let equal = |p: SamplingParams| (vec![1.5; vocab], p.min_p(0.5));
        let rows = [
            equal(SamplingParams::new()),
            equal(SamplingParams::new().seed(1)),
        ];
        cases.push(sample::<f32>("equal", &rows, dense));
    }
    // As many candidates as are ranked in one way or another, different ones and equal ones.
    let mut ranked = Vec::new();
    for n in [1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        let different = |i: usize| (i * 7919 % n) as f32 / n as f32;
        for logit in [&different as &dyn Fn(usize) -> f32, &|_| 0.5] {
            let mut row = vec![-50.0; 40_000];
            for i in 0..n {
                row[i * 40_000 / n] = logit(i);
            }
            let new = SamplingParams::new().seed(n as u64);
            let k = new.clone().top_k(64);
            let both = new.clone().top_k(65).top_p(0.7);
            for params in [new.min_p(0.1), k, both.clone(), both.order(TopKTopP::Joint)] {
                ranked.push((row.clone(), params));
            }
        }
    }
    cases.push(sample::<f32>("few of 40,000", &ranked, dense));
    let halves: Vec<_> = [(2, 2), (64, 64), (100, 60), (128, 128)]
        .into_iter()
        .flat_map(|(n, k)| halves(40_000, n, k))
        .collect();
    cases.push(sample::<f32>("halves", &halves, dense));
    cases.push(sample::<f32>(
        "first of a slice",
        &first_of_a_slice(),
        dense,
    ));
    cases.push(sample::<f32>("levels", &levels(12), dense));
    cases.push(sample::<f32>(
        "many in few slices",
        &crowded(40_000, 64),
        dense,
    ));
    cases.push(sample::<f32>(
        "ties for the k-th",
        &ties_for_the_kth(),
        dense,
    ));
    cases.push(sample::<f32>(
        "ties in two fours",
        &ties_in_two_fours(),
        dense,
    ));
    // Less than the k first, bounded by slices' largest logits, or looked for.
    let few: Vec<_> = [50, 600].iter().flat_map(|&k| masked(40_000, k)).collect();
    cases.push(sample::<f32>("masked", &few, dense));
    // A hundred tokens, and others that weigh nothing beside them, and are farther below them than is kept of groups.
    let mut low = rows(20_000, 8)[0].clone();
    low.iter_mut().skip(100).for_each(|z| *z -= 1e6);
    let hot = |p| SamplingParams::new().temperature(1e5).top_p(p);
    let low: Vec<_> = [0.88, 0.9]
        .into_iter()
        .flat_map(|p| (0..30).map(move |seed| hot(p).seed(seed)))
        .map(|params| (low.clone(), params))
        .collect();
    cases.push(sample::<f32>("low", &low, dense));
    for rows in ends_of_drops() {
        cases.push(sample::<f32>("ends of drops", &rows, dense));
    }
    // More slices than are looked at together.
    let row = &rows(170_000, 50)[0];
    let hot = SamplingParams::new().temperature(9.0);
    let params = [hot.clone().top_k(2000), hot.clone().top_k(30_000)];
    let params = params
        .into_iter()
        .chain([hot.clone().top_p(0.02), hot.top_p(0.5).top_k(20_000)]);
    let long: Vec<_> = (0..)
        .zip(params)
        .map(|(i, p)| (row.clone(), p.seed(i)))
        .collect();
    cases.push(sample::<f32>("170,000", &long, dense));
    // Slices outnumber k, or candidates what is ranked at once.
    cases.push(sample::<f32>("40,000", &mixed(40_000, 30, 3), view));
    cases
}

/// Rows of which a mask leaves tokens in fewer slices than `k`, of all of which the largest logit is the same.
fn masked(vocab: usize, k: usize) -> Vec<(Vec<f32>, SamplingParams)> {
    let mut all = Vec::new();
    for (slices, tokens) in [(1, 20), (1, 300), (3, 40), (10, 512)] {
        let mut row = vec![f32::NEG_INFINITY; vocab];
        for slice in row.chunks_mut(512).step_by(7).take(slices) {
            for (i, z) in slice.iter_mut().take(tokens).enumerate() {
                *z = -(i as f32) / 100.0;
            }
        }
        let params = SamplingParams::new().top_k(k).seed(tokens as u64);
        let both = params.clone().top_p(0.95);
        let joint = both.clone().order(TopKTopP::Joint);
        for params in [params, both, joint] {
            all.push((row.clone(), params));
        }
    }
    all
}

/// Rows of which each group's largest logit is nearly as far below its slice's as what is kept of it can mean, so that a bound which takes it to be a
/// little nearer is none: for the `k` first, and for what is above a token that only just is not kept.
fn ends_of_drops() -> [Vec<(Vec<f32>, SamplingParams)>; 2] {
    let (top, near, far) = (10.0f32, 10.0 - 1.0 / 64.0, 10.125 - 2.1875 + 1e-5);
    let row = |slices: usize, nearer: usize| -> Vec<f32> {
        let logit = |i: usize| match (i % 512 / 16, i % 16) {
            (0, 0) => top,
            (group, 0) if group <= nearer => near,
            (_, 0) => far,
            _ => -50.0,
        };
        (0..slices * 512).map(logit).collect()
    };
    let new = SamplingParams::new;
    let first = row(4, 0);
    let first = (0..6).map(|seed| (first.clone(), new().top_k(100).seed(seed)));
    // 40 tokens, then 240, then 1,000. The last of the 240, a hundredth of the mass, are not kept.
    let row = row(40, 6);
    let weight = |z: f32| f64::from(z - top).exp();
    let masses = [40.0, 240.0 * weight(near), 1000.0 * weight(far)];
    let p = 0.99 - masses[2] / masses.iter().sum::<f64>();
    let mut above = Vec::new();
    for seed in 0..400 {
        let params = new().seed(seed);
        let plain = params.resolve().unwrap();
        // What is tried first.
        let id = reference::sample_row(&row, &plain, position_of(above.len())).unwrap() as usize;
        if row[id] == near && id > row.len() - 512 {
            above.push((row.clone(), params.top_p(p)));
        }
    }
    [first.collect(), above]
}

/// Rows whose `k` first tokens are in so few slices that the k-th slice reaches far below them: more candidates than are ranked, of which
/// few, or all, can be among the first `k`.
fn crowded(vocab: usize, k: usize) -> Vec<(Vec<f32>, SamplingParams)> {
    let mut all = Vec::new();
    for (equal, different) in [(0, 300), (0, 2000), (190, 200), (257, 10), (400, 0)] {
        let mut row = vec![-50.0; vocab];
        row.iter_mut().step_by(512).for_each(|z| *z = 0.0);
        row[3..3 + equal].fill(1.5);
        for (i, z) in row[3 + equal..].iter_mut().take(different).enumerate() {
            *z = 1.0 + (i * 7919 % different) as f32 / different as f32;
        }
        let params = SamplingParams::new().top_k(k).seed(different as u64);
        let both = params.clone().top_p(0.8);
        let joint = both.clone().order(TopKTopP::Joint);
        for params in [params.clone(), params.min_p(0.3), both, joint] {
            all.push((row.clone(), params));
        }
    }
    all
}

/// The same row, drawn from with so many seeds.
fn with_seeds(row: &[f32], params: &SamplingParams, seeds: u64) -> Vec<(Vec<f32>, SamplingParams)> {
    let with = |seed| (row.to_vec(), params.clone().seed(seed));
    (0..seeds).map(with).collect()
}

/// Rows of which so many tokens tie for the k-th place that the list has to be shortened: any logit above theirs leaves one token too few.
fn ties_for_the_kth() -> Vec<(Vec<f32>, SamplingParams)> {
    let mut row = vec![-50.0; 5 * 512];
    row[7] = 2.0;
    row[600..700].fill(1.0);
    with_seeds(&row, &SamplingParams::new().temperature(10.0).top_k(2), 8)
}

/// Rows in which eight tokens that tie are all that counts: two fours, which one thread may draw from. All of the first come before the second.
fn ties_in_two_fours() -> Vec<(Vec<f32>, SamplingParams)> {
    let mut row = vec![-50.0; 5 * 512];
    row[1032..1040].fill(1.0);
    with_seeds(&row, &SamplingParams::new().top_p(0.6), 24)
}

/// Rows of `n` tokens, equal ones or half of them `lighter` and with smaller ids. p is the share of the first half, or a little more or less: whether one more
/// is kept has to be known exactly, but where the same token is drawn either way.
fn halves(vocab: usize, n: usize, k: usize) -> Vec<(Vec<f32>, SamplingParams)> {
    let mut all = Vec::new();
    for lighter in [1.25, 0.75] {
        let mut row = vec![-60.0; vocab];
        for i in 0..n / 2 {
            let id = (i * 7919 + 5) % (vocab / 2);
            row[id] = lighter;
            row[id + vocab / 2] = 1.25;
        }
        let share = 1.0 / (1.0 + f64::from(lighter - 1.25).exp());
        for seed in 0..12 {
            let p = share + [0.0, 1e-7, -1e-7][seed as usize / 4];
            let params = SamplingParams::new().top_k(k).top_p(p).seed(seed);
            all.push((row.clone(), params.order(TopKTopP::Joint)));
        }
    }
    all
}

/// Rows whose second token, which is not kept, is its slice's first and largest: a bound that counts it among what is above it, or takes it off what it is not
/// part of, is none.
fn first_of_a_slice() -> Vec<(Vec<f32>, SamplingParams)> {
    let mut row = vec![-30.0; 5 * 512];
    (row[700], row[1024]) = (0.0, -0.6);
    with_seeds(&row, &SamplingParams::new().top_p(0.5), 20)
}

/// Rows of which each slice has so many tokens so many binary orders of weight below its largest, on both sides of the places at which its mass is divided: what is
/// above a try of one level is more than p, and less without another level.
fn levels(slices: usize) -> Vec<(Vec<f32>, SamplingParams)> {
    let levels = [(0.0, 2), (2.0, 30), (2.5, 20), (4.0, 60), (5.0, 100)];
    let row = (0..slices).flat_map(|slice| {
        let mut tokens = vec![-40.0; 512];
        let orders = levels
            .iter()
            .flat_map(|&(orders, count)| vec![orders; count]);
        for (i, orders) in orders.enumerate() {
            let apart = (slice * 512 + i) as f32 * 1e-6;
            tokens[(i * 79 + slice) % 512] = -orders * std::f32::consts::LN_2 - apart;
        }
        tokens
    });
    let row: Vec<f32> = row.collect();
    let params = (0..36).map(|seed| {
        let p = [0.4, 0.6, 0.8][seed as usize % 3];
        SamplingParams::new().top_p(p).seed(seed)
    });
    params.map(|params| (row.clone(), params)).collect()
}

/// Next-token logits of Qwen2.5-Coder-0.5B-Instruct (see `tests/data/README.md`).
fn real_case() -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/real_rows.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let real = tensors["logits"].to_dtype(DType::F32).unwrap();
    let real: Vec<Vec<f32>> = real.to_vec2().unwrap();
    let new = SamplingParams::new;
    let params = [
        new().top_p(0.9),
        new().top_k(50).top_p(0.9),
        new().temperature(1.5).top_k(5000).top_p(0.999),
        new().temperature(0.7).min_p(0.05),
    ];
    let rows: Vec<_> = real.into_iter().zip(params).collect();
    sample::<f16>("real rows", &rows, Place { offset: 0, gap: 8 })
}

fn softmax_cases<T: Element>(cases: &mut Vec<Case>) {
    for vocab in [1, 33, 512, 1003, 5000] {
        let rows: Vec<Vec<T>> = rows(vocab, 40).iter().map(|row| narrow(row)).collect();
        cases.push(elementwise(1, &rows, vocab % 3, ops::softmax));
    }
}

fn prefix_sum_cases() -> Vec<Case> {
    use rand::Rng;
    let mut cases = Vec::new();
    // 600 rows: more than one block adds the totals.
    for (count, length) in [(1, 1), (3, 511), (2, 512), (3, 513), (2, 40_000), (600, 3)] {
        let mut rng = rng(length as u64);
        let mut row = |_| (0..length).map(|_| rng.random::<u32>()).collect();
        let integers: Vec<Vec<u32>> = (0..count).map(&mut row).collect();
        let float = |x: &u32| *x as f32 * 1e-9 - 1.0;
        let floats = integers.iter().map(|row| row.iter().map(float).collect());
        let floats: Vec<Vec<f32>> = floats.collect();
        cases.push(elementwise(2, &floats, 1, ops::prefix_sum));
        cases.push(elementwise(2, &integers, 0, ops::prefix_sum));
    }
    cases
}

/// So many of the cases, the first ones, are draws.
pub(super) static SAMPLING: LazyLock<usize> = LazyLock::new(|| {
    let draws = CASES.iter().take_while(|c| c.name.starts_with("sample"));
    draws.count()
});

pub(super) static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = sampling_cases();
    cases.push(real_case());
    softmax_cases::<f32>(&mut cases);
    softmax_cases::<f16>(&mut cases);
    softmax_cases::<bf16>(&mut cases);
    cases.extend(prefix_sum_cases());
    cases
});

/// Draws in which every barrier is waited for by somebody.
pub(super) fn waiting_draws() -> Vec<Case> {
    let place = Place { offset: 0, gap: 0 };
    // More slices than a wave has lanes, so that waves depend on each other in every sum; and more than a block has threads.
    let mut cases = vec![sample::<f32>("", &mixed(20_000, 0, 3), place)];
    let row = &rows(270_000, 0)[0];
    let new = SamplingParams::new;
    let hot = |p| new().temperature(9.0).top_p(p);
    let half = (0..4).map(|seed| hot(0.5).seed(seed));
    let params = [new(), hot(0.9), new().top_k(150)].into_iter().chain(half);
    let large: Vec<_> = params.map(|p| (row.clone(), p)).collect();
    cases.push(sample::<f32>("more slices than threads", &large, place));
    let rows_of = rows(20_000, 0);
    let special = [
        (5, new()),
        (5, new().top_p(0.9)),
        (0, new().top_k(2000).top_p(0.9)),
        (5, new().top_k(2000)),
        (7, new().temperature(9.0).top_p(0.9).min_p(0.3)),
        (9, new().top_k(2000).top_p(0.999_999).order(TopKTopP::Joint)),
        (13, new().top_k(2000)),
        (13, new().temperature(1.5).top_k(300).min_p(0.01)),
        (13, new().top_k(30).top_p(0.8).min_p(0.02)),
    ];
    // And tries: unsure ones of more rows than blocks ask for, and refused ones.
    let tried = (0..12).map(|seed| (seed % 3, hot([0.02, 0.5, 0.9][seed / 4]).seed(seed as u64)));
    let special = special.into_iter().chain(tried);
    let special: Vec<_> = special
        .map(|(row, params)| (rows_of[row].clone(), params))
        .collect();
    cases.push(sample::<f32>(
        "far from zero, or mostly nothing",
        &special,
        place,
    ));
    let many = |row: usize| (rows_of[row].clone(), new().top_k(2000));
    let without_tries = [crowded(20_000, 30), vec![many(5), many(13)]].concat();
    cases.push(sample::<f32>("without tries", &without_tries, place));
    cases.push(sample::<f32>("halves", &halves(20_000, 64, 64), place));
    cases
}

/// The same of the other ops.
pub(super) fn waiting_ops() -> [Case; 2] {
    [
        elementwise(1, &rows(1003, 0), 0, ops::softmax),
        elementwise(2, &rows(1003, 0)[..4], 0, ops::prefix_sum),
    ]
}
