//! Sampling parameters: what a user sets, checked once, and what the backends read.

use crate::definition::weight::Scale;
use crate::error::ParamError;

/// What top-p means for a row that also has top-k.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopKTopP {
    /// Top-k first; its survivors are renormalised, and `p` is a share of *their* mass.
    /// What Hugging Face, vLLM and llama.cpp do.
    #[default]
    Renormalised,
    /// Both filters look at the full distribution, and a token must pass both.
    /// What Candle's `Sampling::TopKThenTopP` and FlashInfer's "joint" do.
    Joint,
}

/// How one row's next token is chosen.
///
/// The default draws from the plain softmax. Every filter narrows the set of candidates; the token is
/// drawn from what passes all of them, with probabilities in proportion to the softmax.
///
/// ```
/// use candle_sampler::SamplingParams;
///
/// let chat = SamplingParams::new().temperature(0.7).top_k(20).top_p(0.8).seed(42);
/// let greedy = SamplingParams::new().temperature(0.0);
/// assert!(chat.validate().is_ok() && greedy.validate().is_ok());
///
/// let wrong = SamplingParams::new().top_p(1.5).validate().unwrap_err();
/// assert_eq!(wrong.to_string(), "top_p = 1.5 is out of range: above 0, at most 1 (1 keeps every token)");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    order: TopKTopP,
    seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            order: TopKTopP::default(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Temperature 1, no filter, seed 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Divides the logits. Below 1e-7 (0 included) the largest logit wins, the lower id among equals.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Keeps the `k` first tokens in the order (larger logit, then lower id): exactly `k`, ties or not.
    /// `k` of the vocabulary's size or more keeps all.
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Keeps the smallest set of first tokens whose mass reaches `p`; the token that crosses `p` is kept.
    pub fn top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Keeps tokens at least `min_p` times as probable as the most probable one.
    pub fn min_p(mut self, min_p: f64) -> Self {
        self.min_p = Some(min_p);
        self
    }

    /// What top-p means beside top-k.
    pub fn order(mut self, order: TopKTopP) -> Self {
        self.order = order;
        self
    }

    /// The key of the row's random numbers. Rows with equal seeds, positions and logits draw equal
    /// tokens: give each sequence a seed of its own.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks every field; the error names the field, its value and the range.
    pub fn validate(&self) -> Result<(), ParamError> {
        fn check(
            ok: bool,
            field: &'static str,
            value: impl std::fmt::Display,
            range: &'static str,
        ) -> Result<(), ParamError> {
            if ok {
                return Ok(());
            }
            let value = value.to_string();
            Err(ParamError {
                field,
                value,
                range,
            })
        }
        let t = self.temperature;
        check(
            (0.0..=MAX_TEMPERATURE).contains(&t),
            "temperature",
            t,
            "0 (greedy) to 1e6",
        )?;
        if let Some(k) = self.top_k {
            check(
                k > 0,
                "top_k",
                k,
                "1 or more (leave it unset to keep every token)",
            )?;
        }
        if let Some(p) = self.top_p {
            check(
                p > 0.0 && p <= 1.0,
                "top_p",
                p,
                "above 0, at most 1 (1 keeps every token)",
            )?;
        }
        if let Some(p) = self.min_p {
            check(
                (0.0..=1.0).contains(&p),
                "min_p",
                p,
                "0 (keeps every token) to 1",
            )?;
        }
        Ok(())
    }

    /// Validated and brought into the form that the backends read.
    pub(crate) fn resolve(&self) -> Result<RowParams, ParamError> {
        self.validate()?;
        let greedy = self.temperature < GREEDY_BELOW;
        let temperature = if greedy { 1.0 } else { self.temperature };
        Ok(RowParams {
            greedy,
            scale: (std::f64::consts::LOG2_E / temperature) as f32,
            inverse: (temperature * std::f64::consts::LN_2) as f32,
            min_p_offset: match self.min_p {
                Some(p) => (temperature * p.ln()) as f32,
                None => f32::NEG_INFINITY,
            },
            // A vocabulary holds at most 2²⁴ tokens, so a larger k filters nothing.
            top_k: self
                .top_k
                .map_or(u32::MAX, |k| k.min(u32::MAX as usize) as u32),
            top_p: match self.top_p {
                Some(p) if p < 1.0 => Some(((p * 2f64.powi(64)) as u64).max(1)),
                _ => None,
            },
            order: self.order,
            seed: self.seed,
        })
    }
}

/// Below this, Candle's `LogitsProcessor::new` is greedy, and so are we.
const GREEDY_BELOW: f64 = 1e-7;

/// Far beyond any use: at a million, e⁻¹ takes a million nats.
const MAX_TEMPERATURE: f64 = 1e6;

/// One row's parameters as the backends read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowParams {
    pub(crate) greedy: bool,
    /// log2(e) / T
    pub(crate) scale: f32,
    /// T · ln(2)
    pub(crate) inverse: f32,
    /// T · ln(min_p); −inf keeps every token.
    pub(crate) min_p_offset: f32,
    pub(crate) top_k: u32,
    /// p · 2⁶⁴, or none.
    pub(crate) top_p: Option<u64>,
    pub(crate) order: TopKTopP,
    pub(crate) seed: u64,
}

impl RowParams {
    pub(crate) fn scale(&self) -> Scale {
        Scale {
            base: 0.0,
            scale: self.scale,
            inverse: self.inverse,
        }
    }

    /// Whether there is any filter on a row of `vocab` tokens.
    pub(crate) fn filters(&self, vocab: usize) -> bool {
        self.top_k_of(vocab).is_some()
            || self.top_p.is_some()
            || self.min_p_offset > f32::NEG_INFINITY
    }

    /// The limit on the number of tokens, where it removes any of `vocab`.
    pub(crate) fn top_k_of(&self, vocab: usize) -> Option<u32> {
        (!self.greedy && (self.top_k as usize) < vocab).then_some(self.top_k)
    }

    /// Whether top-p is a share of the top k's mass instead of the whole row's.
    pub(crate) fn is_renormalised(&self, vocab: usize) -> bool {
        self.top_k_of(vocab).is_some()
            && self.top_p.is_some()
            && self.order == TopKTopP::Renormalised
    }

    /// Whether tokens are drawn from the whole row first, in the hope that one is kept.
    pub(crate) fn tries(&self, vocab: usize) -> bool {
        match self.top_k_of(vocab) {
            Some(k) => k as usize * 8 > vocab && !self.is_renormalised(vocab),
            None => !self.greedy && self.top_p.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(p: SamplingParams) -> String {
        p.validate().unwrap_err().to_string()
    }

    #[test]
    fn mistakes_name_the_field_the_value_and_the_range() {
        let p = SamplingParams::new;
        assert_eq!(
            message(p().temperature(-1.0)),
            "temperature = -1 is out of range: 0 (greedy) to 1e6"
        );
        assert!(message(p().temperature(f64::NAN)).starts_with("temperature = NaN"));
        assert!(message(p().temperature(f64::INFINITY)).starts_with("temperature = inf"));
        assert!(message(p().top_k(0)).starts_with("top_k = 0 is out of range: 1 or more"));
        for bad in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(message(p().top_p(bad)).starts_with("top_p = "), "{bad}");
        }
        for bad in [-0.1, 1.01, f64::NAN] {
            assert!(message(p().min_p(bad)).starts_with("min_p = "), "{bad}");
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        let p = SamplingParams::new;
        for ok in [
            p().temperature(0.0),
            p().temperature(1e6),
            p().top_k(1),
            p().top_k(usize::MAX),
            p().top_p(f64::MIN_POSITIVE),
            p().top_p(1.0),
            p().min_p(0.0),
            p().min_p(1.0),
        ] {
            assert_eq!(ok.validate(), Ok(()), "{ok:?}");
        }
    }

    #[test]
    fn resolved_filters_are_off_where_they_remove_nothing() {
        let p = SamplingParams::new()
            .top_p(1.0)
            .top_k(10)
            .min_p(0.0)
            .resolve()
            .unwrap();
        assert_eq!(p.top_p, None);
        assert_eq!(p.top_k_of(10), None);
        assert_eq!(p.top_k_of(11), Some(10));
        assert_eq!(p.min_p_offset, f32::NEG_INFINITY);
        assert_eq!(
            SamplingParams::new().top_p(0.5).resolve().unwrap().top_p,
            Some(1 << 63)
        );
        assert_eq!(
            SamplingParams::new().top_p(1e-300).resolve().unwrap().top_p,
            Some(1)
        );
    }

    #[test]
    fn rows_that_are_tried() {
        let p = SamplingParams::new;
        for (params, tried) in [
            (p(), false),
            (p().temperature(0.0).top_p(0.9), false),
            (p().temperature(0.0).top_k(20_000), false),
            (p().top_p(0.9), true),
            (p().top_p(1.0), false),
            (p().min_p(0.05), false),
            (p().min_p(0.05).top_p(0.9), true),
            (p().top_k(19_000), false),
            (p().top_k(19_001), true),
            (p().top_k(19_001).min_p(0.05), true),
            (p().top_k(19_001).top_p(0.9), false),
            (p().top_k(19_001).top_p(1.0), true),
            (p().top_k(19_001).top_p(0.9).order(TopKTopP::Joint), true),
            (p().top_k(19_000).top_p(0.9).order(TopKTopP::Joint), false),
            (p().top_k(152_000).top_p(0.9), true), // keeps all, so top-p is alone
        ] {
            let tries = params.resolve().unwrap().tries(152_000);
            assert_eq!(tries, tried, "{params:?}");
        }
    }
}
