//! Sampling on a CUDA device, one JSON line a figure. `scripts/plot-benchmarks` makes tables and pictures of them.
//!
//! ```text
//! cargo bench --features cuda --bench gpu                               # synthetic rows
//! ROWS=logits.safetensors cargo bench --features cuda --bench gpu       # real ones too
//! ```
//!
//! Arguments are words that a figure's line must contain to be measured: `-- '"batch": 8,' '"mode": "greedy"'`. A line's
//! `"what"` is one of
//!
//! - `run`: what ran where (always printed; the environment variable COMMIT overrides what git says),
//! - `sampler`: modes, kinds of rows, dtypes and batches,
//! - `hard`: flat rows, large k, p near 1, and batches whose rows differ,
//! - `vocabulary`, `batch`: one of the two varies, over a wider range,
//! - `one row, token on the host`: `LogitsProcessor`, Candle's and ours.
//!
//! The last are wall times of one call. All others are the steady state: 20 calls of `Sampler::sample` captured in one graph; a
//! replay's time over 20, median of 60 replays.

use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::{LogitsProcessor, Sampler, Sampling, SamplingParams, TopKTopP};
use candle_transformers::generation as candle;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const CALLS: usize = 20;
const REPLAYS: usize = 60;
const TEMPERATURE: f64 = 0.8;
const VOCAB: usize = 151_936;
const BATCHES: [usize; 4] = [1, 8, 64, 512];
const MOST_ROWS: usize = 1024;
const VOCABULARIES: [usize; 12] = [
    1_000, 2_048, 4_096, 8_192, 16_384, 32_000, 50_257, 128_256, VOCAB, 262_144, 524_288, 1_048_576,
];

fn t() -> SamplingParams {
    SamplingParams::new().temperature(TEMPERATURE)
}

fn greedy() -> SamplingParams {
    t().temperature(0.0)
}

fn both() -> SamplingParams {
    t().top_k(50).top_p(0.9)
}

fn main() -> Result<()> {
    let device = match Device::new_cuda_with_stream(0) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no CUDA device: {error}");
            return Ok(());
        }
    };
    let bench = Bench::new(device)?;
    bench.print_run();
    bench.modes("normal", |batch| bench.normal(batch, VOCAB))?;
    bench.modes("normal", |batch| bench.normal(batch, 32_000))?;
    if let Some(rows) = &bench.real {
        bench.modes("real", |batch| rows.narrow(0, 0, batch))?;
    }
    bench.hard()?;
    bench.sweeps()?;
    bench.one_row_on_the_host()
}

struct Bench {
    device: Device,
    stream: Arc<CudaStream>,
    /// What a line must contain.
    wanted: Vec<String>,
    /// N(0, 3) logits for `MOST_ROWS` rows of `VOCAB` tokens, flat: those of every shape begin here.
    normal: Tensor,
    /// The file's rows, repeated to the largest batch.
    real: Option<Tensor>,
}

impl Bench {
    fn new(device: Device) -> Result<Self> {
        let Device::Cuda(cuda) = &device else {
            unreachable!("a CUDA device")
        };
        // SAFETY: one stream does everything. (A capture cannot wait for events of work before it.)
        unsafe { cuda.disable_event_tracking() };
        let real = match std::env::var("ROWS") {
            Ok(path) => Some(real_rows(&path)?.to_device(&device)?),
            Err(_) => None,
        };
        Ok(Self {
            stream: cuda.cuda_stream(),
            wanted: std::env::args()
                .skip(1)
                .filter(|a| !a.starts_with("--"))
                .collect(),
            normal: Tensor::randn(0f32, 3., MOST_ROWS * VOCAB, &device)?,
            real,
            device,
        })
    }

    fn normal(&self, batch: usize, vocab: usize) -> Result<Tensor> {
        let logits = self.normal.narrow(0, 0, batch * vocab)?;
        logits.reshape((batch, vocab))
    }

    fn wants(&self, line: &str) -> bool {
        // As it is printed, with a figure to follow.
        let line = format!("{line}, ");
        self.wanted.iter().all(|word| line.contains(word))
    }

    fn print_run(&self) {
        let gpu = self.stream.context().name();
        let gpu = gpu.unwrap_or_else(|_| "unknown".into());
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        let driver = first_line("nvidia-smi", &query);
        let date = first_line("date", &["-u", "+%F"]);
        let commit = std::env::var("COMMIT")
            .unwrap_or_else(|_| first_line("git", &["rev-parse", "--short", "HEAD"]));
        let version = env!("CARGO_PKG_VERSION");
        let run = format!(
            r#""gpu": "{gpu}", "driver": "{driver}", "date": "{date}", "commit": "{commit}""#
        );
        println!(r#"{{"what": "run", {run}, "version": "{version}"}}"#);
    }

    /// Every mode, batch and dtype, on one kind of rows.
    fn modes(&self, kind: &str, rows: impl Fn(usize) -> Result<Tensor>) -> Result<()> {
        let modes = [
            ("greedy", greedy()),
            ("no filter", t()),
            ("top-k 50", t().top_k(50)),
            ("top-p 0.9", t().top_p(0.9)),
            ("top-k 50, top-p 0.9", both()),
            ("top-k 50, top-p 0.9, joint", both().order(TopKTopP::Joint)),
            ("min-p 0.05", t().min_p(0.05)),
        ];
        for batch in BATCHES {
            let logits = rows(batch)?;
            let dtypes = [DType::F32, DType::BF16, DType::F16];
            for dtype in &dtypes[..if batch == 512 { 3 } else { 2 }] {
                let logits = logits.to_dtype(*dtype)?;
                for (mode, params) in &modes {
                    self.figure("sampler", mode, kind, &logits, std::slice::from_ref(params))?;
                }
            }
        }
        Ok(())
    }

    /// What makes a search of the kept set long, and what makes blocks wait for each other.
    fn hard(&self) -> Result<()> {
        let top_p = [t().top_p(0.9)];
        for batch in BATCHES {
            if let Some(rows) = &self.real {
                let flatter = [t().temperature(1.5).top_p(0.9)];
                let logits = rows.narrow(0, 0, batch)?;
                self.figure("hard", "top-p 0.9, T 1.5", "real", &logits, &flatter)?;
            }
            let uniform = Tensor::rand(0f32, 1., (batch, VOCAB), &self.device)?;
            self.figure("hard", "top-p 0.9", "uniform", &uniform, &top_p)?;
            let equal = Tensor::zeros((batch, VOCAB), DType::F32, &self.device)?;
            self.figure("hard", "top-p 0.9", "all equal", &equal, &top_p)?;

            let normal = self.normal(batch, VOCAB)?;
            for (mode, params) in [
                ("top-k 1000", t().top_k(1000)),
                ("top-k 50000", t().top_k(50_000)),
                ("top-p 0.999", t().top_p(0.999)),
            ] {
                self.figure("hard", mode, "normal", &normal, &[params])?;
            }
            if batch > 1 {
                let mixed = [
                    greedy(),
                    t(),
                    t().top_k(50),
                    t().top_p(0.9),
                    both(),
                    t().min_p(0.05),
                    t().top_k(1000),
                    t().top_p(0.999),
                ];
                self.figure("hard", "eight modes in turn", "normal", &normal, &mixed)?;
            }
            if batch >= 64 {
                let mode = "top-k 50, top-p 0.9, the first row top-p 0.9";
                let others = normal.narrow(0, 1, batch - 1)?;
                let mut params = vec![both(); batch];
                params[0] = t().top_p(0.9);
                for (kind, first) in [("all equal", &equal), ("uniform", &uniform)] {
                    let rows = format!("normal, the first {kind}");
                    let logits = Tensor::cat(&[&first.narrow(0, 0, 1)?, &others], 0)?;
                    self.figure("hard", mode, &rows, &logits, &params)?;
                }
            }
        }
        Ok(())
    }

    fn sweeps(&self) -> Result<()> {
        let modes = [
            ("greedy", greedy()),
            ("no filter", t()),
            ("top-p 0.9", t().top_p(0.9)),
            ("top-k 50, top-p 0.9", both()),
        ];
        let vocabularies = VOCABULARIES
            .iter()
            .flat_map(|&vocab| [1, 64].map(|batch| ("vocabulary", batch, vocab)));
        let batches = (0..=MOST_ROWS.ilog2()).map(|log| ("batch", 1 << log, VOCAB));
        for (what, batch, vocab) in vocabularies.chain(batches) {
            let logits = self.normal(batch, vocab)?;
            for (mode, params) in &modes {
                self.figure(what, mode, "normal", &logits, std::slice::from_ref(params))?;
            }
        }
        Ok(())
    }

    /// Measures and prints, if wanted. Parameters are handed out to the rows in turn, and each row gets a seed of its own.
    fn figure(
        &self,
        what: &str,
        mode: &str,
        rows: &str,
        logits: &Tensor,
        params: &[SamplingParams],
    ) -> Result<()> {
        let (batch, vocab) = logits.dims2()?;
        let dtype = logits.dtype().as_str();
        let line = format!(
            r#""what": "{what}", "mode": "{mode}", "rows": "{rows}", "vocab": {vocab}, "dtype": "{dtype}", "batch": {batch}"#
        );
        if self.wants(&line) {
            let params: Vec<_> = params.iter().cycle().take(batch).cloned().collect();
            let us = self.steady(logits, params)?;
            println!("{{{line}, \"us\": {us:.2}}}");
        }
        Ok(())
    }

    /// µs of a call in steady state.
    fn steady(&self, logits: &Tensor, mut params: Vec<SamplingParams>) -> Result<f64> {
        for (seed, row) in params.iter_mut().enumerate() {
            *row = row.clone().seed(seed as u64);
        }
        let mut sampler = Sampler::new(&params)?;
        for _ in 0..3 {
            sampler.sample(logits)?;
        }
        self.device.synchronize()?;
        self.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .expect("a capture");
        let ids = (0..CALLS)
            .map(|_| sampler.sample(logits))
            .collect::<Result<Vec<_>>>()?;
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self
            .stream
            .end_capture(flags)
            .expect("a graph")
            .expect("launches");
        let event = || {
            self.stream
                .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .expect("an event")
        };
        let mut times = Vec::new();
        for replay in 0..REPLAYS + 5 {
            let start = event();
            graph.launch().expect("a replay");
            let end = event();
            end.synchronize().expect("the end");
            let ms = f64::from(start.elapsed_ms(&end).expect("a time"));
            if replay >= 5 {
                times.push(ms * 1e3 / CALLS as f64);
            }
        }
        drop(ids);
        Ok(median(times))
    }

    /// `LogitsProcessor`, Candle's and ours, on one row.
    fn one_row_on_the_host(&self) -> Result<()> {
        let (kind, row) = match &self.real {
            Some(rows) => ("real", rows.get(1)?),
            None => ("normal", self.normal.narrow(0, 0, VOCAB)?),
        };
        let vocab = row.elem_count();
        let temperature = TEMPERATURE;
        macro_rules! processors {
            ($($mode:literal: $variant:ident { $($field:ident: $value:expr),* };)*) => {$(
                let mode = $mode;
                let line = format!(
                    r#""what": "one row, token on the host", "mode": "{mode}", "rows": "{kind}", "vocab": {vocab}"#
                );
                if self.wants(&line) {
                    let mut theirs = candle::LogitsProcessor::from_sampling(
                        1, candle::Sampling::$variant { $($field: $value),* });
                    let mut ours = LogitsProcessor::from_sampling(1, Sampling::$variant { $($field: $value),* });
                    let candle = self.wall(50, || theirs.sample(&row))?;
                    let ours = self.wall(200, || ours.sample(&row))?;
                    println!("{{{line}, \"candle_us\": {candle:.1}, \"ours_us\": {ours:.1}}}");
                }
            )*};
        }
        processors! {
            "argmax": ArgMax {};
            "all": All { temperature: temperature };
            "top-k 50": TopK { k: 50, temperature: temperature };
            "top-p 0.9": TopP { p: 0.9, temperature: temperature };
            "top-k 50, top-p 0.9": TopKThenTopP { k: 50, p: 0.9, temperature: temperature };
        }
        Ok(())
    }

    /// µs of a call that brings the token to the host.
    fn wall(&self, calls: usize, mut call: impl FnMut() -> Result<u32>) -> Result<f64> {
        let mut times = Vec::new();
        for i in 0..calls + 3 {
            self.device.synchronize()?;
            let start = Instant::now();
            call()?;
            if i >= 3 {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(median(times))
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The first tensor of a file, `[rows, vocab]` of any float type, as f32; its rows repeated to the largest batch.
fn real_rows(path: &str) -> Result<Tensor> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let rows = tensors.into_values().next().expect("a tensor");
    let rows = rows.to_dtype(DType::F32)?;
    let (count, most) = (rows.dim(0)?, BATCHES[BATCHES.len() - 1]);
    let places = (0..most).map(|i| (i % count) as u32);
    rows.index_select(&Tensor::from_iter(places, &Device::Cpu)?, 0)
}

/// The first line that a program prints, or `unknown`.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let printed = output.ok().filter(|output| output.status.success());
    let printed = printed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = printed.as_deref().and_then(|text| text.lines().next());
    line.unwrap_or("unknown").trim().into()
}
