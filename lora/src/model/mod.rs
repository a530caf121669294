//! The model: one transformer, described by data, with hand-written forward and backward passes.
//!
//! A block is two parts, attention and MLP. Each is some linear layers ([`projection`]) within a [`frame`] of norms and
//! the residual sum. Parameters are named by their place among the model's ([`parameters`]); a pass looks up there what
//! the adapter has in their stead.

mod attention_part;
mod batch;
mod block;
mod cache;
mod classifier;
mod columns;
mod embed;
mod frame;
mod gradients;
mod inference;
mod known;
mod lm_head;
mod load;
mod mlp_part;
mod parameters;
mod pass;
mod projection;
mod session;
#[cfg(test)]
mod tests;
mod transformer;
mod until;
pub(crate) mod weights;

use std::path::PathBuf;

pub use batch::PackedBatch;
pub use gradients::Keep;
pub use session::Session;
pub use transformer::{LossSum, Transformer};

pub use crate::ops::OpError;

/// Why a model cannot be loaded or computed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the base cannot be opened.
    #[error("{} cannot be opened: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tensor of the base cannot be read.
    #[error("the tensor {name} {message}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// An example of a batch is not usable.
    #[error("example {index} of the batch: {message}")]
    Example {
        /// Its place in the batch.
        index: usize,
        /// What is wrong.
        message: String,
    },
    /// A token is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocabulary}: the tokenizer is another model's")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A sequence is longer than the model's positions.
    #[error(
        "a sequence of {tokens} tokens is longer than the model's {positions} positions; lower max_length"
    )]
    TooLong {
        /// Its length.
        tokens: usize,
        /// What the model allows.
        positions: usize,
    },
    /// The adapter does not fit the model.
    #[error("the adapter of {module} {message}")]
    Adapter {
        /// The module.
        module: String,
        /// What does not fit.
        message: String,
    },
    /// The model cannot do what is asked.
    #[error("{0}")]
    Task(&'static str),
    /// An operation failed.
    #[error(transparent)]
    Op(#[from] OpError),
}
