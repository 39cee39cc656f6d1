//! How long draws take.

use crate::device::{Place, Rows};
use crate::rows::normal;
use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_sampler::hip::HipDevice;
use candle_sampler::{Sampler, SamplingParams};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

const VOCABULARY: usize = 151_936;
const BATCHES: [usize; 4] = [1, 8, 64, 512];
/// Draws that are submitted together, where nobody waits for each.
const TOGETHER: usize = 20;
/// Different rows; larger batches repeat them.
const ROWS: usize = 64;

struct Grid {
    vocab: usize,
    batches: &'static [usize],
    /// For each figure.
    time: Duration,
}

pub fn run(gpu: &HipDevice, seed: u64, quick: bool) -> Result<()> {
    let grid = match quick {
        true => Grid {
            vocab: 5003,
            batches: &BATCHES[..2],
            time: Duration::from_millis(50),
        },
        false => Grid {
            vocab: VOCABULARY,
            batches: &BATCHES,
            time: Duration::from_millis(500),
        },
    };
    let t = SamplingParams::new().temperature(0.8);
    let modes = [
        ("greedy", t.clone().temperature(0.0)),
        ("no filter", t.clone()),
        ("top-k 50", t.clone().top_k(50)),
        ("top-p 0.9", t.clone().top_p(0.9)),
        ("top-k 50, top-p 0.9", t.clone().top_k(50).top_p(0.9)),
        ("min-p 0.05", t.clone().min_p(0.05)),
        ("top-p 0.9, T 1.5", t.temperature(1.5).top_p(0.9)),
    ];
    println!("\n## Times\n");
    println!(
        "µs a call, medians, by batch; {} tokens, f32, N(0,3), T 0.8 unless said.",
        grid.vocab
    );
    let mut rng = StdRng::seed_from_u64(seed);
    let rows: Vec<Vec<f32>> = (0..ROWS)
        .map(|_| normal(&mut rng, grid.vocab, 3.0))
        .collect();
    // A column a batch, three tables: the logits of the largest batch are too large to have more than once.
    let mut tables = vec![vec![Vec::new(); modes.len()]; WAYS.len()];
    for &batch in grid.batches {
        let data: Vec<f32> = (0..batch).flat_map(|i| &rows[i % ROWS]).copied().collect();
        let logits = Tensor::from_vec(data, (batch, grid.vocab), &Device::Cpu)?;
        for (mode, (_, params)) in modes.iter().enumerate() {
            for (way, cell) in cells(gpu, &logits, params, grid.time)?
                .into_iter()
                .enumerate()
            {
                tables[way][mode].push(cell);
            }
        }
    }
    for (way, table) in WAYS.iter().zip(tables) {
        println!("\n{way}:\n");
        let heads: Vec<String> = grid.batches.iter().map(usize::to_string).collect();
        println!(
            "| | {} |\n|---{}|",
            heads.join(" | "),
            "|---".repeat(heads.len())
        );
        for ((name, _), cells) in modes.iter().zip(table) {
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
    if !quick {
        longest(gpu, &mut rng)?;
    }
    Ok(())
}

const WAYS: [&str; 3] = [
    "`sample_device`, 20 calls together, then a wait",
    "`sample_device`, each call with its ids copied to the host",
    "`sample`, from a CPU tensor to ids on the host",
];

/// One for each way.
fn cells(
    gpu: &HipDevice,
    logits: &Tensor,
    params: &SamplingParams,
    time: Duration,
) -> Result<[String; 3]> {
    let cell = |result: Result<f64>| match result {
        Ok(time) => Ok(format!("{:.1}", time * 1e6)),
        Err(error) if error.to_string().contains(" (2)") => Ok("no memory".to_owned()),
        Err(error) => Err(error),
    };
    let batch = logits.dim(0)? as u64;
    let rows: Vec<_> = (0..batch).map(|seed| params.clone().seed(seed)).collect();
    let sampler = || Sampler::new(&rows)?.on_hip(gpu);
    let place = Place {
        offset: 0,
        stride: logits.dim(1)?,
    };
    let on_device = |together: usize| {
        let (mut sampler, mut rows) = (sampler()?, Rows::new(gpu, logits, place)?);
        let seconds = median(time, || {
            for _ in 0..together {
                rows.draw(&mut sampler)?;
            }
            if together > 1 {
                rows.wait()
            } else {
                rows.ids().map(drop)
            }
        })?;
        Ok(seconds / together as f64)
    };
    let from_host = || {
        let mut sampler = sampler()?;
        median(time, || Ok(sampler.sample(logits).map(drop)?))
    };
    Ok([
        cell(on_device(TOGETHER))?,
        cell(on_device(1))?,
        cell(from_host())?,
    ])
}

/// The median of as many calls as fit the time, in seconds, after one that warms up.
fn median(time: Duration, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (begin.elapsed() < time && times.len() < 200) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A display's watchdog ends launches of a second or two. This is how near one gets.
fn longest(gpu: &HipDevice, rng: &mut StdRng) -> Result<()> {
    const LARGEST: usize = 1 << 24;
    println!("\nThe largest vocabulary, one row of {LARGEST} tokens, ms a call:\n");
    let t = SamplingParams::new().temperature(1.5);
    let both = t.clone().top_k(LARGEST / 2).top_p(0.5);
    let modes = [
        ("top-k half", t.clone().top_k(LARGEST / 2)),
        ("top-p 0.9", t.top_p(0.9)),
        ("top-k half, top-p 0.5", both),
    ];
    let heads: Vec<&str> = modes.iter().map(|(name, _)| *name).collect();
    println!("| | {} |\n|---|---|---|---|", heads.join(" | "));
    let ties = normal(rng, LARGEST, 4.0)
        .iter()
        .map(|z| z.round())
        .collect();
    for (kind, row) in [
        ("N(0,3)", normal(rng, LARGEST, 3.0)),
        ("N(0,0.01)", normal(rng, LARGEST, 0.01)),
        ("ties", ties),
        ("all equal", vec![1.5; LARGEST]),
    ] {
        let logits = Tensor::from_vec(row, (1, LARGEST), &Device::Cpu)?;
        let mut rows = Rows::new(
            gpu,
            &logits,
            Place {
                offset: 0,
                stride: LARGEST,
            },
        )?;
        let mut cells = Vec::new();
        for (_, params) in &modes {
            let mut sampler = Sampler::new(std::slice::from_ref(params))?.on_hip(gpu)?;
            let seconds = median(Duration::ZERO, || {
                rows.draw(&mut sampler)?;
                rows.wait()
            })?;
            cells.push(format!("{:.2}", seconds * 1e3));
        }
        println!("| {kind} | {} |", cells.join(" | "));
    }
    Ok(())
}
