//! One example as the trainer gets it: tokens, and what is to be predicted of them.

/// One example, cut to the job's max_length.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// At least 2 tokens where tokens are predicted, else at least 1.
    pub tokens: Vec<u32>,
    /// Where the second text of a pair begins: tokens from there on have token type 1.
    pub second: Option<usize>,
    /// What is to be predicted.
    pub target: Target,
}

/// What is to be predicted of an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Whether token i is to be predicted from what stands before it; as long as the tokens. The first never is, at
    /// least one is.
    Tokens(Vec<bool>),
    /// The class of the whole, by its place among the data set's labels.
    Class(u32),
    /// A number that belongs to the whole.
    Score(f32),
}

impl Example {
    /// A text of which the tokens with a label are to be predicted.
    pub fn causal(tokens: Vec<u32>, labels: Vec<bool>) -> Self {
        Self { tokens, second: None, target: Target::Tokens(labels) }
    }

    /// Whether token i is to be predicted, for each token; empty where not tokens, but the whole is.
    pub fn labels(&self) -> &[bool] {
        match &self.target {
            Target::Tokens(labels) => labels,
            Target::Class(_) | Target::Score(_) => &[],
        }
    }

    /// What the example counts in a step's loss: its tokens with a label, or 1 where the whole is to be predicted.
    pub fn labelled(&self) -> usize {
        match &self.target {
            Target::Tokens(labels) => labels.iter().filter(|label| **label).count(),
            Target::Class(_) | Target::Score(_) => 1,
        }
    }
}
