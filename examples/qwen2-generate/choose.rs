//! Who chooses the next token.

use crate::args::{Args, SamplerKind};
use anyhow::Result;
use candle_core::Tensor;
use candle_sampler::{LogitsProcessor, Sampler, Sampling};
use candle_transformers::generation as candle;

pub enum Chooser {
    /// Candle's, to compare with.
    Candle(candle::LogitsProcessor),
    /// Ours in its place: same calls, same tokens.
    DropIn(LogitsProcessor),
    /// The batched sampler, for what Candle's API cannot say.
    Batched(Sampler),
}

impl Chooser {
    pub fn new(args: &Args) -> Result<Self> {
        if args.min_p.is_some() {
            return Ok(Self::Batched(Sampler::new(&[args.sampling()?])?));
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

    pub fn choose(&mut self, logits: &Tensor) -> candle_core::Result<u32> {
        match self {
            Self::Candle(processor) => processor.sample(logits),
            Self::DropIn(processor) => processor.sample(logits),
            Self::Batched(sampler) => Ok(sampler.sample_to_vec(logits)?[0]),
        }
    }
}
