//! What can be wrong with a parameter or with a row of logits.
//!
//! Public functions return [`candle_core::Result`]; these travel inside [`candle_core::Error`] and can be
//! taken out again with [`candle_core::Error::downcast_ref`](candle_core::Error).

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} cannot be sampled: {reason}")]
pub struct UnsampleableRow {
    /// The row's index in the batch.
    pub row: usize,
    /// What is wrong with it.
    pub reason: RowError,
}
