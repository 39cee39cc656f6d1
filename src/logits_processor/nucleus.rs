//! Candle's top-p set without sorting the vocabulary.

/// The ids that Candle's top-p keeps, ascending; `None` if no token is removed.
///
/// Only tokens that can be inside are sorted: those above a bound that is lowered until the ones above
/// it reach `p`. Equal probabilities stand in the order of their ids, as in Candle's stable sort.
pub(super) fn nucleus(probabilities: &[f32], p: f32) -> Option<Vec<u32>> {
    // Non-negative floats are in the order of their bits. A caller's `f` can have left anything else.
    let top = probabilities.iter().map(|x| x.to_bits()).fold(0, u32::max);
    if top > f32::MAX.to_bits() {
        return by_sorting(probabilities, p);
    }
    let top = f32::from_bits(top);
    let mut bound = top;
    let mut candidates: Vec<u64> = Vec::new();
    while bound > 0.0 {
        bound = if bound > top * 1e-9 {
            bound / 16.0
        } else {
            0.0
        };
        if bound > 0.0 && sum_from(probabilities, bound) < p * 1.001 {
            continue;
        }
        gather(probabilities, bound, &mut candidates);
        candidates.sort_unstable();
        let sorted = candidates.iter().map(|&c| c as u32);
        if let Some(kept) = crossing(sorted.clone(), probabilities, p) {
            let mut ids: Vec<u32> = sorted.take(kept).collect();
            ids.sort_unstable();
            return Some(ids);
        }
    }
    None
}

/// What Candle does.
fn by_sorting(probabilities: &[f32], p: f32) -> Option<Vec<u32>> {
    let mut ids: Vec<u32> = (0..probabilities.len() as u32).collect();
    ids.sort_by(|&i, &j| probabilities[j as usize].total_cmp(&probabilities[i as usize]));
    let kept = crossing(ids.iter().copied(), probabilities, p)?;
    ids.truncate(kept);
    ids.sort_unstable();
    Some(ids)
}

/// How many of the sorted tokens it takes for their running sum to reach `p`.
fn crossing(sorted: impl Iterator<Item = u32>, probabilities: &[f32], p: f32) -> Option<usize> {
    let mut sum = 0f32;
    for (i, id) in sorted.enumerate() {
        if sum >= p {
            return Some(i);
        }
        sum += probabilities[id as usize];
    }
    None
}

/// Tokens per step of the loops below, which the compiler turns into vectors.
const LANES: usize = 16;

/// Roughly the mass of the tokens at `bound` or above: it only steers the search.
fn sum_from(probabilities: &[f32], bound: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = probabilities.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().filter(|x| **x >= bound).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += if *x >= bound { *x } else { 0.0 };
        }
    }
    rest + lanes.iter().sum::<f32>()
}

/// The tokens at `bound` or above, as integers in Candle's order: larger probability, then lower id.
fn gather(probabilities: &[f32], bound: f32, candidates: &mut Vec<u64>) {
    candidates.clear();
    for (i, chunk) in probabilities.chunks(LANES).enumerate() {
        // Most chunks hold none, and this count is a few vector instructions.
        if chunk.iter().map(|x| u32::from(*x >= bound)).sum::<u32>() == 0 {
            continue;
        }
        for (lane, x) in chunk.iter().enumerate() {
            if *x >= bound {
                candidates.push(u64::from(!x.to_bits()) << 32 | (i * LANES + lane) as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_sorting(mut xs in prop::collection::vec(-1f32..1., 0..400), p in -0.1f32..1.2, skew in 0u8..4) {
            for x in &mut xs {
                // Ties, zeros, a peak; and in one case of four, negative numbers too.
                *x = match skew {
                    0 => x.abs().powi(20),
                    1 => (x.abs() * 8.0).floor(),
                    2 => 1.0,
                    _ => *x,
                };
            }
            let sum: f32 = xs.iter().sum();
            xs.iter_mut().for_each(|x| *x /= sum.max(1e-3));
            prop_assert_eq!(nucleus(&xs, p), by_sorting(&xs, p));
        }
    }
}
