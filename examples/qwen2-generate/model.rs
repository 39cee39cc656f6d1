//! A model of the Qwen family and its tokenizer, and what differs between them.

use crate::args::Args;
use crate::source::{Files, Source};
use anyhow::{Context, Error, Result, bail};
use candle_core::quantized::gguf_file;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{quantized_qwen2, quantized_qwen3, qwen2, qwen3};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

enum Weights {
    Qwen2(qwen2::ModelForCausalLM),
    Qwen3(qwen3::ModelForCausalLM),
    QuantizedQwen2(quantized_qwen2::ModelWeights),
    QuantizedQwen3(quantized_qwen3::ModelWeights),
}

/// How an instruct model wants to be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chat {
    None,
    /// `<|im_start|>user … <|im_end|>`
    Qwen,
    /// The same, with a switch for thinking.
    Qwen3,
    /// `<｜User｜> … <｜Assistant｜>`
    DeepSeek,
}

pub struct Model {
    weights: Weights,
    dtype: DType,
    context: usize,
    chat: Chat,
    ends: Vec<u32>,
}

impl Model {
    /// The logits after the last token of `input` (`[1, length]`): `[vocab]`.
    pub fn forward(&mut self, input: &Tensor, offset: usize) -> candle_core::Result<Tensor> {
        let logits = match &mut self.weights {
            Weights::Qwen2(model) => model.forward(input, offset)?.squeeze(1)?,
            Weights::Qwen3(model) => model.forward(input, offset)?.squeeze(1)?,
            Weights::QuantizedQwen2(model) => model.forward(input, offset)?,
            Weights::QuantizedQwen3(model) => model.forward(input, offset)?,
        };
        logits.squeeze(0)
    }

    /// Of the logits.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens of prompt and text together.
    pub fn context(&self) -> usize {
        self.context
    }

    pub fn ends_with(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Whether the model is asked, rather than made to continue a text.
    pub fn answers(&self, args: &Args) -> bool {
        self.chat != Chat::None && !args.no_chat_template
    }

    /// The prompt as the model wants it.
    pub fn prompt(&self, args: &Args) -> String {
        let prompt = args.prompt();
        let think = match (self.chat, args.thinking) {
            (Chat::Qwen3, true) => " /think",
            (Chat::Qwen3, false) => " /no_think",
            _ => "",
        };
        match self.chat {
            _ if !self.answers(args) => prompt.to_owned(),
            Chat::DeepSeek => format!("<｜User｜>{prompt}<｜Assistant｜>"),
            _ => format!("<|im_start|>user\n{prompt}{think}<|im_end|>\n<|im_start|>assistant\n"),
        }
    }
}

pub fn load(args: &Args, device: &Device) -> Result<(Model, Tokenizer)> {
    match Source::find(args)? {
        Source::Gguf(path) => {
            let loaded = load_gguf(&path, args, device);
            loaded.with_context(|| format!("cannot load {}", path.display()))
        }
        Source::Safetensors { name, files } => {
            let loaded = load_safetensors(&name, &files, args, device);
            loaded.with_context(|| format!("cannot load {name}"))
        }
    }
}

fn load_gguf(path: &Path, args: &Args, device: &Device) -> Result<(Model, Tokenizer)> {
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file).context("not a whole GGUF file")?;
    let text = |key: &str| {
        content
            .metadata
            .get(key)
            .and_then(|v| v.to_string().ok().cloned())
    };
    let architecture = text("general.architecture").unwrap_or_default();
    let number = |key: &str| content.metadata.get(key).and_then(|v| v.to_u32().ok());
    let Some(context) = number(&format!("{architecture}.context_length")) else {
        bail!("the file does not say how long its context is")
    };
    let tokenizer = match &args.tokenizer_file {
        Some(path) => tokenizer_from(path)?,
        None => Tokenizer::from_gguf(&content).context("the file's tokenizer")?,
    };
    let names = ["general.name", "general.basename", "general.finetune"]
        .map(|key| text(key).unwrap_or_default());
    let name = format!("{} {}", names.join(" "), path.display());
    let mut ends = ends(&tokenizer);
    ends.extend(number("tokenizer.ggml.eos_token_id"));
    let weights = match architecture.as_str() {
        "qwen2" => Weights::QuantizedQwen2(quantized_qwen2::ModelWeights::from_gguf(
            content, &mut file, device,
        )?),
        "qwen3" => Weights::QuantizedQwen3(quantized_qwen3::ModelWeights::from_gguf(
            content, &mut file, device,
        )?),
        other => bail!("it is a {other:?} model, not qwen2 or qwen3"),
    };
    let chat = chat(&architecture, &name, &tokenizer);
    Ok((
        Model {
            weights,
            dtype: DType::F32,
            context: context as usize,
            chat,
            ends,
        },
        tokenizer,
    ))
}

fn load_safetensors(
    name: &str,
    files: &Files,
    args: &Args,
    device: &Device,
) -> Result<(Model, Tokenizer)> {
    let config = std::fs::read(files.get("config.json")?)?;
    let config: Value = serde_json::from_slice(&config).context("config.json")?;
    let architecture = config["model_type"]
        .as_str()
        .unwrap_or("nameless")
        .to_owned();
    let context = config["max_position_embeddings"].as_u64();
    if !["qwen2", "qwen3"].contains(&architecture.as_str()) {
        bail!("it is a {architecture:?} model, not qwen2 or qwen3")
    }
    let tokenizer = match &args.tokenizer_file {
        Some(path) => tokenizer_from(path)?,
        None => tokenizer_from(&files.get("tokenizer.json")?)?,
    };
    let weights = files.weights()?;
    let dtype = if device.is_cpu() {
        DType::F32
    } else {
        DType::BF16
    };
    // SAFETY: the files are mapped read-only; nobody is expected to change a model while it runs.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weights, dtype, device) }
        .context("the weights")?;
    let weights = if architecture == "qwen2" {
        let config: qwen2::Config =
            serde_json::from_value(config.clone()).context("config.json")?;
        Weights::Qwen2(qwen2::ModelForCausalLM::new(&config, vb)?)
    } else {
        let config: qwen3::Config =
            serde_json::from_value(config.clone()).context("config.json")?;
        Weights::Qwen3(qwen3::ModelForCausalLM::new(&config, vb)?)
    };
    let mut ends = ends(&tokenizer);
    ends.extend(config["eos_token_id"].as_u64().map(|id| id as u32));
    let chat = chat(&architecture, name, &tokenizer);
    let context = context.context("config.json: no max_position_embeddings")? as usize;
    Ok((
        Model {
            weights,
            dtype,
            context,
            chat,
            ends,
        },
        tokenizer,
    ))
}

fn tokenizer_from(path: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_file(path).map_err(Error::msg);
    tokenizer.with_context(|| format!("tokenizer {}", path.display()))
}

/// The tokens that end a text.
fn ends(tokenizer: &Tokenizer) -> Vec<u32> {
    let names = ["<|endoftext|>", "<|im_end|>", "<｜end▁of▁sentence｜>"];
    names
        .iter()
        .filter_map(|name| tokenizer.token_to_id(name))
        .collect()
}

/// Base models carry chat templates too, so it is the name that tells who was taught to answer.
fn chat(architecture: &str, name: &str, tokenizer: &Tokenizer) -> Chat {
    let name = name.to_lowercase();
    let has = |token| tokenizer.token_to_id(token).is_some();
    let instruct = name.contains("instruct") || name.contains("chat");
    if has("<｜User｜>") {
        Chat::DeepSeek
    } else if !has("<|im_start|>") {
        Chat::None
    } else if architecture == "qwen3" && !name.contains("base") {
        Chat::Qwen3
    } else if instruct {
        Chat::Qwen
    } else {
        Chat::None
    }
}
