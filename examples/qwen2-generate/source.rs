//! Where a model is: a GGUF file, a directory, or the Hugging Face hub.

use crate::args::Args;
use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde_json::Value;
use std::path::PathBuf;

/// What `--model` calls a size, as Candle's `qwen` example does.
const SIZES: [(&str, &str); 14] = [
    ("0.5b", "Qwen/Qwen1.5-0.5B"),
    ("1.8b", "Qwen/Qwen1.5-1.8B"),
    ("4b", "Qwen/Qwen1.5-4B"),
    ("7b", "Qwen/Qwen1.5-7B"),
    ("14b", "Qwen/Qwen1.5-14B"),
    ("72b", "Qwen/Qwen1.5-72B"),
    ("2-0.5b", "Qwen/Qwen2-0.5B"),
    ("2-1.5b", "Qwen/Qwen2-1.5B"),
    ("2-7b", "Qwen/Qwen2-7B"),
    ("2-72b", "Qwen/Qwen2-72B"),
    ("3-0.6b", "Qwen/Qwen3-0.6B"),
    ("3-1.7b", "Qwen/Qwen3-1.7B"),
    ("3-4b", "Qwen/Qwen3-4B"),
    ("3-8b", "Qwen/Qwen3-8B"),
];

/// What `--which` calls a quantised model: its repository and file.
const QUANTIZED: [(&str, &str, &str); 5] = [
    (
        "0.5b",
        "Qwen/Qwen2-0.5B-Instruct-GGUF",
        "qwen2-0_5b-instruct-q4_0.gguf",
    ),
    (
        "1.5b",
        "Qwen/Qwen2-1.5B-Instruct-GGUF",
        "qwen2-1_5b-instruct-q4_0.gguf",
    ),
    (
        "7b",
        "Qwen/Qwen2-7B-Instruct-GGUF",
        "qwen2-7b-instruct-q4_0.gguf",
    ),
    (
        "72b",
        "Qwen/Qwen2-72B-Instruct-GGUF",
        "qwen2-72b-instruct-q4_0.gguf",
    ),
    (
        "deepseekr1-qwen7b",
        "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF",
        "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf",
    ),
];

pub enum Source {
    Gguf(PathBuf),
    /// `config.json`, `tokenizer.json` and safetensors.
    Safetensors {
        name: String,
        files: Files,
    },
}

impl Source {
    /// What the command line names.
    pub fn find(args: &Args) -> Result<Self> {
        let on_hub = |id: &str| -> Result<Self> {
            let (name, files) = (id.to_owned(), Files::on_hub(id, &args.revision)?);
            Ok(Self::Safetensors { name, files })
        };
        if let Some(id) = &args.model_id {
            return on_hub(id);
        }
        if let Some(which) = &args.which {
            let Some((_, id, file)) = QUANTIZED.iter().find(|(name, ..)| name == which) else {
                let names = QUANTIZED.map(|(name, ..)| name).join(", ");
                bail!("--which {which} is not one of {names}")
            };
            return Ok(Self::Gguf(Files::on_hub(id, &args.revision)?.get(file)?));
        }
        let Some(model) = &args.model else {
            return Self::tiny();
        };
        if let Some((_, id)) = SIZES.iter().find(|(name, _)| name == model) {
            return on_hub(id);
        }
        let path = PathBuf::from(model);
        if path.is_dir() {
            let (name, files) = (model.clone(), Files::Directory(path));
            return Ok(Self::Safetensors { name, files });
        }
        if !path.exists() {
            bail!("no such file: {model}")
        }
        Ok(Self::Gguf(path))
    }

    /// The model in this repository.
    fn tiny() -> Result<Self> {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-austen"));
        if !path.is_dir() {
            bail!(
                "the tiny model is in the repository, not in the published package: \
                 name one with --model FILE.gguf, --model DIRECTORY or --model-id NAME"
            )
        }
        eprintln!(
            "tiny-austen, the repository's own model of 3.4 million weights \
             (a real one: --model FILE.gguf, --model DIRECTORY or --model-id NAME)"
        );
        let (name, files) = ("tiny-austen".to_owned(), Files::Directory(path));
        Ok(Self::Safetensors { name, files })
    }
}

/// Where the files of a model come from.
pub enum Files {
    Directory(PathBuf),
    Hub(Box<ApiRepo>),
}

impl Files {
    fn on_hub(id: &str, revision: &str) -> Result<Self> {
        let api = ApiBuilder::from_env().with_progress(true).build();
        let api = api.context("cannot use the Hugging Face hub")?;
        let (id, revision) = (id.to_owned(), revision.to_owned());
        let repo = api.repo(Repo::with_revision(id, RepoType::Model, revision));
        Ok(Self::Hub(Box::new(repo)))
    }

    pub fn get(&self, file: &str) -> Result<PathBuf> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(file);
                if !path.exists() {
                    bail!("no such file: {}", path.display())
                }
                Ok(path)
            }
            Self::Hub(repo) => repo
                .get(file)
                .map_err(|e| anyhow!("cannot get {file} from the Hugging Face hub: {e}")),
        }
    }

    /// One file of weights, or the parts that an index names.
    pub fn weights(&self) -> Result<Vec<PathBuf>> {
        const INDEX: &str = "model.safetensors.index.json";
        let error = match self.get("model.safetensors") {
            Ok(single) => return Ok(vec![single]),
            Err(error) => error,
        };
        let Ok(index) = self.get(INDEX) else {
            return Err(error);
        };
        let index: Value = serde_json::from_slice(&std::fs::read(index)?).context(INDEX)?;
        let map = index["weight_map"].as_object();
        let map = map.with_context(|| format!("{INDEX}: no weight_map"))?;
        let mut parts: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        parts.sort_unstable();
        parts.dedup();
        parts.into_iter().map(|part| self.get(part)).collect()
    }
}
