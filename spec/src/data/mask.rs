//! Which tokens of a conversation carry a label: what the assistant wrote, and the token that ends its turn.
//!
//! The conversation is rendered and tokenized once; labels are found by character offsets. They run from the end of
//! the generation prompt to the end of the turn, its end-of-turn token included, white space after it not.

use super::{
    formats::Chat,
    template::TemplateError,
    tokenize::{Tokenizer, TokenizerError},
};

/// Characters shown of each text where a template is not prefix-stable.
const SHOWN: usize = 24;

/// Why a conversation cannot be made tokens and labels.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// The template fails.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The beginning of a conversation is rendered differently alone and in the whole.
    #[error(
        "the base's chat template is not prefix-stable: up to message {message} it gives …{alone:?} alone, but \
         …{whole:?} within the whole conversation; labels cannot be found, so use another template or one turn a line"
    )]
    NotPrefixStable {
        /// The assistant's message, from 1.
        message: usize,
        /// What follows the common beginning, rendered alone.
        alone: String,
        /// What follows it in the whole.
        whole: String,
    },
}

/// A conversation as tokens, and for each token whether it carries a label.
///
/// # Errors
/// The template or the tokenizer fails, or the template is not prefix-stable.
pub fn encode(tokenizer: &Tokenizer, chat: &Chat) -> Result<(Vec<u32>, Vec<bool>), MaskError> {
    let template = tokenizer.template().ok_or(TemplateError::Missing)?;
    let whole = template.render(chat, chat.messages.len(), false)?;
    let mut spans = Vec::new();
    for (i, message) in chat.messages.iter().enumerate() {
        if chat.learned[i] && message.get("role").and_then(|role| role.as_str()) == Some("assistant") {
            let before = template.render(chat, i, true)?;
            let after = template.render(chat, i + 1, false)?;
            prefix(&before, &whole, i + 1)?;
            prefix(&after, &whole, i + 1)?;
            spans.push((before.chars().count(), python_rstrip(&after).chars().count()));
        }
    }
    let encoded = tokenizer.encode(&whole)?;
    let labels = encoded
        .offsets
        .iter()
        .map(|(first, _)| spans.iter().any(|(start, end)| start <= first && first < end))
        .collect();
    Ok((encoded.tokens, labels))
}

fn prefix(part: &str, whole: &str, message: usize) -> Result<(), MaskError> {
    if whole.starts_with(part) {
        return Ok(());
    }
    let common = part.chars().zip(whole.chars()).take_while(|(a, b)| a == b).count();
    let rest = |text: &str| text.chars().skip(common).take(SHOWN).collect();
    Err(MaskError::NotPrefixStable { message, alone: rest(part), whole: rest(whole) })
}

/// Python's `str.rstrip()`: also the four separators that Unicode does not count as white space.
pub(super) fn python_rstrip(text: &str) -> &str {
    text.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}
