//! The generation loop, and what it took.

use crate::args::Args;
use crate::choose::Chooser;
use crate::model::Model;
use anyhow::{Error, Result, bail};
use candle_core::{Device, Tensor};
use candle_sampler::INVALID_TOKEN;
use candle_transformers::utils::apply_repeat_penalty;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokenizers::Tokenizer;

/// Writes text as it comes. A reader that has gone away (`| head`) ends the generation, not in an error.
fn show(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// Continues `prompt` until the model ends, the limit or the context is reached, or `stop` is set.
pub fn generate(
    args: &Args,
    model: &mut Model,
    tokenizer: &Tokenizer,
    chooser: &mut Chooser,
    prompt: &str,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Summary> {
    let encoded = tokenizer.encode(prompt, true).map_err(Error::msg)?;
    let mut tokens = encoded.get_ids().to_vec();
    let context = model.context();
    if tokens.is_empty() {
        bail!("the prompt is empty")
    }
    if tokens.len() >= context {
        bail!(
            "the prompt has {} tokens, the model's context {context}",
            tokens.len()
        )
    }
    let limit = args.sample_len().min(context - tokens.len());
    let mut summary = Summary {
        prompt_tokens: tokens.len(),
        ..Summary::default()
    };
    let mut text = tokenizer.decode_stream(true);
    if !model.answers(args) && !show(prompt)? {
        return Ok(summary);
    }

    let mut done = 0; // tokens that the model has seen
    let mut drawn: Option<Tensor> = None; // the last one drawn, where the model will look for it
    while summary.sampling.len() < limit && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let until = if args.split_prompt {
            done + 1
        } else {
            tokens.len()
        };
        let input = match drawn.take() {
            Some(id) => id,
            None => Tensor::new(&tokens[done..until], device)?,
        };
        let input = input.unsqueeze(0)?;
        let logits = model.forward(&input, done)?;
        device.synchronize()?;
        done = until;
        let forward = start.elapsed();
        if done <= summary.prompt_tokens {
            summary.prompt_time += forward;
            if done < tokens.len() {
                continue;
            }
        } else {
            summary.forward.push(forward);
        }

        let logits = if args.repeat_penalty == 1. {
            logits
        } else {
            let recent = &tokens[tokens.len().saturating_sub(args.repeat_last_n)..];
            penalize(&logits, args.repeat_penalty, recent)?
        };
        let start = Instant::now();
        let id = chooser.choose(&logits)?;
        let token = id.to_vec1::<u32>()?[0];
        summary.sampling.push(start.elapsed());
        if token == INVALID_TOKEN {
            bail!("the model's logits cannot be sampled: NaN, or nothing but -inf")
        }
        drawn = Some(id);
        tokens.push(token);
        if model.ends_with(token) {
            break;
        }
        if let Some(piece) = text.step(token).map_err(Error::msg)?
            && !show(&piece)?
        {
            break;
        }
    }
    show("\n")?;
    summary.full = summary.sampling.len() == limit && limit < args.sample_len();
    Ok(summary)
}

/// Candle's repeat penalty; on a GPU without a trip of the logits to the host, which may change their last bits.
fn penalize(logits: &Tensor, penalty: f32, recent: &[u32]) -> candle_core::Result<Tensor> {
    if logits.device().is_cpu() {
        return apply_repeat_penalty(logits, penalty, recent);
    }
    let once: BTreeSet<u32> = recent.iter().copied().collect();
    let ids = Tensor::from_iter(once, logits.device())?;
    let values = logits.index_select(&ids, 0)?;
    let (divided, multiplied) = (
        (&values / f64::from(penalty))?,
        (&values * f64::from(penalty))?,
    );
    let penalized = values.ge(0f64)?.where_cond(&divided, &multiplied)?;
    logits.index_add(&ids, &(penalized - values)?, 0)
}

/// What a run took.
#[derive(Default)]
pub struct Summary {
    prompt_tokens: usize,
    prompt_time: Duration,
    /// Of each token but the first, which comes out of the prompt's pass.
    forward: Vec<Duration>,
    sampling: Vec<Duration>,
    /// Whether the context ended the text.
    full: bool,
}

impl Summary {
    /// To the standard error, so that the standard output is the text alone.
    pub fn print(&self, spread: bool) {
        if self.full {
            eprintln!("the model's context is full");
        }
        let rate = |n: usize, t: Duration| n as f64 / t.as_secs_f64().max(1e-9);
        eprintln!(
            "{} prompt tokens, {:.1} tokens/s",
            self.prompt_tokens,
            rate(self.prompt_tokens, self.prompt_time)
        );
        let sum = |times: &[Duration]| times.iter().sum::<Duration>();
        let (forward, sampling) = (sum(&self.forward), sum(&self.sampling));
        // A rate for what came after the prompt: as many forward passes as draws.
        let steps = self.forward.len();
        let later = sampling.saturating_sub(self.sampling.first().copied().unwrap_or_default());
        let mean = |total: Duration, n: usize| total.as_secs_f64() * 1e3 / n.max(1) as f64;
        let n = self.sampling.len();
        eprintln!(
            "{n} tokens generated, {:.1} tokens/s; per token {:.3} ms forward, {:.3} ms sampling",
            rate(steps, forward + later),
            mean(forward, steps),
            mean(sampling, n),
        );
        if spread {
            for (what, times) in [("forward", &self.forward), ("sampling", &self.sampling)] {
                let mut times = times.clone();
                times.sort_unstable();
                let at = |share: f64| {
                    let i = (times.len() as f64 * share) as usize;
                    times
                        .get(i.min(times.len().saturating_sub(1)))
                        .map_or(0.0, |t| t.as_secs_f64() * 1e3)
                };
                eprintln!(
                    "{what}: median {:.3} ms, 90 % {:.3} ms, 99 % {:.3} ms, slowest {:.3} ms",
                    at(0.5),
                    at(0.9),
                    at(0.99),
                    at(1.0)
                );
            }
        }
    }
}
