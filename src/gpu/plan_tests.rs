//! The launch plan as a driver gets it: a driver that does nothing writes it down.
//!
//! `scripts/emulate-amd` executes what it wrote:
//!
//!     CANDLE_SAMPLER_CASES=DIR cargo test --release --features hip --lib plan -- --ignored
//!
//! reads the `sample` cases of `tests/expected_cases.rs` and adds NAME.plan to each: memory in words, what is uploaded there and what is
//! launched, for waves of 32 and of 64.

use super::launch::{Argument, Gpu, Kernel, Logits, READ_BLOCK, checked};
use super::rows::{Rows, State};
use super::{BLOCK, SMALL_BLOCK, Unit, slices};
use crate::SamplingParams;
use crate::device_params::DeviceParams;
use crate::params::{RowParams, TopKTopP};
use candle_core::{DType, Result, bail};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};

/// What [`Rows`] allocate, in this order.
const NAMES: [&str; 7] = [
    "params",
    "positions",
    "largest",
    "groups",
    "mass",
    "kept",
    "wide",
];
const LOGITS: u64 = 1 << 60;
const IDS: u64 = 1 << 61;

#[derive(Default)]
struct Recorder {
    wave: u32,
    /// Words of each allocation.
    memory: RefCell<Vec<usize>>,
    steps: RefCell<Vec<Value>>,
    /// Of each launch.
    units: RefCell<Vec<Unit>>,
    /// Launches fail.
    broken: Cell<bool>,
}

impl Recorder {
    fn new(wave: u32) -> Self {
        Self {
            wave,
            ..Self::default()
        }
    }

    /// The steps since this was last asked.
    fn steps(&self) -> Vec<Value> {
        self.steps.take()
    }
}

fn name(address: u64) -> &'static str {
    match address {
        LOGITS => "logits",
        IDS => "ids",
        _ => NAMES[(address >> 40) as usize - 1],
    }
}

fn describe(argument: &Argument) -> Value {
    match argument {
        Argument::Address(address) => json!(["address", name(*address)]),
        Argument::U32(x) => json!(["u32", x]),
        Argument::I64(x) => json!(["i64", x]),
        #[cfg(feature = "cuda")]
        Argument::F32(x) => json!(["f32", x]),
    }
}

impl Gpu for Recorder {
    type Memory = u64;

    fn wave(&self) -> u32 {
        self.wave
    }

    fn has_room_for_small_blocks(&self) -> bool {
        self.wave == 32
    }

    fn cache(&self) -> Option<usize> {
        (self.wave == 32).then_some(60 << 20)
    }

    fn allocate(&self, words: usize) -> Result<u64> {
        let mut memory = self.memory.borrow_mut();
        memory.push(words);
        Ok((memory.len() as u64) << 40)
    }

    fn address(memory: &u64) -> u64 {
        *memory
    }

    fn upload(&self, words: &[u64], memory: &mut u64, at: usize) -> Result<()> {
        let room = self.memory.borrow()[(*memory >> 40) as usize - 1];
        assert!(at + words.len() <= room, "{}", name(*memory));
        let step = json!({ "upload": words, "to": name(*memory), "at": at });
        self.steps.borrow_mut().push(step);
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        let Kernel {
            name,
            unit,
            threads,
        } = kernel;
        if self.broken.get() {
            bail!("no launches today")
        }
        let arguments: Vec<Value> = arguments.iter().map(describe).collect();
        // For few rows if compilers are told nothing (kernels/block.h).
        let options = unit.options();
        let rows = options.iter().find_map(|o| o.strip_prefix("-DROWS="));
        let rows = rows.unwrap_or("FEW_ROWS");
        let step = json!({
            "launch": name, "rows": rows, "grid": grid, "threads": threads, "arguments": arguments,
        });
        self.steps.borrow_mut().push(step);
        self.units.borrow_mut().push(unit);
        Ok(())
    }
}

fn logits(dtype: DType, rows: usize, vocab: usize, stride: usize) -> Logits {
    Logits {
        address: LOGITS,
        dtype,
        rows,
        vocab,
        stride,
    }
}

fn draw(
    rows: &mut Rows<Recorder>,
    gpu: &Recorder,
    logits: &Logits,
    params: &[RowParams],
    positions: &[u64],
) -> Result<()> {
    // SAFETY: nothing is launched, so nothing is read.
    unsafe { rows.sample(gpu, logits, IDS, State { params, positions }) }
}

fn params(seeds: &[u64]) -> Vec<RowParams> {
    let params = |&seed| SamplingParams::new().top_p(0.9).seed(seed).resolve();
    seeds.iter().map(|seed| params(seed).unwrap()).collect()
}

fn words(params: &[RowParams]) -> Vec<u64> {
    let words = |row| DeviceParams::new(row, 5000, true).words();
    params.iter().flat_map(words).collect()
}

/// Two launches over 5,000 tokens (10 slices) of 3 rows: the first reads a row by so many `blocks`, the second draws by 10 and asks for tries.
fn launches(blocks: usize, per_block: usize) -> [Value; 2] {
    let address = |name| json!(["address", name]);
    let (logits, params) = (address("logits"), address("params"));
    let [largest, groups, mass, kept, wide] =
        ["largest", "groups", "mass", "kept", "wide"].map(address);
    let (stride, vocab) = (json!(["i64", 5003]), json!(["u32", 5000]));
    [
        json!({
            "launch": "slices_placed_bf16",
            "rows": "FEW_ROWS",
            "grid": [3, blocks],
            "threads": 128,
            "arguments": [logits, stride, vocab, params, ["u32", 0], ["u32", blocks * per_block], largest, groups, mass, kept, wide],
        }),
        json!({
            "launch": "try_bf16",
            "rows": "FEW_ROWS",
            "grid": [3, 10],
            "threads": 512,
            "arguments": [
                logits, stride, vocab, params, address("positions"), largest, groups, mass, kept, wide, ["u32", 0], address("ids"), ["u32", 10],
                ["u32", 0],
            ],
        }),
    ]
}

#[test]
fn a_draw_is_two_uploads_and_two_launches() {
    // Waves of a block, each with a slice: 4 of 32 lanes, 2 of 64.
    for (wave, blocks, per_block) in [(32, 3, 4), (64, 5, 2)] {
        let gpu = Recorder::new(wave);
        let mut rows = Rows::new(&gpu, 3, 5000).unwrap();
        // Parameters of 5 words, positions; of each slice 4 bytes, 32 bytes, 8 bytes twice; and 8,544 words.
        assert_eq!(*gpu.memory.borrow(), [15, 3, 15, 120, 30, 30, 25_632]);
        let params = params(&[7, 8, 9]);
        let logits = logits(DType::BF16, 3, 5000, 5003);
        draw(&mut rows, &gpu, &logits, &params, &[1, u64::MAX, 1 << 40]).unwrap();
        let uploads = [
            json!({ "upload": words(&params), "to": "params", "at": 0 }),
            json!({ "upload": [1, u64::MAX, 1u64 << 40], "to": "positions", "at": 0 }),
        ];
        let wanted = [&uploads[..], &launches(blocks, per_block)].concat();
        assert_eq!(gpu.steps(), wanted);
    }
}

/// The kernels that draw rows of f32 logits, with their grids.
fn kernels(vocab: usize, params: &[RowParams]) -> Vec<(String, [usize; 2])> {
    let gpu = Recorder::new(32);
    let mut rows = Rows::new(&gpu, params.len(), vocab).unwrap();
    let logits = logits(DType::F32, params.len(), vocab, vocab);
    draw(&mut rows, &gpu, &logits, params, &vec![0; params.len()]).unwrap();
    let steps = gpu.steps();
    let launches = steps.iter().filter(|step| step["launch"].is_string());
    let kernel = |step: &Value| {
        let name = step["launch"].as_str().unwrap();
        let grid = [0, 1].map(|i| step["grid"][i].as_u64().unwrap() as usize);
        (name.trim_end_matches("_f32").into(), grid)
    };
    launches.map(kernel).collect()
}

#[test]
fn what_draws_depends_on_the_parameters_and_the_vocabulary() {
    let new = SamplingParams::new;
    let names = |vocab: usize, params: &[SamplingParams]| -> Vec<String> {
        let params: Vec<_> = params.iter().map(|p| p.resolve().unwrap()).collect();
        let kernels = kernels(vocab, &params).into_iter();
        kernels.map(|(name, _)| name).collect()
    };
    let few = [
        new(),
        new().temperature(0.0),
        new().min_p(0.1),
        new().top_k(8).top_p(0.9),
        new().top_k(160),
    ];
    assert_eq!(names(5000, &few), ["slices", "draw"]);
    let (many, tried) = (new().top_k(161), new().top_p(0.9));
    for (more, launches) in [
        (vec![many.clone()], vec!["slices", "look", "draw"]),
        (vec![tried.clone(); 3], vec!["slices_placed", "try"]),
        (vec![tried.clone(); 12], vec!["slices", "try", "try"]),
        (
            [vec![many; 12], vec![tried]].concat(),
            vec!["slices", "look", "try", "try"],
        ),
    ] {
        let rows = [&few[..], &more].concat();
        assert_eq!(names(5000, &rows), launches);
        assert_eq!(names(3584, &rows), [launches[0], launches.last().unwrap()]);
    }
}

#[test]
fn grids_depend_on_the_rows() {
    let grids = |vocab: usize, rows: usize, params: SamplingParams, of_these: usize| {
        let mut rows = vec![SamplingParams::new().temperature(0.0); rows];
        rows[..of_these].fill(params);
        let params: Vec<_> = rows.iter().map(|p| p.resolve().unwrap()).collect();
        let kernels = kernels(vocab, &params).into_iter();
        kernels.map(|(_, grid)| grid).collect::<Vec<_>>()
    };
    // 297 slices are 75 blocks of 4 waves. Many rows are read by several slices a wave, the cache's sooner than others, and looked at by fewer blocks
    // each.
    let k = SamplingParams::new().top_k(1000);
    for (rows, looked_at, reading, looking) in [
        (1, 1, 75, 32),
        (8, 8, 75, 16),
        (64, 64, 38, 4),
        (64, 1, 38, 16),
        (91, 91, 75, 2),
        (512, 512, 38, 1),
        (512, 1, 38, 4),
        (5000, 5000, 4, 1),
    ] {
        let wanted = [[rows, reading], [rows, looking], [rows, 1]];
        assert_eq!(grids(151_936, rows, k.clone(), looked_at), wanted);
    }
    // Few rows ask for their tries by many blocks; many rows leave that to another launch.
    let p = SamplingParams::new().top_p(0.9);
    for (vocab, rows, blocks) in [
        (151_936, 1, 32),
        (151_936, 8, 16),
        (151_936, 16, 8),
        (4_000, 1, 8),
        (1 << 24, 1, 32),
        (3584, 64, 1),
    ] {
        let draw = &grids(vocab, rows, p.clone(), rows)[1..];
        assert_eq!(draw, [[rows, blocks]], "{vocab}");
    }
    for (rows, tried, asking) in [(17, 17, 264), (17, 1, 264), (512, 64, 512)] {
        let grids = grids(151_936, rows, p.clone(), tried);
        assert_eq!(grids[1..], [[rows, 1], [asking, 1]]);
    }
    assert_eq!(grids(151_936, 8, p, 1)[1..], [[8, 16]]);
}

#[test]
fn rows_that_the_cache_has_no_room_for_are_read_past_it() {
    for (wave, dtype, rows, kernel, blocks) in [
        (32, DType::F32, 90, "slices_f32", 35),
        (32, DType::F32, 91, "slices_once_f32", 75),
        (32, DType::BF16, 181, "slices_bf16", 7),
        (32, DType::BF16, 182, "slices_once_bf16", 75),
        (64, DType::F32, 512, "slices_f32", 38),
    ] {
        let gpu = Recorder::new(wave);
        let mut on_device = Rows::new(&gpu, rows, 151_936).unwrap();
        let logits = logits(dtype, rows, 151_936, 151_936);
        let seeds: Vec<_> = (0..rows as u64).collect();
        draw(&mut on_device, &gpu, &logits, &params(&seeds), &seeds).unwrap();
        let steps = gpu.steps();
        let first = steps.iter().find(|step| step["launch"].is_string());
        let first = first.unwrap();
        assert_eq!(first["launch"], kernel);
        assert_eq!(first["grid"], json!([rows, blocks]));
    }
}

#[test]
fn more_rows_have_their_tries_bounded_before_they_are_asked_for() {
    for (batch, stages) in [
        (16, &[0][..]),
        (17, &[1, 3]),
        (128, &[1, 3]),
        (129, &[2, 3]),
    ] {
        let gpu = Recorder::new(32);
        let mut rows = Rows::new(&gpu, batch, 5000).unwrap();
        let logits = logits(DType::F32, batch, 5000, 5000);
        let params = params(&vec![1; batch]);
        draw(&mut rows, &gpu, &logits, &params, &vec![0; batch]).unwrap();
        let steps = gpu.steps();
        let tries = steps.iter().filter(|step| step["launch"] == "try_f32");
        let last = |step: &Value| step["arguments"].as_array().unwrap().last().unwrap()[1].clone();
        assert_eq!(tries.map(last).collect::<Vec<_>>(), stages, "{batch}");
    }
}

#[test]
fn many_rows_are_drawn_from_by_small_blocks_if_there_is_room() {
    let new = SamplingParams::new;
    let params: Vec<_> = [new().top_p(0.9), new().top_k(500)]
        .map(|p| p.resolve().unwrap())
        .into();
    for (wave, batch, drawing) in [(32, 264, BLOCK), (32, 265, SMALL_BLOCK), (64, 265, BLOCK)] {
        let gpu = Recorder::new(wave);
        let params: Vec<_> = params.iter().cycle().take(batch).cloned().collect();
        let mut rows = Rows::new(&gpu, batch, 5000).unwrap();
        let logits = logits(DType::F32, batch, 5000, 5000);
        draw(&mut rows, &gpu, &logits, &params, &vec![0; batch]).unwrap();
        let steps = gpu.steps();
        let threads = |step: &Value| {
            Some((
                step["launch"].as_str()?.to_string(),
                step["threads"].as_u64()? as u32,
            ))
        };
        let threads: Vec<_> = steps.iter().filter_map(threads).collect();
        let wanted = [
            ("slices_f32", READ_BLOCK),
            ("look_f32", BLOCK),
            ("try_f32", drawing),
            ("try_f32", drawing),
        ];
        assert_eq!(
            threads,
            wanted.map(|(kernel, threads)| (kernel.to_string(), threads))
        );
    }
}

#[test]
fn only_what_has_changed_is_uploaded() {
    let gpu = Recorder::new(32);
    let mut rows = Rows::new(&gpu, 3, 5000).unwrap();
    let logits = logits(DType::BF16, 3, 5000, 5003);
    let (before, after) = (params(&[7, 8, 9]), params(&[7, 1, 9]));
    draw(&mut rows, &gpu, &logits, &before, &[4, u64::MAX, 6]).unwrap();
    gpu.steps();

    // The kernels have advanced the positions.
    draw(&mut rows, &gpu, &logits, &before, &[5, 0, 7]).unwrap();
    assert_eq!(gpu.steps(), launches(3, 4));

    draw(&mut rows, &gpu, &logits, &after, &[6, 0, 9]).unwrap();
    let changed = [
        json!({ "upload": words(&after[1..2]), "to": "params", "at": 5 }),
        json!({ "upload": [0], "to": "positions", "at": 1 }),
        json!({ "upload": [9], "to": "positions", "at": 2 }),
    ];
    assert_eq!(gpu.steps(), [&changed[..], &launches(3, 4)].concat());

    // After a failure nobody knows what is there.
    gpu.broken.set(true);
    assert!(draw(&mut rows, &gpu, &logits, &after, &[7, 1, 10]).is_err());
    assert!(gpu.steps().is_empty());
    gpu.broken.set(false);
    draw(&mut rows, &gpu, &logits, &after, &[7, 1, 10]).unwrap();
    let all = [
        json!({ "upload": words(&after), "to": "params", "at": 0 }),
        json!({ "upload": [7, 1, 10], "to": "positions", "at": 0 }),
    ];
    assert_eq!(gpu.steps(), [&all[..], &launches(3, 4)].concat());
}

#[test]
fn no_rows_are_no_launch_and_other_dtypes_an_error() {
    let gpu = Recorder::new(64);
    let mut rows = Rows::new(&gpu, 0, 5000).unwrap();
    draw(
        &mut rows,
        &gpu,
        &logits(DType::F32, 0, 5000, 5000),
        &[],
        &[],
    )
    .unwrap();
    let wrong = logits(DType::F64, 0, 5000, 5000);
    assert!(draw(&mut rows, &gpu, &wrong, &[], &[]).is_err());
    assert!(gpu.steps().is_empty());
}

/// The kinds of a kernel's parameters, by its definition in the source, which is for any dtype.
fn parameters(source: &str, kernel: &str) -> Vec<&'static str> {
    let (kernel, _) = kernel.rsplit_once('_').unwrap();
    let (_, from) = source.split_once(&format!("{kernel}_##T(")).unwrap();
    let (list, _) = from.split_once(')').unwrap();
    let kind = |parameter: &str| match parameter.trim_start_matches(['\\', '\n', ' ']) {
        pointer if pointer.contains('*') => "address",
        x if x.starts_with("u32 ") => "u32",
        x if x.starts_with("i64 ") => "i64",
        x if x.starts_with("float ") => "f32",
        other => panic!("{kernel}: {other}"),
    };
    list.split(',').map(kind).collect()
}

#[test]
fn kernels_take_what_they_are_given() {
    for (dtype, name) in [
        (DType::F32, "f32"),
        (DType::F16, "f16"),
        (DType::BF16, "bf16"),
    ] {
        let (few, some, many) = (
            Unit::Samplers(name),
            Unit::SomeRows(name),
            Unit::ManyRows(name),
        );
        for (batch, wanted) in [
            (16, &[few, few, few][..]),
            (17, &[few, few, some, some]),
            (265, &[few, few, many, many]),
        ] {
            let gpu = Recorder::new(32);
            let mut rows = Rows::new(&gpu, batch, 5000).unwrap();
            let logits = logits(dtype, batch, 5000, 5000);
            let mut params = params(&vec![1; batch]);
            params[0] = SamplingParams::new().top_k(500).resolve().unwrap();
            draw(&mut rows, &gpu, &logits, &params, &vec![0; batch]).unwrap();
            let steps = gpu.steps();
            let launches: Vec<_> = steps.iter().filter(|s| s["launch"].is_string()).collect();
            let units = gpu.units.take();
            assert_eq!(units, wanted);
            for (launch, unit) in launches.iter().zip(units) {
                let given = launch["arguments"].as_array().unwrap();
                let given: Vec<_> = given.iter().map(|x| x[0].as_str().unwrap()).collect();
                let kernel = launch["launch"].as_str().unwrap();
                assert!(kernel.ends_with(&format!("_{name}")), "{kernel}");
                assert_eq!(given, parameters(&unit.source(), kernel), "{kernel}");
            }
        }
    }
}

#[test]
fn grids_that_no_driver_takes_are_refused() {
    let most = u32::MAX / BLOCK;
    assert_eq!(
        checked([most as usize, 65_535], most).unwrap(),
        [most, 65_535]
    );
    for grid in [[most as usize + 1, 1], [1, 65_536], [usize::MAX, 1]] {
        let error = checked(grid, most).unwrap_err().to_string();
        assert!(error.contains("too large to launch"), "{error}");
    }
    // The largest vocabulary, in the largest waves.
    let blocks = slices(1 << 24).div_ceil(READ_BLOCK as usize / 64);
    assert!(checked([1, blocks], most).is_ok());
}

/// `RowParams` of kernels/definition.h, in hexadecimal, as a sampler has them.
fn row_params(hex: &str) -> RowParams {
    let byte = |i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap();
    let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| byte(4 * i + k)));
    let wide = |i| u64::from(word(i)) | u64::from(word(i + 1)) << 32;
    RowParams {
        greedy: word(8) & 1 != 0,
        scale: f32::from_bits(word(0)),
        inverse: f32::from_bits(word(1)),
        min_p_offset: f32::from_bits(word(2)),
        top_k: word(3),
        top_p: (wide(4) != 0).then(|| wide(4)),
        order: match word(8) & 2 {
            0 => TopKTopP::Joint,
            _ => TopKTopP::Renormalised,
        },
        seed: wide(6),
    }
}

/// What draws a case's tokens.
fn plan(case: &Value, wave: u32) -> Value {
    let integer = |field: &str| case[field].as_u64().unwrap() as usize;
    let array = |field: &str| case[field].as_array().unwrap();
    let dtype = match case["dtype"].as_str().unwrap() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => panic!("{other}"),
    };
    let (rows, vocab, stride) = (integer("rows"), integer("vocab"), integer("stride"));
    let params = array("params")
        .iter()
        .map(|x| row_params(x.as_str().unwrap()));
    let params: Vec<_> = params.collect();
    let positions = array("positions").iter().map(|x| x.as_u64().unwrap());
    let positions: Vec<_> = positions.collect();

    let gpu = Recorder::new(wave);
    let mut on_device = Rows::new(&gpu, rows, vocab).unwrap();
    let logits = logits(dtype, rows, vocab, stride);
    draw(&mut on_device, &gpu, &logits, &params, &positions).unwrap();
    let memory = NAMES.iter().zip(gpu.memory.take());
    let memory: serde_json::Map<_, _> = memory
        .map(|(name, words)| (name.to_string(), json!(words)))
        .collect();
    json!({ "memory": memory, "steps": gpu.steps() })
}

#[test]
#[ignore = "writes files for other harnesses"]
fn write_plans() {
    let folder = std::env::var_os("CANDLE_SAMPLER_CASES").expect("CANDLE_SAMPLER_CASES=DIR");
    let mut written = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let case = std::fs::read_to_string(&path).expect("a case");
        let case: Value = serde_json::from_str(&case).expect("a case");
        if case["kind"] == "sample" {
            let plans = json!({ "32": plan(&case, 32), "64": plan(&case, 64) });
            std::fs::write(path.with_extension("plan"), format!("{plans:#}\n"))
                .expect("a writable folder");
            written += 1;
        }
    }
    assert!(written > 0, "no cases");
}
