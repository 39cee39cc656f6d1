//! The command line: the flags of Candle's `qwen` and `quantized-qwen2-instruct` examples, and ours.

use anyhow::{Result, bail};
use candle_sampler::{SamplingParams, TopKTopP};
use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// A GPU if there is one, else the CPU.
    Auto,
    Cpu,
    /// Model and sampling on an NVIDIA GPU (needs --features cuda).
    Cuda,
    /// Sampling on an AMD GPU, the model on the CPU: Candle has no AMD device (needs --features hip).
    Hip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SamplerKind {
    CandleSampler,
    /// candle-transformers' own LogitsProcessor, to compare with.
    Candle,
}

/// Generates text with a Qwen2, Qwen2.5 or Qwen3 model.
#[derive(Parser, Debug)]
#[command(version, allow_negative_numbers = true)]
pub struct Args {
    /// A GGUF file, a directory with safetensors, or a size on the Hugging Face hub (0.5b, 1.8b, 4b, 7b,
    /// 14b, 72b, 2-0.5b, 2-1.5b, 2-7b, 2-72b, 3-0.6b, 3-1.7b, 3-4b, 3-8b).
    #[arg(long, visible_alias = "weight-path", conflicts_with_all = ["model_id", "which"])]
    pub model: Option<String>,

    /// A quantised instruct model on the hub, by size: 0.5b, 1.5b, 7b, 72b, deepseekr1-qwen7b.
    #[arg(long, conflicts_with = "model_id")]
    pub which: Option<String>,

    /// A model on the Hugging Face hub, for example Qwen/Qwen2.5-0.5B-Instruct.
    #[arg(long)]
    pub model_id: Option<String>,

    /// The branch, tag or commit of the model on the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,

    /// A tokenizer.json, instead of the model's own.
    #[arg(long, visible_alias = "tokenizer")]
    pub tokenizer_file: Option<std::path::PathBuf>,

    /// What to continue, or to answer.
    #[arg(long)]
    prompt: Option<String>,

    /// How many tokens to generate at most [default: 1000; 150 for the tiny model].
    #[arg(long, short = 'n')]
    sample_len: Option<usize>,

    /// Divides the logits; 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,

    /// Keep the smallest set of most probable tokens with this mass [default for the tiny model: 0.9].
    #[arg(long)]
    top_p: Option<f64>,

    /// Keep this many most probable tokens.
    #[arg(long)]
    pub top_k: Option<usize>,

    /// Keep tokens at least this many times as probable as the most probable one.
    #[arg(long)]
    pub min_p: Option<f64>,

    /// The same seed and flags give the same text.
    #[arg(long, default_value_t = 299792458)]
    pub seed: u64,

    /// Divides the logits of recent tokens; 1 is no penalty.
    #[arg(long, default_value_t = 1.1)]
    pub repeat_penalty: f32,

    /// How many recent tokens the penalty looks at.
    #[arg(long, default_value_t = 64)]
    pub repeat_last_n: usize,

    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceKind,

    /// The same as --device cpu.
    #[arg(long, conflicts_with = "device")]
    cpu: bool,

    /// Who chooses the next token.
    #[arg(long, value_enum, default_value = "candle-sampler")]
    pub sampler: SamplerKind,

    /// Give an instruct model the prompt as it is, without its chat template.
    #[arg(long)]
    pub no_chat_template: bool,

    /// Let a Qwen3 model think before it answers.
    #[arg(long)]
    pub thinking: bool,

    /// Process the prompt token by token.
    #[arg(long)]
    pub split_prompt: bool,

    /// End with the spread of the times, not only their means.
    #[arg(long)]
    pub stats: bool,

    /// Write a trace-timestamp.json file.
    #[arg(long)]
    pub tracing: bool,
}

impl Args {
    pub fn device(&self) -> DeviceKind {
        if self.cpu {
            DeviceKind::Cpu
        } else {
            self.device
        }
    }

    /// Whether no model is named, and the repository's tiny one is used.
    pub fn tiny(&self) -> bool {
        self.model.is_none() && self.model_id.is_none() && self.which.is_none()
    }

    pub fn prompt(&self) -> &str {
        let default = if self.tiny() {
            "As soon as breakfast was over,"
        } else {
            "Write a function to count prime numbers up to N. "
        };
        self.prompt.as_deref().unwrap_or(default)
    }

    pub fn sample_len(&self) -> usize {
        self.sample_len
            .unwrap_or(if self.tiny() { 150 } else { 1000 })
    }

    pub fn top_p(&self) -> Option<f64> {
        let unfiltered = self.top_k.is_none() && self.min_p.is_none();
        self.top_p.or((self.tiny() && unfiltered).then_some(0.9))
    }

    /// The sampling flags, as candle-sampler's parameters: with Candle's meaning of top-k and top-p.
    pub fn sampling(&self) -> Result<SamplingParams> {
        if self.sampler == SamplerKind::Candle && self.min_p.is_some() {
            bail!("--min-p needs --sampler candle-sampler: Candle's LogitsProcessor has no min-p")
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite()) {
            bail!(
                "--repeat-penalty = {} is out of range: above 0",
                self.repeat_penalty
            )
        }
        let mut params = SamplingParams::new()
            .temperature(self.temperature)
            .order(TopKTopP::Joint)
            .seed(self.seed);
        if let Some(k) = self.top_k {
            params = params.top_k(k);
        }
        if let Some(p) = self.top_p() {
            params = params.top_p(p);
        }
        if let Some(p) = self.min_p {
            params = params.min_p(p);
        }
        Ok(params)
    }
}
