//! The GPU kernels against the Rust reference, bit for bit, on a machine without a GPU.
//!
//! `tests/harness` compiles the very files of `kernels/` with the host's C++ compiler and runs whole grids on one CPU
//! thread, under AddressSanitizer and UndefinedBehaviourSanitizer, in waves of 32 and 64 lanes. The order in which lanes,
//! waves and blocks run is drawn from a seed; a result must not change with it.

use crate::device_params::DeviceParams;
use crate::params::{RowParams, SamplingParams, TopKTopP};
use crate::{ops, reference};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// One launch: what the harness reads, and what it must answer.
struct Case {
    name: String,
    input: Vec<u8>,
    want: Vec<u8>,
    /// Bytes of one result.
    width: usize,
    /// What decides a row's result, for the message.
    rows: Vec<String>,
}

trait Element: WithDType {
    /// The harness's number for the type.
    const CODE: u32;
    fn bytes(xs: &[Self]) -> Vec<u8>;
}

macro_rules! element {
    ($t:ty, $code:expr) => {
        impl Element for $t {
            const CODE: u32 = $code;
            fn bytes(xs: &[Self]) -> Vec<u8> {
                xs.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
        }
    };
}

element!(f32, 0);
element!(f16, 1);
element!(bf16, 2);
element!(u32, 3);

/// `RowParams` as `kernels/definition.h` declares it.
fn device_params(params: &RowParams, vocab: usize) -> Vec<u8> {
    let words = DeviceParams::new(params, vocab).words();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Where the rows are in their buffer. What surrounds them is NaN, lest anyone read it unnoticed.
#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    gap: usize,
}

fn buffer<T: Element>(rows: &[Vec<T>], place: Place) -> Vec<T> {
    let mut data = vec![T::from_f64(f64::NAN); place.offset];
    for (i, row) in rows.iter().enumerate() {
        let gap = if i == 0 { 0 } else { place.gap };
        data.extend(vec![T::from_f64(f64::NAN); gap]);
        data.extend(row);
    }
    data
}

/// A case's input up to the parameters.
fn header<T: Element>(kind: u32, rows: &[Vec<T>], params: usize, place: Place) -> Vec<u8> {
    let vocab = rows[0].len();
    let mut bytes = u32::bytes(&[
        kind,
        T::CODE,
        rows.len() as u32,
        vocab as u32,
        params as u32,
    ]);
    let elements = place.offset + rows.len() * vocab + (rows.len() - 1) * place.gap;
    for x in [vocab + place.gap, place.offset, elements] {
        bytes.extend((x as u64).to_le_bytes());
    }
    bytes
}

fn narrow<T: Element>(row: &[f32]) -> Vec<T> {
    row.iter().map(|&z| T::from_f64(f64::from(z))).collect()
}

/// Draws a token from each row with its parameters, one launch for all of them.
fn sample<T: Element>(name: &str, rows: &[(Vec<f32>, SamplingParams)], place: Place) -> Case {
    let positions = |i: usize| [0, 1, u64::MAX, 1 << 40][i % 4];
    let logits: Vec<Vec<T>> = rows.iter().map(|(row, _)| narrow(row)).collect();
    let mut input = header(0, &logits, rows.len(), place);
    let (mut ids, mut next) = (Vec::new(), Vec::new());
    for (i, (_, params)) in rows.iter().enumerate() {
        let params = params.resolve().unwrap();
        let wide: Vec<f32> = logits[i].iter().map(|z| z.to_f64() as f32).collect();
        input.extend(device_params(&params, wide.len()));
        let id = reference::sample_row(&wide, &params, positions(i));
        ids.push(id.unwrap_or(u32::MAX));
        next.extend(positions(i).wrapping_add(1).to_le_bytes());
    }
    input.extend((0..rows.len()).flat_map(|i| positions(i).to_le_bytes()));
    input.extend(T::bytes(&buffer(&logits, place)));
    Case {
        name: format!("sample {name} {:?}", T::DTYPE),
        input,
        want: [u32::bytes(&ids), next].concat(),
        width: 4,
        rows: rows
            .iter()
            .map(|(_, params)| format!("{params:?}"))
            .collect(),
    }
}

/// `kind` 1 is the softmax and 2 the prefix sum; `op` is the crate's.
fn elementwise<T: Element>(
    kind: u32,
    rows: &[Vec<T>],
    offset: usize,
    op: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Case {
    let place = Place { offset, gap: 0 };
    let xs = Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap();
    let want = op(&xs).unwrap().flatten_all().unwrap().to_vec1::<T>();
    let mut input = header(kind, rows, usize::from(kind == 1), place);
    if kind == 1 {
        let plain = SamplingParams::new().resolve().unwrap();
        input.extend(device_params(&plain, rows[0].len()));
    }
    input.extend(T::bytes(&buffer(rows, place)));
    Case {
        name: format!("kind {kind}, {:?} {:?}", xs.dims(), T::DTYPE),
        input,
        want: T::bytes(&want.unwrap()),
        width: T::DTYPE.size_in_bytes(),
        rows: Vec::new(),
    }
}

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
    cases.push(sample::<f32>(
        "many in few slices",
        &crowded(40_000, 64),
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
static SAMPLING: LazyLock<usize> = LazyLock::new(|| {
    let draws = CASES.iter().take_while(|c| c.name.starts_with("sample"));
    draws.count()
});

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = sampling_cases();
    cases.push(real_case());
    softmax_cases::<f32>(&mut cases);
    softmax_cases::<f16>(&mut cases);
    softmax_cases::<bf16>(&mut cases);
    cases.extend(prefix_sum_cases());
    cases
});

/// Asks for what `tests/harness/races.h` tells.
const RACES: &str = "-DRACES";

/// A folder with the compiled harness and a file of cases; gone when dropped.
struct Harness {
    folder: PathBuf,
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Harness {
    /// `None`, with the reason on standard output, where it cannot be compiled.
    fn compile(name: &str, wave: u32, flags: &[&str]) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = root.join("tests/harness/main.cpp");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let reason = if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            "the harness is written for Linux on x86-64"
        } else if !source.exists() {
            "the published crate has no harness"
        } else if Command::new(&compiler).arg("--version").output().is_err() {
            "no C++ compiler"
        } else {
            let folder = format!("candle-sampler-{}-{name}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let harness = Self { folder };
            let [object, program] = ["harness.o", "harness"].map(|f| harness.folder.join(f));
            let compile = |flags: &[&str], from: &[&Path], to: &Path| {
                let out = Command::new(&compiler)
                    .args(
                        "-std=c++17 -O1 -g -ffp-contract=off -Wall -Wextra -Werror -Wno-attributes"
                            .split(' '),
                    )
                    .args(flags)
                    .arg(format!("-DWAVE={wave}"))
                    .args(["-Ikernels", "-Itests/harness", "-o"])
                    .arg(to)
                    .args(from)
                    .current_dir(root)
                    .output()
                    .unwrap();
                let errors = String::from_utf8_lossy(&out.stderr);
                assert!(out.status.success(), "{errors}");
            };
            if flags.contains(&RACES) {
                // What the instrumented code calls is ours, and not instrumented.
                let with = [flags, &["-fsanitize=thread", "-no-pie", "-c"]].concat();
                compile(&with, &[&source], &object);
                let races = root.join("tests/harness/races.cpp");
                compile(&[RACES, "-no-pie"], &[&object, &races], &program);
            } else {
                compile(flags, &[&source], &program);
            }
            return Some(harness);
        };
        println!("skipped: {reason}");
        None
    }

    fn write(&self, cases: &[Case]) {
        let input: Vec<u8> = cases.iter().flat_map(|c| c.input.clone()).collect();
        std::fs::write(self.folder.join("cases"), input).unwrap();
    }

    /// The results of all cases, or why there are none.
    fn run(&self, seed: u64, without: &[String]) -> Result<Vec<u8>, String> {
        let out = Command::new(self.folder.join("harness"))
            .arg(self.folder.join("cases"))
            .arg(seed.to_string())
            .args(without)
            .output()
            .unwrap();
        if out.status.success() {
            return Ok(out.stdout);
        }
        let errors = String::from_utf8_lossy(&out.stderr);
        Err(format!("{}: {errors}", out.status))
    }
}

/// The usual blocks; and small ones, with a margin for which nothing that is asked of tries is clear before it is summed exactly.
const UNITS: [&[&str]; 2] = [&[], &["-DMANY_ROWS=1", "-DMARGIN_BITS=1"]];

fn check(wave: u32, many_rows: bool) {
    let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let flags = [&sanitizers, UNITS[usize::from(many_rows)]].concat();
    let name = format!("wave-{wave}-{many_rows}");
    let Some(harness) = Harness::compile(&name, wave, &flags) else {
        return;
    };
    // The small blocks' unit has no other kernels.
    let cases = &CASES[..if many_rows { *SAMPLING } else { CASES.len() }];
    harness.write(cases);
    for seed in 1..4 {
        let got = harness.run(seed, &[]).unwrap_or_else(|e| panic!("{e}"));
        let mut got = got.as_slice();
        for case in cases {
            let (mine, rest) = got.split_at(case.want.len());
            got = rest;
            let pairs = mine.chunks(case.width).zip(case.want.chunks(case.width));
            for (i, (got, want)) in pairs.enumerate() {
                let Case { name, rows, .. } = case;
                let row = rows.get(i).map_or("", String::as_str);
                assert!(
                    got == want,
                    "{name}, wave {wave}, small blocks {many_rows}, order {seed}: result {i} is {got:x?}, not {want:x?} {row}"
                );
            }
        }
        assert!(got.is_empty());
    }
}

#[test]
fn kernels_equal_the_reference_in_waves_of_32() {
    check(32, false);
}

#[test]
fn kernels_equal_the_reference_in_waves_of_64() {
    check(64, false);
}

#[test]
fn small_blocks_equal_the_reference_in_waves_of_32() {
    check(32, true);
}

#[test]
fn small_blocks_equal_the_reference_in_waves_of_64() {
    check(64, true);
}

/// Whatever the threads of a block do in shared memory, barriers order it, but for writes that leave a value as it is. That this is noticed where
/// it is not so, a barrier left out shows.
#[test]
fn barriers_order_all_accesses_to_shared_memory() {
    for (i, unit) in UNITS.iter().enumerate() {
        let flags = [&[RACES], *unit].concat();
        let Some(harness) = Harness::compile(&format!("races-{i}"), 32, &flags) else {
            return;
        };
        harness.write(&CASES[..*SAMPLING]);
        for seed in 1..4 {
            harness
                .run(seed, &[])
                .unwrap_or_else(|e| panic!("{unit:?}: {e}"));
        }
        let barriers = barriers();
        let of_sums = barriers.iter().find(|b| b[0] == "block.h").unwrap();
        let error = harness.run(1, of_sums).unwrap_err();
        assert!(error.contains("race: "), "{error}");
    }
}

/// Every barrier of the kernels, as file and line, less those whose line says why nothing wrong would come of their absence.
fn barriers() -> Vec<[String; 2]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut barriers = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    files.sort();
    for file in files {
        let file = file.to_str().unwrap();
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        for (i, line) in text.lines().enumerate() {
            if ["barrier();", "wave_barrier();"].contains(&line.trim()) {
                barriers.push([file.to_string(), (i + 1).to_string()]);
            }
        }
    }
    barriers
}

/// The harness can fail: whichever barrier is left out, some order of waves gives a wrong result or no end.
#[test]
fn a_missing_barrier_is_noticed() {
    let usual = Harness::compile("without", 32, UNITS[0]);
    let many_rows = Harness::compile("without-many-rows", 32, UNITS[1]);
    let (Some(usual), Some(many_rows)) = (usual, many_rows) else {
        return;
    };
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
    let want = |cases: &[Case]| -> Vec<u8> { cases.iter().flat_map(|c| c.want.clone()).collect() };
    many_rows.write(&cases);
    let want_of_many = want(&cases);
    cases.push(elementwise(1, &rows(1003, 0), 0, ops::softmax));
    cases.push(elementwise(2, &rows(1003, 0)[..4], 0, ops::prefix_sum));
    usual.write(&cases);
    let units = [(usual, want(&cases)), (many_rows, want_of_many)];
    for (harness, want) in &units {
        let got = harness.run(1, &[]);
        assert!(got.as_ref() == Ok(want), "with all of them");
    }
    let barriers = barriers();
    // Some are passed by small blocks alone.
    let wrong = |barrier: &&[String; 2]| {
        units.iter().any(|(harness, want)| {
            (1..10).any(|seed| harness.run(seed, &barrier[..]).as_ref() != Ok(want))
        })
    };
    let unnoticed: Vec<_> = barriers.iter().filter(|b| !wrong(b)).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?} of {barriers:?}");
}
