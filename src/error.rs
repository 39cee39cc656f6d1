//! What can be wrong with a parameter or with a row of logits.
//!
//! Public functions return [`candle_core::Result`], and there these are the text of a [`candle_core::Error`]: Candle keeps of
//! what it wraps no more than that. Who must tell cases apart has [`crate::SamplingParams::validate`], which returns a
//! [`ParamError`] itself, and [`crate::Sampler::sample`], which marks rows with [`crate::INVALID_TOKEN`].

/// A sampling parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} = {value} is out of range: {range}")]
pub struct ParamError {
    /// The name of the field in [`crate::SamplingParams`].
    pub field: &'static str,
    /// The value it was given.
    pub value: String,
    /// The values it may have.
    pub range: &'static str,
}

/// Why no token can be drawn from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// At least one logit is NaN.
    #[error("the logits contain NaN")]
    Nan,
    /// Every token is masked out.
    #[error("all logits are -inf")]
    AllMasked,
}

/// A row that cannot be sampled, reported by the synchronous calls.
///
/// It is the text of their [`candle_core::Error`], in the first line (a backtrace may follow), and cannot be taken out of it:
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_sampler::{INVALID_TOKEN, RowError, Sampler, SamplingParams, UnsampleableRow};
///
/// let logits = Tensor::new(&[[0f32, 1.0], [0.0, f32::NAN]], &Device::Cpu)?;
/// let mut sampler = Sampler::new(&[SamplingParams::new(), SamplingParams::new()])?;
/// let error = sampler.sample_to_vec(&logits).unwrap_err().to_string();
/// let expected = UnsampleableRow { row: 1, reason: RowError::Nan };
/// assert_eq!(error.lines().next(), Some("row 1 cannot be sampled: the logits contain NaN"));
/// assert_eq!(error.lines().next(), Some(&*expected.to_string()));
///
/// // Without looking at a text:
/// assert_eq!(sampler.sample(&logits)?.to_vec1::<u32>()?[1], INVALID_TOKEN);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} cannot be sampled: {reason}")]
pub struct UnsampleableRow {
    /// The row's index in the batch.
    pub row: usize,
    /// What is wrong with it.
    pub reason: RowError,
}
