//! The GPU's tokens against those that the CPU draws for the same logits, parameters, seeds and positions.

use crate::device::{Place, Rows};
use crate::rows::{kinds, settings};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_sampler::hip::HipDevice;
use candle_sampler::{Sampler, SamplingParams};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Around the sizes of waves, of slices (512) and of real models, and not multiples of 4 or 512.
const VOCABULARIES: [usize; 16] = [
    1, 2, 3, 31, 33, 127, 511, 512, 513, 1003, 4096, 5000, 32_000, 32_003, 128_256, 151_936,
];
const QUICK: [usize; 4] = [1, 33, 513, 5003];
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Draws of each batch.
const STEPS: usize = 4;
/// Pairs of a row and a setting that are drawn from in small batches, too.
const FEW: usize = 24;
/// Mismatches that are described, of each vocabulary and dtype.
const SHOWN: usize = 3;

struct Check<'a> {
    gpu: &'a HipDevice,
    rng: StdRng,
    seed: u64,
    drawn: usize,
    mismatches: usize,
    /// What is needed to repeat some of them.
    described: Vec<String>,
}

/// A row of logits, by its place among the kinds, and how to draw from it.
type Draw = (usize, SamplingParams);

/// Whether all were equal.
pub fn run(gpu: &HipDevice, seed: u64, quick: bool) -> Result<bool> {
    println!(
        "\n## Tokens: the GPU's and the CPU's\n\n\
         Every kind of row with every setting in batches of 64, some in batches of 8 and 1, too; each batch {STEPS} times, \
         rows replaced and positions set between, from views of CPU tensors and from device memory. Seed {seed}."
    );
    if quick {
        println!("Quick: {FEW} pairs of a row and a setting.");
    }
    println!("\n| vocabulary | f32, f16, bf16: row-draws | mismatches |\n|---|---|---|");
    let mut check = Check {
        gpu,
        rng: StdRng::seed_from_u64(seed),
        seed,
        drawn: 0,
        mismatches: 0,
        described: Vec::new(),
    };
    let vocabularies = if quick { &QUICK[..] } else { &VOCABULARIES };
    let end = vocabularies.iter().try_for_each(|&vocab| {
        let (drawn, mismatches) = (check.drawn, check.mismatches);
        let end = DTYPES
            .iter()
            .try_for_each(|&dtype| check.vocabulary(vocab, dtype, quick));
        let (drawn, mismatches) = (check.drawn - drawn, check.mismatches - mismatches);
        println!("| {vocab} | {drawn} | {mismatches} |");
        end
    });
    println!(
        "\n**{} mismatches in {} row-draws.**",
        check.mismatches, check.drawn
    );
    if check.mismatches > 0 {
        println!(
            "\nThe first of each vocabulary and dtype:\n\n{}",
            check.described.join("\n")
        );
    }
    end.map(|()| check.mismatches == 0)
}

impl Check<'_> {
    fn vocabulary(&mut self, vocab: usize, dtype: DType, quick: bool) -> Result<()> {
        let (kinds, settings) = (kinds(vocab, self.seed), settings(vocab));
        let pairs = (0..kinds.len()).flat_map(|kind| settings.iter().map(move |s| (kind, s)));
        let mut draws: Vec<Draw> = pairs.map(|(kind, s)| (kind, s.clone())).collect();
        draws.shuffle(&mut self.rng);
        if quick {
            draws.truncate(FEW);
        }
        let few = &draws[..FEW];
        let small = few.chunks(8).chain(few[..8].chunks(1));
        let before = self.mismatches;
        for (number, batch) in draws.chunks(64).chain(small).enumerate() {
            // Aligned to 16 bytes, to an element only, and again, with room between rows.
            let (offset, stride) = match number % 3 {
                0 => (0, vocab),
                1 => (1, vocab + 3),
                _ => (16, vocab.next_multiple_of(64) + 64),
            };
            self.batch(
                &kinds,
                dtype,
                batch,
                Place { offset, stride },
                before + SHOWN,
            )?;
        }
        Ok(())
    }

    /// Describes mismatches until so many are found.
    fn batch(
        &mut self,
        kinds: &[(&'static str, Vec<f32>)],
        dtype: DType,
        batch: &[Draw],
        place: Place,
        shown: usize,
    ) -> Result<()> {
        let rows: Vec<f32> = batch
            .iter()
            .flat_map(|(kind, _)| &kinds[*kind].1)
            .copied()
            .collect();
        let (count, vocab) = (batch.len(), rows.len() / batch.len());
        let logits = Tensor::from_vec(rows, (count, vocab), &Device::Cpu)?.to_dtype(dtype)?;
        let wide = logits.pad_with_zeros(1, place.offset, place.stride - vocab)?;
        let view = wide.narrow(1, place.offset, vocab)?;
        let mut on_device = Rows::new(self.gpu, &logits, place)?;

        let seeded = |(_, setting): &Draw| setting.clone().seed(self.rng.random());
        let mut params: Vec<_> = batch.iter().map(seeded).collect();
        let mut cpu = Sampler::new(&params)?;
        let mut from_host = Sampler::new(&params)?.on_hip(self.gpu)?;
        let mut from_device = Sampler::new(&params)?.on_hip(self.gpu)?;
        for step in 0..STEPS {
            // Positions 0 and 1, then any and the one after; and every other row has other parameters.
            for row in (0..count).filter(|_| step == 2) {
                let position = self.rng.random::<u64>() >> self.rng.random_range(0..64);
                if row % 2 == 1 {
                    params[row] = params[row - 1].clone().seed(self.rng.random());
                }
                for sampler in [&mut cpu, &mut from_host, &mut from_device] {
                    if row % 2 == 1 {
                        sampler.replace_row(row, &params[row])?;
                    }
                    sampler.set_position(row, position);
                }
            }
            let positions: Vec<u64> = (0..count).map(|row| cpu.position(row)).collect();
            let want = cpu.sample(&logits)?.to_vec1::<u32>()?;
            let host = from_host.sample(&view)?.to_vec1::<u32>()?;
            on_device.draw(&mut from_device)?;
            for (way, got) in [("a CPU tensor", host), ("device memory", on_device.ids()?)] {
                self.drawn += count;
                for row in (0..count).filter(|&row| got[row] != want[row]) {
                    self.mismatches += 1;
                    if self.mismatches > shown {
                        continue;
                    }
                    self.described.push(format!(
                        "- {vocab} {dtype:?}, {}, {:?}, position {}: {}, the CPU's {} (from {way}, {place:?}, draw {step} of a \
                         batch of {count}, row {row})",
                        kinds[batch[row].0].0, params[row], positions[row], got[row], want[row],
                    ));
                }
            }
        }
        Ok(())
    }
}
