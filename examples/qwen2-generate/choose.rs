//! Who chooses the next token.

use crate::args::{Args, DeviceKind, SamplerKind};
use crate::common::one_line;
use anyhow::{Context, Result, bail};
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
        match args.device() {
            DeviceKind::Hip if !ours => {
                bail!("--device hip needs --sampler candle-sampler: Candle has no AMD backend")
            }
            DeviceKind::Hip => return Self::on_amd(args).context("--device hip"),
            DeviceKind::Auto if ours && device.is_cpu() && cfg!(feature = "hip") => {
                match Self::on_amd(args) {
                    Ok(chooser) => return Ok(chooser),
                    Err(error) => eprintln!("--device auto takes the CPU: {}", one_line(&error)),
                }
            }
            _ => (),
        }
        if args.min_p.is_some() || (ours && device.is_cuda()) {
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

    /// On the first AMD GPU, to which the CPU's logits go.
    #[cfg(feature = "hip")]
    fn on_amd(args: &Args) -> Result<Self> {
        let gpu = candle_sampler::hip::HipDevice::new(0)?;
        let sampler = Sampler::new(&[args.sampling()?])?.on_hip(&gpu)?;
        let mut chooser = Self::Batched(sampler);
        // At once: what goes wrong shows while `auto` can still choose the CPU.
        chooser.warm_up(DType::F32, &Device::Cpu)?;
        Ok(chooser)
    }

    #[cfg(not(feature = "hip"))]
    fn on_amd(_: &Args) -> Result<Self> {
        bail!("this build knows no AMD GPU (add --features hip to cargo's)")
    }

    /// The first draw on a GPU from logits of a dtype compiles the kernels for it; the text should not wait for that.
    pub fn warm_up(&mut self, dtype: DType, device: &Device) -> Result<()> {
        if let Self::Batched(sampler) = self {
            sampler.sample(&Tensor::zeros(1, dtype, device)?)?;
            sampler.set_position(0, 0);
        }
        Ok(())
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
