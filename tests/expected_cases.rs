//! Cases with the CPU's results, for harnesses that run the kernels somewhere else (`scripts/emulate-amd`):
//!
//!     CANDLE_SAMPLER_CASES=DIR cargo test --release --test expected_cases -- --ignored
//!
//! A case is `NAME.json` and `NAME.bin`. `kind` says which kernels it is for:
//!
//! - `sample`: the .bin holds `rows` rows of logits, `stride` elements apart; `params` are the rows' parameters
//!   (`RowParams` of kernels/definition.h, 40 bytes, in hexadecimal), `ids` the tokens to be drawn at `positions`.
//! - `softmax` and `prefix_sum`: the .bin holds `rows` rows of `vocab` inputs, then as many outputs.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::TopKTopP::{self, Joint, Renormalised};
use candle_sampler::{INVALID_TOKEN, SamplingParams, ops, reference};
use common::{kinds, normal, real, rng};
use half::{bf16, f16};
use rand::Rng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One row's parameters, readable, unlike [`SamplingParams`].
#[derive(Clone, Debug)]
struct Settings {
    temperature: f64,
    top_k: Option<u32>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    order: TopKTopP,
    seed: u64,
}

impl Settings {
    fn new(top_k: u32, top_p: f64, min_p: f64) -> Self {
        Self {
            temperature: 1.0,
            top_k: (top_k > 0).then_some(top_k),
            top_p: (top_p > 0.0).then_some(top_p),
            min_p: (min_p >= 0.0).then_some(min_p),
            order: Renormalised,
            seed: 0,
        }
    }

    fn temperature(self, temperature: f64) -> Self {
        Self {
            temperature,
            ..self
        }
    }

    fn order(self, order: TopKTopP) -> Self {
        Self { order, ..self }
    }

    /// Whether tokens are drawn from all first (docs/definition.md).
    fn has_tries(&self, vocab: usize) -> bool {
        let k = self.top_k.map_or(vocab, |k| k as usize);
        let renormalised = self.top_p.is_some() && self.order == Renormalised;
        match k < vocab {
            true => 8 * k > vocab && !renormalised,
            false => self.top_p.is_some(),
        }
    }

    fn params(&self) -> SamplingParams {
        let mut params = SamplingParams::new()
            .temperature(self.temperature)
            .order(self.order)
            .seed(self.seed);
        if let Some(k) = self.top_k {
            params = params.top_k(k as usize);
        }
        if let Some(p) = self.top_p {
            params = params.top_p(p);
        }
        if let Some(p) = self.min_p {
            params = params.min_p(p);
        }
        params
    }

    /// `RowParams` of kernels/definition.h.
    fn bytes(&self, vocab: usize) -> Vec<u8> {
        let greedy = self.temperature < 1e-7;
        let t = if greedy { 1.0 } else { self.temperature };
        let scale = (std::f64::consts::LOG2_E / t) as f32;
        let inverse = (t * std::f64::consts::LN_2) as f32;
        let min_p_offset = self
            .min_p
            .map_or(f32::NEG_INFINITY, |p| (t * p.ln()) as f32);
        let top_p = match self.top_p {
            Some(p) if p < 1.0 => ((p * 2f64.powi(64)) as u64).max(1),
            _ => 0,
        };
        let k = self.top_k.filter(|&k| (k as usize) < vocab);
        let bounded =
            |each| k.is_some_and(|k| k <= 160 && k * 8 <= vocab.div_ceil(each) as u32 * 7);
        let renormalised = k.is_some() && top_p > 0 && self.order == Renormalised;
        let (min_p, tried) = (min_p_offset > f32::NEG_INFINITY, self.has_tries(vocab));
        let share = top_p > 0 && !renormalised;
        let flags = [
            false,
            renormalised,
            k.is_some(),
            top_p > 0,
            min_p,
            tried,
            bounded(512),
            bounded(16) && !bounded(512),
            share || tried || (k.is_none() && !min_p),
        ];
        let bit = |(i, &flag): (usize, &bool)| u32::from(flag) << i;
        let flags: u32 = match greedy {
            true => 1,
            false => flags.iter().enumerate().map(bit).sum(),
        };
        [
            &scale.to_le_bytes()[..],
            &inverse.to_le_bytes(),
            &min_p_offset.to_le_bytes(),
            &self.top_k.unwrap_or(u32::MAX).to_le_bytes(),
            &top_p.to_le_bytes(),
            &self.seed.to_le_bytes(),
            &flags.to_le_bytes(),
            &[0; 4],
        ]
        .concat()
    }
}

/// Every filter alone and combined, in both orders, and temperatures.
fn settings(vocab: usize) -> Vec<Settings> {
    let s = Settings::new;
    let slices = vocab.div_ceil(512) as u32;
    let half = (vocab as u32 / 2).max(1);
    vec![
        s(0, 0.0, -1.0),
        s(0, 0.9, -1.0),
        s(50, 0.9, -1.0),
        s(slices + 1, 0.0, -1.0),
        s(0, 1e-9, -1.0),
        s(0, 0.0, 0.05),
        s(50, 0.9, -1.0).order(Joint),
        s(half, 0.5, -1.0).temperature(1.5),
        s(1, 0.0, -1.0),
        s(0, 0.0, -1.0).temperature(0.0),
        s(half, 0.0, -1.0).temperature(1.5),
        s(0, 0.3, 0.01).temperature(0.7),
        s(slices + 1, 0.001, -1.0).order(Joint),
        s(0, 0.9, -1.0).temperature(1e-5),
        s(20, 0.8, 0.02),
        s(half, 0.999, 0.0).order(Joint).temperature(1.5),
        s(2, 0.0, 0.5),
        s(half, 1e-9, -1.0),
        s(slices, 0.7, -1.0),
        s(0, 0.0, 1.0),
        s(20, 0.8, 0.02).order(Joint),
        s(vocab as u32 + 5, 0.999, -1.0).temperature(1.5),
        s(5, 1.0, -1.0),
    ]
}

/// Rows of every kind that has misled a sampler, and those that are no distribution.
fn rows_of(vocab: usize, seed: u64) -> Vec<(&'static str, Vec<f32>)> {
    let mut rng = rng(seed);
    let mut rows = kinds(vocab, seed);
    let offset = normal(&mut rng, vocab, 1.0);
    let signs: Vec<f32> = (0..vocab)
        .map(|_| if rng.random_bool(0.5) { 0.0 } else { -0.0 })
        .collect();
    let mut infinite = normal(&mut rng, vocab, 1.0);
    infinite[vocab - 1] = f32::INFINITY;
    infinite[vocab / 2] = f32::INFINITY;
    let mut nan = normal(&mut rng, vocab, 1.0);
    nan[vocab - 1] = f32::NAN;
    let mut last = vec![f32::NEG_INFINITY; vocab];
    last[vocab - 1] = -3.0;
    let mut deep = normal(&mut rng, vocab, 1.0);
    for z in deep.iter_mut().skip(vocab / 3) {
        *z = -1e30;
    }
    // A mask that leaves few tokens, in one slice.
    let mut few = vec![f32::NEG_INFINITY; vocab];
    for z in few
        .iter_mut()
        .skip(vocab / 2 / 512 * 512)
        .step_by(97)
        .take(5)
    {
        *z = normal(&mut rng, 1, 1.0)[0];
    }
    rows.extend([
        ("few in a slice", few),
        ("nearly flat", normal(&mut rng, vocab, 0.01)),
        ("N(0,1) + 2e6", offset.iter().map(|z| z + 2e6).collect()),
        ("N(0,1) - 2e6", offset.iter().map(|z| z - 2e6).collect()),
        ("zeros of both signs", signs),
        ("-1e30 masks", deep),
        ("only the last", last),
        ("+inf", infinite),
        ("NaN", nan),
        ("all -inf", vec![f32::NEG_INFINITY; vocab]),
    ]);
    rows
}

fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::U32 => "u32",
        _ => "f32",
    }
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F16 => flatten(flat.to_vec1::<f16>()?.iter().map(|x| x.to_le_bytes())),
        DType::BF16 => flatten(flat.to_vec1::<bf16>()?.iter().map(|x| x.to_le_bytes())),
        DType::U32 => flatten(flat.to_vec1::<u32>()?.iter().map(|x| x.to_le_bytes())),
        _ => flatten(flat.to_vec1::<f32>()?.iter().map(|x| x.to_le_bytes())),
    })
}

fn flatten<const N: usize>(parts: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    parts.flatten().collect()
}

fn tensor_of(rows: &[Vec<f32>]) -> Result<Tensor> {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu)
}

struct Cases {
    dir: PathBuf,
    seed: u64,
}

impl Cases {
    fn write(&self, name: &str, case: Value, bin: &[u8]) {
        let file = |ending| Path::new(&self.dir).join(format!("{name}.{ending}"));
        std::fs::write(file("json"), format!("{case:#}\n")).expect("a writable folder");
        std::fs::write(file("bin"), bin).expect("a writable folder");
    }

    /// The rows without tries once more: a launch of such rows alone has a kernel of its own.
    fn sample_without_tries(
        &mut self,
        name: &str,
        dtype: DType,
        mut draws: Vec<(String, Vec<f32>, Settings)>,
    ) -> Result<()> {
        draws.retain(|(_, row, settings)| !settings.has_tries(row.len()));
        self.sample(&format!("{name}-without-tries"), dtype, 0, draws)
    }

    /// Rows with `padding` NaN between them. Each gets a seed and a position of its own.
    fn sample(
        &mut self,
        name: &str,
        dtype: DType,
        padding: usize,
        mut draws: Vec<(String, Vec<f32>, Settings)>,
    ) -> Result<()> {
        let vocab = draws[0].1.len();
        let mut positions = Vec::new();
        for (_, _, settings) in &mut draws {
            self.seed += 1;
            settings.seed = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            positions.push(settings.seed >> (self.seed % 64));
        }
        let rows: Vec<Vec<f32>> = draws.iter().map(|(_, row, _)| row.clone()).collect();
        let params: Vec<SamplingParams> = draws.iter().map(|(_, _, s)| s.params()).collect();
        let logits = tensor_of(&rows)?.to_dtype(dtype)?;
        let ids = ops::sample(&logits, &params, &positions)?.to_vec1::<u32>()?;
        let wide = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (i, row) in wide.iter().enumerate() {
            let want = reference::sample(row, &params[i], positions[i]).unwrap_or(INVALID_TOKEN);
            assert_eq!(ids[i], want, "{name}, row {i}: {:?}", params[i]);
        }
        let padded: Vec<Vec<f32>> = rows
            .into_iter()
            .map(|mut row| {
                row.resize(vocab + padding, f32::NAN);
                row
            })
            .collect();
        let hex = |bytes: Vec<u8>| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let case = json!({
            "kind": "sample",
            "dtype": name_of(dtype),
            "rows": draws.len(),
            "vocab": vocab,
            "stride": vocab + padding,
            "params": draws.iter().map(|(_, row, s)| hex(s.bytes(row.len()))).collect::<Vec<_>>(),
            "positions": positions,
            "ids": ids,
            "about": draws.iter().map(|(kind, _, s)| format!("{kind}: {s:?}")).collect::<Vec<_>>(),
        });
        self.write(
            name,
            case,
            &bytes_of(&tensor_of(&padded)?.to_dtype(dtype)?)?,
        );
        Ok(())
    }

    fn op(&self, kind: &str, input: &Tensor, output: &Tensor) -> Result<()> {
        let (rows, vocab) = input.dims2()?;
        let dtype = name_of(input.dtype());
        let case = json!({ "kind": kind, "dtype": dtype, "rows": rows, "vocab": vocab });
        let bin = [bytes_of(input)?, bytes_of(output)?].concat();
        self.write(&format!("{kind}-{dtype}-{rows}x{vocab}"), case, &bin);
        Ok(())
    }
}

/// Every row with `each` of the settings; the next row goes on where this one ended.
fn draws(vocab: usize, seed: u64, each: usize) -> Vec<(String, Vec<f32>, Settings)> {
    let mut settings = settings(vocab).into_iter().cycle();
    rows_of(vocab, seed)
        .into_iter()
        .flat_map(|(kind, row)| {
            let distribution = !matches!(kind, "+inf" | "NaN" | "all -inf");
            let settings: Vec<_> = settings
                .by_ref()
                .take(if distribution { each } else { 1 })
                .collect();
            settings
                .into_iter()
                .map(move |s| (kind.to_string(), row.clone(), s))
        })
        .collect()
}

/// The first slice has more tokens above the others' than are ranked, so a small top-k has its list shortened first.
fn crowded(vocab: usize) -> impl Iterator<Item = (String, Vec<f32>, Settings)> {
    let mut row: Vec<f32> = (0..vocab).map(|i| -1.0 - (i % 7) as f32).collect();
    for (i, z) in row.iter_mut().take(300).enumerate() {
        *z = (i * 7919 % 300) as f32 / 100.0;
    }
    let s = Settings::new;
    let settings = [
        s(8, 0.0, -1.0),
        s(8, 0.7, -1.0),
        s(8, 0.7, 0.1).order(Joint),
    ];
    settings
        .into_iter()
        .map(move |s| ("300 in a slice".to_string(), row.clone(), s))
}

/// Half of so many tokens have the share p, or so near to it that the row's mass has to be known exactly.
fn halves(vocab: usize) -> Vec<(String, Vec<f32>, Settings)> {
    let mut all = Vec::new();
    for (tokens, k, lighter) in [(2, 2, 1.25), (64, 64, 0.75), (80, 60, 1.25), (80, 60, 0.75)] {
        let mut row = vec![-60.0; vocab];
        for i in 0..tokens / 2 {
            let id = (i * 79 + 5) % (vocab / 2);
            row[id] = lighter;
            row[id + vocab / 2] = 1.25;
        }
        let share = 1.0 / (1.0 + f64::from(lighter - 1.25).exp());
        for off in [0.0, 1e-7, -1e-7, 0.0, 1e-7, -1e-7] {
            let settings = Settings::new(k, share + off, -1.0).order(Joint);
            all.push((format!("halves of {tokens}"), row.clone(), settings));
        }
    }
    all
}

/// As many as are few: the second token, which is not kept, is its slice's first and largest; and ordinary ones, of which slices tell some.
fn few(vocab: usize) -> Vec<(String, Vec<f32>, Settings)> {
    let mut first = vec![-30.0; vocab];
    (first[700], first[1024]) = (0.0, -0.6);
    let mut all = vec![
        (
            "first of a slice".to_owned(),
            first,
            Settings::new(0, 0.5, -1.0)
        );
        8
    ];
    for i in 0..8 {
        let row = normal(&mut rng(i), vocab, 3.0);
        all.push(("normal".to_owned(), row, Settings::new(0, 0.9, -1.0)));
    }
    all
}

#[test]
#[ignore = "writes files for other harnesses"]
fn write_expected_cases() -> Result<()> {
    let dir = std::env::var_os("CANDLE_SAMPLER_CASES").expect("CANDLE_SAMPLER_CASES=DIR");
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir).expect("a writable folder");
    let mut cases = Cases { dir, seed: 0 };

    for (vocab, each) in [
        (1, 1),
        (2, 1),
        (33, 4),
        (512, 2),
        (513, 2),
        (1003, 6),
        (5000, 3),
    ] {
        let mut rows = draws(vocab, vocab as u64, each);
        if vocab == 5000 {
            rows.extend(crowded(vocab));
        }
        let name = format!("sample-f32-{vocab}");
        cases.sample(&name, DType::F32, 0, rows.clone())?;
        if vocab > 512 {
            cases.sample_without_tries(&name, DType::F32, rows)?;
        }
    }
    for dtype in [DType::F16, DType::BF16] {
        for (vocab, padding) in [(1003, 7), (5000, 0)] {
            let name = format!("sample-{}-{vocab}", name_of(dtype));
            cases.sample(&name, dtype, padding, draws(vocab, 7 + vocab as u64, 1))?;
        }
    }
    let rows = draws(1003, 99, 1);
    cases.sample("sample-f32-1003-padded", DType::F32, 13, rows)?;

    // More tokens than shared memory has room for, equal, nearly equal and different: searches, looks, ends among ties.
    let flat = vec![0.25; 5000];
    let nearly = normal(&mut rng(5), 5000, 0.01);
    let spread = normal(&mut rng(6), 5000, 2.0);
    let s = Settings::new;
    let mut rows = Vec::new();
    for (kind, row) in [
        ("flat", &flat),
        ("nearly flat", &nearly),
        ("N(0,2)", &spread),
    ] {
        for settings in [
            s(2000, 0.9, -1.0),
            s(4999, 0.5, -1.0),
            s(2000, 0.0, -1.0),
            s(11, 0.0, -1.0),
            s(12, 1e-9, -1.0).order(Joint),
            s(0, 1e-9, -1.0),
            s(0, 0.0005, -1.0).temperature(1.5),
            s(2000, 0.002, -1.0),
        ] {
            rows.push((kind.to_string(), row.clone(), settings));
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let name = format!("sample-{}-5000-searches", name_of(dtype));
        cases.sample(&name, dtype, 0, rows.clone())?;
        cases.sample_without_tries(&name, dtype, rows.clone())?;
    }

    let real = real().swap_remove(1);
    for (dtype, settings) in [
        (
            DType::F32,
            vec![
                s(0, 0.9, -1.0),
                s(50, 0.9, -1.0),
                s(50, 0.9, -1.0).order(Joint),
                s(0, 0.0, -1.0),
                s(0, 0.0, -1.0).temperature(0.0),
                s(0, 0.0, 0.05),
                s(0, 0.9, -1.0).temperature(1.5),
                s(50_000, 0.0, -1.0),
            ],
        ),
        (
            DType::F16,
            vec![
                s(0, 0.9, -1.0),
                s(50, 0.9, -1.0),
                s(0, 0.95, -1.0).temperature(2.0),
            ],
        ),
        (
            DType::BF16,
            vec![s(50, 0.9, -1.0), s(0, 0.0, -1.0), s(0, 0.9, -1.0)],
        ),
    ] {
        let rows = settings
            .into_iter()
            .map(|s| ("real".to_string(), real.clone(), s));
        let (rows, name) = (
            rows.collect::<Vec<_>>(),
            format!("sample-{}-151936", name_of(dtype)),
        );
        cases.sample_without_tries(&name, dtype, rows.clone())?;
        cases.sample(&name, dtype, 0, rows)?;
    }

    cases.sample("sample-f32-2000-halves", DType::F32, 0, halves(2000))?;
    cases.sample("sample-f32-5120-few", DType::F32, 0, few(5120))?;

    for (vocab, dtypes) in [
        (1, &[DType::F32][..]),
        (513, &[DType::F32, DType::F16, DType::BF16]),
        (5000, &[DType::F32, DType::F16, DType::BF16]),
    ] {
        let rows: Vec<Vec<f32>> = rows_of(vocab, 3).into_iter().map(|(_, row)| row).collect();
        for &dtype in dtypes {
            let input = tensor_of(&rows)?.to_dtype(dtype)?;
            cases.op("softmax", &input, &ops::softmax(&input)?)?;
        }
    }
    let input = tensor_of(&[real])?;
    cases.op("softmax", &input, &ops::softmax(&input)?)?;

    for (rows, vocab) in [(1, 1), (3, 512), (2, 513), (3, 5000), (1, 151_936)] {
        let floats = normal(&mut rng(vocab as u64), rows * vocab, 1.0);
        let integers: Vec<u32> = floats.iter().map(|x| x.to_bits()).collect();
        let floats = Tensor::from_vec(floats, (rows, vocab), &Device::Cpu)?;
        let integers = Tensor::from_vec(integers, (rows, vocab), &Device::Cpu)?;
        cases.op("prefix_sum", &floats, &ops::prefix_sum(&floats)?)?;
        cases.op("prefix_sum", &integers, &ops::prefix_sum(&integers)?)?;
    }
    Ok(())
}
