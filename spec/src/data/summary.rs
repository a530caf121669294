//! How a data set was read, in figures.

use lorafleet_proto::v1 as pb;

use super::{
    container::FileKind,
    example::{Example, Target},
    formats::Format,
    labels::Labels,
};

/// How a data set was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The recognized format.
    pub format: Format,
    /// What its files are, each kind once: "JSON lines in gzip".
    pub container: String,
    /// Examples used; of raw text, chunks.
    pub examples: u64,
    /// Examples cut off at max_length.
    pub truncated: u64,
    /// Rows left out because no token of theirs carries a label within max_length.
    pub skipped: u64,
    /// Tokens in the used examples.
    pub tokens: u64,
    /// Tokens that carry a label; of texts with a label, as many as there are examples.
    pub labelled_tokens: u64,
    /// Tokens of the longest used example.
    pub longest: u64,
    /// Classes with the number of their examples, in the order of their numbers.
    pub labels: Vec<(String, u64)>,
    /// The lowest and highest score, where scores are learned.
    pub scores: Option<(f32, f32)>,
}

/// What a reader counts that the examples do not tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub truncated: u64,
    pub skipped: u64,
}

impl Summary {
    pub(super) fn new(
        format: Format,
        kinds: &[FileKind],
        counts: Counts,
        examples: &[Example],
        labels: Option<&Labels>,
    ) -> Self {
        let mut names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        names.dedup();
        let lengths = || examples.iter().map(|example| example.tokens.len() as u64);
        let mut classes: Vec<(String, u64)> =
            labels.map_or(&[][..], Labels::names).iter().map(|name| (name.clone(), 0)).collect();
        let mut scores: Option<(f32, f32)> = None;
        for example in examples {
            match example.target {
                Target::Class(class) => classes[class as usize].1 += 1,
                Target::Score(score) => {
                    let (low, high) = scores.unwrap_or((score, score));
                    scores = Some((low.min(score), high.max(score)));
                }
                Target::Tokens(_) => {}
            }
        }
        Self {
            format,
            container: names.join(" and "),
            examples: examples.len() as u64,
            truncated: counts.truncated,
            skipped: counts.skipped,
            tokens: lengths().sum(),
            labelled_tokens: examples.iter().map(|example| example.labelled() as u64).sum(),
            longest: lengths().max().unwrap_or_default(),
            labels: classes,
            scores,
        }
    }
}

impl From<&Summary> for pb::DataSummary {
    fn from(summary: &Summary) -> Self {
        Self {
            format: summary.format.name().to_owned(),
            examples: summary.examples,
            truncated: summary.truncated,
            skipped: summary.skipped,
            tokens: summary.tokens,
            labelled_tokens: summary.labelled_tokens,
            container: summary.container.clone(),
            labels: summary
                .labels
                .iter()
                .map(|(name, examples)| pb::LabelCount { name: name.clone(), examples: *examples })
                .collect(),
        }
    }
}
