//! Who chooses the next token.

use crate::args::{Args, SamplerKind};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_sampler::{LogitsProcessor, Sampler, Sampling};
use candle_transformers::generation as candle;

pub enum Chooser {
    /// Candle's, to compare with.
    Candle(candle::LogitsProcessor),
    /// Ours in its place: same calls, same tokens.
    DropIn(LogitsProcessor),
    /// The batched sampler: for what Candle's API cannot say, and on a GPU, where its ids stay on the device.
    Batched(Sampler),
}

impl Chooser {
    pub fn new(args: &Args, device: &Device) -> Result<Self> {
        let ours = args.sampler == SamplerKind::CandleSampler;
        if args.min_p.is_some() || (ours && device.is_cuda()) {
            let mut sampler = Sampler::new(&[args.sampling()?])?;
            // The first call on a GPU compiles the kernels; the text should not wait for that.
            sampler.sample(&Tensor::zeros(1, DType::F32, device)?)?;
            sampler.set_position(0, 0);
            return Ok(Self::Batched(sampler));
        }
        // The two enums are two types with the same variants.
        macro_rules! sampling {
            ($enum:ty) => {{
                type S = $enum;
                let temperature = args.temperature;
                match (args.top_k, args.top_p()) {
                    _ if temperature < 1e-7 => S::ArgMax,
                    (None, None) => S::All { temperature },
                    (Some(k), None) => S::TopK { k, temperature },
                    (None, Some(p)) => S::TopP { p, temperature },
                    (Some(k), Some(p)) => S::TopKThenTopP { k, p, temperature },
                }
            }};
        }
        Ok(match args.sampler {
            SamplerKind::Candle => {
                let sampling = sampling!(candle::Sampling);
                Self::Candle(candle::LogitsProcessor::from_sampling(args.seed, sampling))
            }
            SamplerKind::CandleSampler => {
                let sampling = sampling!(Sampling);
                Self::DropIn(LogitsProcessor::from_sampling(args.seed, sampling))
            }
        })
    }

    /// The next token, u32 `[1]`, on the logits' device.
    pub fn choose(&mut self, logits: &Tensor) -> candle_core::Result<Tensor> {
        let id = match self {
            Self::Candle(processor) => processor.sample(logits)?,
            Self::DropIn(processor) => processor.sample(logits)?,
            Self::Batched(sampler) => return sampler.sample(logits),
        };
        Tensor::new(&[id], logits.device())
    }
}
