//! The drop-in for `candle_transformers::generation::LogitsProcessor`.
//!
//! Nothing is computed differently here: the softmax is `candle_nn`'s, the weighted draw is `rand`'s, in
//! the order in which Candle calls them. What is left out is work that cannot change the result: most of
//! a sort ([`nucleus`]) and some copies ([`mod@softmax`]).

mod nucleus;
mod softmax;

use candle_core::{D, DType, Error, Result, Tensor};
use nucleus::nucleus;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use softmax::softmax;

/// How the next token is chosen; Candle's enum, variant for variant.
#[derive(Clone, PartialEq, Debug)]
pub enum Sampling {
    /// The largest logit.
    ArgMax,
    /// From the whole softmax.
    All {
        /// Divides the logits.
        temperature: f64,
    },
    /// From the `k` most probable tokens.
    TopK {
        /// How many; the vocabulary's size or more keeps all.
        k: usize,
        /// Divides the logits.
        temperature: f64,
    },
    /// From the smallest set of most probable tokens whose probabilities reach `p`.
    TopP {
        /// The mass to reach; 0 or less, 1 or more keep all.
        p: f64,
        /// Divides the logits.
        temperature: f64,
    },
    /// From the `k` most probable tokens, then of these the smallest set that reaches `p` of the *whole*
    /// mass (see [`crate::TopKTopP::Joint`]).
    TopKThenTopP {
        /// How many; the vocabulary's size or more keeps all.
        k: usize,
        /// The mass to reach; 0 or less, or more than the `k` tokens have, keep all `k`.
        p: f64,
        /// Divides the logits.
        temperature: f64,
    },
    /// Gumbel-max. Draws from the device's own generator, not from the seed, as Candle's does.
    GumbelSoftmax {
        /// Divides the logits.
        temperature: f64,
    },
}

/// Samples one token at a time; changing `use candle_transformers::generation::LogitsProcessor` to
/// `use candle_sampler::LogitsProcessor` is the whole migration.
///
/// On CPU tensors it returns Candle's token (0.11.1) for the same seed, bit for bit, in every mode but
/// [`Sampling::GumbelSoftmax`], whose random numbers no seed reaches, and it fails where Candle's fails.
/// Logits are `[vocab]`, of any float type; `[1, vocab]`, which Candle rejects, is accepted too.
///
/// On CUDA tensors (feature `cuda`) the row stays on the device and the token follows from the seed as a
/// [`crate::Sampler`]'s does: Candle's distribution, not its tokens. [`LogitsProcessor::sample_f`] still takes the
/// probabilities through the host.
///
/// Candle has no AMD device; with the feature `hip`, `on_hip` draws the rows of CPU tensors on one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_sampler::LogitsProcessor;
///
/// let logits = Tensor::new(&[0.1f32, 2.0, 1.0], &Device::Cpu)?;
/// let mut processor = LogitsProcessor::new(299792458, Some(0.8), Some(0.9));
/// let token = processor.sample(&logits)?;
/// assert!(token < 3);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct LogitsProcessor {
    rng: rand::rngs::StdRng,
    sampling: Sampling,
    /// Kept between calls.
    probabilities: Vec<f32>,
    #[cfg(any(feature = "cuda", feature = "hip"))]
    seed: u64,
    #[cfg(any(feature = "cuda", feature = "hip"))]
    on_device: Option<Box<crate::Sampler>>,
    /// Whether that is for CPU tensors too.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    on_hip: bool,
}

#[cfg(any(feature = "cuda", feature = "hip"))]
impl Sampling {
    /// The same distribution for a [`crate::Sampler`].
    fn params(&self) -> crate::SamplingParams {
        let joint = crate::SamplingParams::new().order(crate::TopKTopP::Joint);
        let top_p = |params: crate::SamplingParams, p: f64| match p {
            p if p <= 0.0 || p >= 1.0 => params,
            p => params.top_p(p),
        };
        match *self {
            Self::ArgMax => joint.temperature(0.0),
            Self::All { temperature } | Self::GumbelSoftmax { temperature } => {
                joint.temperature(temperature)
            }
            Self::TopK { k, temperature } => joint.temperature(temperature).top_k(k),
            Self::TopP { p, temperature } => top_p(joint.temperature(temperature), p),
            Self::TopKThenTopP { k, p, temperature } => {
                top_p(joint.temperature(temperature).top_k(k), p)
            }
        }
    }
}

impl LogitsProcessor {
    /// A processor with this seed and way of sampling.
    pub fn from_sampling(seed: u64, sampling: Sampling) -> Self {
        let rng = rand::rngs::StdRng::seed_from_u64(seed);
        Self {
            rng,
            sampling,
            probabilities: Vec::new(),
            #[cfg(any(feature = "cuda", feature = "hip"))]
            seed,
            #[cfg(any(feature = "cuda", feature = "hip"))]
            on_device: None,
            #[cfg(any(feature = "cuda", feature = "hip"))]
            on_hip: false,
        }
    }

    /// Greedy without a temperature or with one below 1e-7; else top-p if given, else the whole softmax.
    pub fn new(seed: u64, temperature: Option<f64>, top_p: Option<f64>) -> Self {
        let sampling = match (temperature, top_p) {
            (None, _) => Sampling::ArgMax,
            (Some(t), _) if t < 1e-7 => Sampling::ArgMax,
            (Some(temperature), None) => Sampling::All { temperature },
            (Some(temperature), Some(p)) => Sampling::TopP { p, temperature },
        };
        Self::from_sampling(seed, sampling)
    }

    /// Samples the rows of CPU tensors on this GPU from now on (feature `hip`): Candle's distribution, and for a seed the
    /// tokens of a [`crate::Sampler`], not Candle's. [`LogitsProcessor::sample_f`] and [`Sampling::GumbelSoftmax`] stay on
    /// the CPU.
    ///
    /// Fails if a parameter is out of a [`crate::Sampler`]'s range, and as [`crate::Sampler::on_hip`] does.
    #[cfg(feature = "hip")]
    pub fn on_hip(mut self, device: &crate::hip::HipDevice) -> Result<Self> {
        self.on_device = Some(Box::new(self.sampler()?.on_hip(device)?));
        self.on_hip = true;
        Ok(self)
    }

    /// A sampler with the same distribution.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    fn sampler(&self) -> Result<crate::Sampler> {
        crate::Sampler::new(&[self.sampling.params().seed(self.seed)])
    }

    /// The next token for these logits.
    ///
    /// Fails where no token has a weight that can be drawn (a NaN, say, or nothing but −inf).
    pub fn sample(&mut self, logits: &Tensor) -> Result<u32> {
        #[cfg(any(feature = "cuda", feature = "hip"))]
        if (self.on_hip || logits.device().is_cuda())
            && !matches!(self.sampling, Sampling::GumbelSoftmax { .. })
        {
            return self.sample_on_device(logits);
        }
        self.sample_f(logits, |_| {})
    }

    /// With a [`crate::Sampler`] of one row: the logits stay on the device, or go there once, and 4 bytes come back.
    #[cfg(any(feature = "cuda", feature = "hip"))]
    fn sample_on_device(&mut self, logits: &Tensor) -> Result<u32> {
        let logits = match logits.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => logits.clone(),
            _ => logits.to_dtype(DType::F32)?,
        };
        let mut sampler = match self.on_device.take() {
            Some(sampler) => sampler,
            None => Box::new(self.sampler()?),
        };
        let ids = sampler.sample_to_vec(&logits);
        self.on_device = Some(sampler);
        Ok(ids?[0])
    }

    /// [`LogitsProcessor::sample`], with the probabilities passed through `f` after the softmax and before
    /// any filter. Not called for [`Sampling::ArgMax`] and [`Sampling::GumbelSoftmax`].
    pub fn sample_f(&mut self, logits: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<u32> {
        let logits = match logits.dims() {
            [1, _] => logits.squeeze(0)?,
            _ => logits.clone(),
        };
        let logits = logits.to_dtype(DType::F32)?;
        let temperature = match self.sampling {
            Sampling::ArgMax => return logits.argmax(D::Minus1)?.to_scalar(),
            Sampling::GumbelSoftmax { temperature } => {
                return candle_nn::sampling::gumbel_softmax(&logits, temperature, D::Minus1)?
                    .to_scalar();
            }
            Sampling::All { temperature }
            | Sampling::TopK { temperature, .. }
            | Sampling::TopP { temperature, .. }
            | Sampling::TopKThenTopP { temperature, .. } => temperature,
        };
        let mut probabilities = std::mem::take(&mut self.probabilities);
        softmax(&logits, temperature, &mut probabilities)?;
        f(&mut probabilities);
        let token = self.draw_filtered(&probabilities);
        self.probabilities = probabilities;
        token
    }

    fn draw_filtered(&mut self, probabilities: &[f32]) -> Result<u32> {
        match self.sampling {
            Sampling::TopP { p, .. } if p > 0.0 && p < 1.0 => {
                self.draw_top_p(probabilities, p as f32)
            }
            Sampling::TopK { k, .. } => match top_k(probabilities, k) {
                None => self.draw(probabilities),
                Some((ids, kept)) => Ok(ids[self.draw(&kept)? as usize]),
            },
            Sampling::TopKThenTopP { k, p, .. } => {
                let p = p as f32;
                let Some((ids, kept)) = top_k(probabilities, k) else {
                    return self.draw_top_p(probabilities, p);
                };
                let index = if p <= 0.0 || p >= kept.iter().sum::<f32>() {
                    self.draw(&kept)?
                } else {
                    self.draw_top_p(&kept, p)?
                };
                Ok(ids[index as usize])
            }
            _ => self.draw(probabilities),
        }
    }

    fn draw(&mut self, weights: &[f32]) -> Result<u32> {
        let distribution = WeightedIndex::new(weights).map_err(Error::wrap)?;
        Ok(distribution.sample(&mut self.rng) as u32)
    }

    /// Candle sorts all tokens, zeroes those after the one that crosses `p`, and draws from all. Zeros add
    /// nothing to a running sum, so drawing from the kept tokens alone, in their order, is the same draw.
    fn draw_top_p(&mut self, probabilities: &[f32], p: f32) -> Result<u32> {
        match nucleus(probabilities, p) {
            Some(ids) => {
                let kept: Vec<f32> = ids.iter().map(|&id| probabilities[id as usize]).collect();
                Ok(ids[self.draw(&kept)? as usize])
            }
            None => self.draw(probabilities),
        }
    }
}

/// The `k` most probable tokens in the order in which `select_nth_unstable_by` leaves them, which is the
/// order Candle draws in; `None` if all are.
fn top_k(probabilities: &[f32], k: usize) -> Option<(Vec<u32>, Vec<f32>)> {
    if k >= probabilities.len() {
        return None;
    }
    let mut ids: Vec<usize> = (0..probabilities.len()).collect();
    let (ids, _, _) =
        ids.select_nth_unstable_by(k, |&i, &j| probabilities[j].total_cmp(&probabilities[i]));
    let kept = ids.iter().map(|&id| probabilities[id]).collect();
    Some((ids.iter().map(|&id| id as u32).collect(), kept))
}
