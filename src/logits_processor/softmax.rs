//! `candle_nn::ops::softmax_last_dim(&(logits / temperature)?)`, into a buffer that is kept.
//!
//! The same operations on the same values, bit for bit: only copies, allocations and a maximum that waits
//! for itself are left out. What depends on order, the sum, is Candle's own.

use candle_core::cpu::kernels::VecOps;
use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

/// Writes the softmax of `[vocab]` f32 logits divided by `temperature` to `xs`.
pub(super) fn softmax(logits: &Tensor, temperature: f64, xs: &mut Vec<f32>) -> Result<()> {
    xs.clear();
    if !logits.device().is_cpu() {
        let probabilities = candle_nn::ops::softmax_last_dim(&(logits / temperature)?)?;
        xs.append(&mut probabilities.to_vec1()?);
        return Ok(());
    }
    let vocab = logits.dims1()?;
    let logits = logits.contiguous()?;
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        bail!("logits have dtype {:?}, expected F32", logits.dtype())
    };
    // Candle divides by a scalar with `affine(1 / temperature, 0)`.
    let factor = (1.0 / temperature) as f32;
    xs.extend(
        data[layout.start_offset()..][..vocab]
            .iter()
            .map(|x| x * factor + 0.0),
    );
    let max = max(xs);
    for x in xs.iter_mut() {
        *x = (*x - max).exp();
    }
    let mut sum = 0.0;
    // SAFETY: the pointer and the length are those of one live vector.
    unsafe { f32::vec_reduce_sum(xs.as_ptr(), &mut sum, xs.len()) };
    for x in xs.iter_mut() {
        *x /= sum;
    }
    Ok(())
}

/// The maximum but for NaN, which then is in the differences anyway.
fn max(xs: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let chunks = xs.chunks_exact(16);
    let rest = chunks
        .remainder()
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn equals_candle_bit_for_bit() -> Result<()> {
        let bits = |xs: Vec<f32>| xs.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let mut rows = vec![
            vec![0.0, -0.0, 1.0],
            vec![-inf, 2.0, -1e30],
            vec![inf, 1.0],
            vec![-inf; 20],
            vec![nan; 3],
            vec![1.0, nan, 2.0],
        ];
        for (n, spread) in [(1, 1f32), (17, 5.), (999, 0.1), (32_000, 3.), (151_936, 8.)] {
            rows.push(Tensor::randn(0f32, spread, n, &Device::Cpu)?.to_vec1()?);
        }
        for row in rows {
            let row = Tensor::new(row, &Device::Cpu)?;
            for temperature in [1.0, 0.7, 1.5, 1e-3, 0.0, -1.0, nan.into()] {
                let want = candle_nn::ops::softmax_last_dim(&(&row / temperature)?)?.to_vec1()?;
                let (got, want) = (
                    {
                        let mut xs = vec![0.5; 7];
                        softmax(&row, temperature, &mut xs)?;
                        bits(xs)
                    },
                    bits(want),
                );
                // Which NaN it is, no one can tell from a token.
                let same = |(a, b): (&u32, &u32)| {
                    a == b || (f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan())
                };
                assert!(got.iter().zip(&want).all(same), "T {temperature}, {row}");
                assert_eq!(got.len(), want.len());
            }
        }
        Ok(())
    }
}
