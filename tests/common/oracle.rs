//! What should be kept and how often it should be drawn, by a sort and sums in f64.

use candle_sampler::{SamplingParams, TopKTopP};

/// Parameters that the oracle understands too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub temperature: f64,
    pub k: Option<usize>,
    pub p: Option<f64>,
    pub min_p: Option<f64>,
    pub order: TopKTopP,
}

impl Filter {
    pub fn params(self) -> SamplingParams {
        let mut params = SamplingParams::new()
            .temperature(self.temperature)
            .order(self.order);
        if let Some(k) = self.k {
            params = params.top_k(k);
        }
        if let Some(p) = self.p {
            params = params.top_p(p);
        }
        if let Some(p) = self.min_p {
            params = params.min_p(p);
        }
        params
    }
}

/// Softmax, sort and filters in f64.
pub struct Oracle {
    /// Ids in the total order.
    pub order: Vec<u32>,
    /// Unnormalised probability of each id.
    pub weight: Vec<f64>,
    /// Of each id: whether it is kept, and how far the decision was from going the other way.
    pub kept: Vec<bool>,
    pub margin: Vec<f64>,
    /// Whether tokens are drawn from all, up to four, until one is kept.
    pub tries: bool,
}

impl Oracle {
    pub fn new(logits: &[f32], filter: Filter) -> Self {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| {
            let (x, y) = (logits[a as usize], logits[b as usize]);
            y.partial_cmp(&x).expect("no NaN").then(a.cmp(&b))
        });
        let max = f64::from(logits[order[0] as usize]);
        let weight: Vec<f64> = logits
            .iter()
            .map(|&z| ((f64::from(z) - max) / filter.temperature).exp())
            .collect();
        let k = filter.k.unwrap_or(usize::MAX).min(logits.len());
        let renormalised = filter.k.is_some() && filter.order == TopKTopP::Renormalised;
        let share_of = if renormalised { k } else { logits.len() };
        let total: f64 = order[..share_of]
            .iter()
            .map(|&id| weight[id as usize])
            .sum();
        let (mut kept, mut margin) = (vec![false; logits.len()], vec![1.0; logits.len()]);
        let mut above = 0.0;
        for (i, &id) in order.iter().enumerate() {
            let w = weight[id as usize];
            let by_p = filter
                .p
                .map_or(1.0, |p| if p < 1.0 { p - above / total } else { 1.0 });
            let by_min_p = filter.min_p.map_or(1.0, |p| w / p - 1.0);
            let masked = logits[id as usize] == f32::NEG_INFINITY;
            kept[id as usize] = !masked && i < k && by_p > 0.0 && by_min_p >= 0.0;
            margin[id as usize] = by_p.abs().min(by_min_p.abs());
            above += w;
        }
        let has_p = filter.p.is_some_and(|p| p < 1.0);
        let tries = if k == logits.len() {
            has_p
        } else {
            8 * k > logits.len() && !(has_p && filter.order == TopKTopP::Renormalised)
        };
        Self {
            order,
            weight,
            kept,
            margin,
            tries,
        }
    }

    /// The token that the random numbers (of 1) stand for, how far they are from standing for another, and the round of the
    /// draw that it came from.
    pub fn drawn(&self, u: impl Fn(u32) -> f64) -> (u32, f64, u32) {
        let (mut closest, mut round) = (1.0, 0);
        while self.tries && round < 4 {
            let (id, margin) = at(&self.probabilities_of(|_| true), u(round));
            closest = margin.min(closest);
            if id == u32::MAX || self.kept[id as usize] {
                return (id, closest, round);
            }
            round += 1;
        }
        let (id, margin) = at(&self.probabilities(), u(round));
        (id, margin.min(closest), round)
    }

    /// The kept ids, ascending, with their probabilities.
    pub fn probabilities(&self) -> Vec<(u32, f64)> {
        self.probabilities_of(|id| self.kept[id])
    }

    fn probabilities_of(&self, which: impl Fn(usize) -> bool) -> Vec<(u32, f64)> {
        let ids = (0..self.kept.len()).filter(|&id| which(id));
        let total: f64 = ids.clone().map(|id| self.weight[id]).sum();
        ids.map(|id| (id as u32, self.weight[id] / total)).collect()
    }
}

/// The token at which the sum of probabilities exceeds `u`, and how far `u` is from another.
fn at(probabilities: &[(u32, f64)], u: f64) -> (u32, f64) {
    let mut below = 0.0;
    for &(id, p) in probabilities {
        if u < below + p {
            return (id, (u - below).min(below + p - u));
        }
        below += p;
    }
    (u32::MAX, 0.0)
}

/// What a draw is made of: 64 bits of Philox4x32-10, written down a second time.
pub fn random_bits(seed: u64, position: u64, round: u32) -> u64 {
    let [mut a, mut b, mut c, mut d] = [position as u32, (position >> 32) as u32, round, 0];
    let (mut k, mut l) = (seed as u32, (seed >> 32) as u32);
    for _ in 0..10 {
        let x = u64::from(a) * 0xD251_1F53;
        let y = u64::from(c) * 0xCD9E_8D57;
        a = (y >> 32) as u32 ^ b ^ k;
        c = (x >> 32) as u32 ^ d ^ l;
        (b, d) = (y as u32, x as u32);
        k = k.wrapping_add(0x9E37_79B9);
        l = l.wrapping_add(0xBB67_AE85);
    }
    u64::from(b) << 32 | u64::from(a)
}

/// Pearson's statistic over cells of at least 10 expected draws (rarer tokens share one), against its
/// 99.9 % point by Wilson and Hilferty's approximation.
pub fn chi_square(what: &str, oracle: &Oracle, drawn: &[u32]) {
    let mut counts = vec![0f64; oracle.kept.len()];
    for &id in drawn {
        assert!(
            oracle.kept[id as usize],
            "{what}: token {id} is not in the kept set"
        );
        counts[id as usize] += 1.0;
    }
    let n = drawn.len() as f64;
    let (mut statistic, mut cells, mut rare) = (0.0, 0, (0.0, 0.0));
    let mut cell = |observed: f64, expected: f64| {
        statistic += (observed - expected).powi(2) / expected;
        cells += 1;
    };
    for (id, p) in oracle.probabilities() {
        if p * n < 10.0 {
            rare = (rare.0 + counts[id as usize], rare.1 + p * n);
        } else {
            cell(counts[id as usize], p * n);
        }
    }
    if rare.1 >= 10.0 {
        cell(rare.0, rare.1);
    } else {
        assert!(
            rare.0 < 40.0,
            "{what}: {} draws where {} were expected",
            rare.0,
            rare.1
        );
    }
    if cells > 1 {
        let df = f64::from(cells - 1);
        let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.0902 * (2.0 / (9.0 * df)).sqrt()).powi(3);
        assert!(
            statistic < limit,
            "{what}: chi² {statistic:.1} with {df} degrees, limit {limit:.1}"
        );
    }
}
