//! A base's tokenizer with its chat template: texts and conversations to tokens, and back.

use std::{collections::BTreeSet, fmt, fs, path::Path};

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor as _, TruncationParams, utils::truncation::truncate_encodings};

use super::{
    formats::Chat,
    mask::{self, MaskError},
    template::{self, ChatTemplate, TemplateError},
    tokenizer_files,
};

/// What is wrong with a base's tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// tokenizer.json is missing or damaged.
    #[error("tokenizer.json: {0}")]
    File(String),
    /// The chat template is missing or not valid.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A text cannot be made tokens, or tokens a text.
    #[error("the tokenizer fails: {0}")]
    Run(String),
}

/// A base's tokenizer with its chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    end: Option<u32>,
    stop: Vec<u32>,
    vocab: Option<usize>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("stop", &self.stop)
            .field("vocab", &self.vocab)
            .finish_non_exhaustive()
    }
}

/// A text as tokens, each with where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For each token, its first character in the text and the first after it (characters, not bytes).
    pub offsets: Vec<(usize, usize)>,
}

/// One text or two, as a classifier reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// All tokens, special ones too.
    pub tokens: Vec<u32>,
    /// The first token of the second text.
    pub second: Option<usize>,
    /// Whether tokens had to be left out.
    pub cut: bool,
}

impl Tokenizer {
    /// Loads a base's tokenizer from its folder: tokenizer.json, the chat template where there is one, and the tokens that end a turn.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn load(base_dir: &Path) -> Result<Self, TokenizerError> {
        let mut inner = tokenizer_files::open(base_dir)?;
        inner.with_truncation(None).map_err(|error| TokenizerError::Run(error.to_string()))?;
        inner.with_padding(None);
        let special = template::special_tokens(base_dir)?;
        let named_end =
            special.get("eos_token").and_then(Value::as_str).and_then(|token| inner.token_to_id(token));
        let template = ChatTemplate::load(base_dir, special)?;
        let vocab = read_json(base_dir, "config.json")
            .and_then(|config| config.get("vocab_size").and_then(Value::as_u64))
            .and_then(|vocab| usize::try_from(vocab).ok());
        let mut tokenizer = Self { inner, template, end: named_end, stop: Vec::new(), vocab };
        let configured = configured_ends(base_dir);
        tokenizer.end = named_end.or(configured.first().copied());
        tokenizer.stop = tokenizer.find_stop_ids(configured);
        Ok(tokenizer)
    }

    /// A text as tokens, without any that the tokenizer would put around it.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self
            .inner
            .encode_char_offsets(text, false)
            .map_err(|error| TokenizerError::Run(error.to_string()))?;
        Ok(Encoded { tokens: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// A text as tokens, with those that the tokenizer puts around it (its post-processor: a beginning token, say).
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_whole(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self
            .inner
            .encode_char_offsets(text, true)
            .map_err(|error| TokenizerError::Run(error.to_string()))?;
        Ok(Encoded { tokens: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// One text or two for a classifier, with all special tokens, cut to `max_length` tokens: the longer of two texts
    /// is cut first (`longest_first`), and no special token is.
    ///
    /// # Errors
    /// The tokenizer fails, or its special tokens alone have more than `max_length`.
    pub fn encode_texts(
        &self,
        first: &str,
        second: Option<&str>,
        max_length: usize,
    ) -> Result<Texts, TokenizerError> {
        let run = |error: tokenizers::Error| TokenizerError::Run(error.to_string());
        let added = self.inner.get_post_processor().map_or(0, |post| post.added_tokens(second.is_some()));
        let room = max_length.checked_sub(added).ok_or_else(|| {
            TokenizerError::Run(format!(
                "max_length is {max_length}, but {added} special tokens are added to a text"
            ))
        })?;
        let first = self.inner.encode_fast(first, false).map_err(run)?;
        let second = second.map(|second| self.inner.encode_fast(second, false)).transpose().map_err(run)?;
        let cut = first.len() + second.as_ref().map_or(0, Encoding::len) > room;
        let longest_first = TruncationParams { max_length: room, ..TruncationParams::default() };
        let (first, second) = truncate_encodings(first, second, &longest_first).map_err(run)?;
        let whole = self.inner.post_process(first, second, true).map_err(run)?;
        let second = whole.get_sequence_ids().iter().position(|sequence| *sequence == Some(1));
        Ok(Texts { tokens: whole.get_ids().to_vec(), second, cut })
    }

    /// Tokens as a text, special ones left out.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(tokens, true).map_err(|error| TokenizerError::Run(error.to_string()))
    }

    /// A prompt as one user turn and the beginning of the assistant's: what `generate` goes on from. Without a chat
    /// template, the prompt itself, as the beginning of a text.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.template {
            Some(template) => Ok(self.encode(&template.render(&Chat::prompt(prompt), 1, true)?)?.tokens),
            None => {
                let mut tokens = self.encode_whole(prompt)?.tokens;
                // A tokenizer may end what it is given; this is to go on.
                tokens.pop_if(|token| Some(*token) == self.end);
                Ok(tokens)
            }
        }
    }

    /// A conversation as tokens and labels.
    ///
    /// # Errors
    /// The template or the tokenizer fails, or the template is not prefix-stable.
    pub fn encode_chat(&self, chat: &Chat) -> Result<(Vec<u32>, Vec<bool>), MaskError> {
        mask::encode(self, chat)
    }

    /// Tokens that end an answer: those that the base names, and the one that its template ends a turn with.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The base's chat template, if it has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The token that ends a text: the tokenizer's `eos_token`, else the one that the base's configuration names.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// Rows of the base's embedding, by its config.json.
    pub fn vocab(&self) -> Option<usize> {
        self.vocab
    }

    fn find_stop_ids(&self, configured: Vec<u32>) -> Vec<u32> {
        let stop: BTreeSet<u32> = configured.into_iter().chain(self.end).chain(self.turn_end()).collect();
        stop.into_iter().collect()
    }

    /// The special token that the template puts after an assistant's words, as labels will include it.
    fn turn_end(&self) -> Option<u32> {
        let chat = Chat::new(vec![
            serde_json::json!({"role": "user", "content": "a"}),
            serde_json::json!({"role": "assistant", "content": "b"}),
        ]);
        let text = self.template.as_ref()?.render(&chat, 2, false).ok()?;
        let last = *self.encode(mask::python_rstrip(&text)).ok()?.tokens.last()?;
        self.inner.get_added_tokens_decoder().get(&last).filter(|token| token.special).map(|_| last)
    }
}

/// Ending tokens that the base's configurations name, in their order.
fn configured_ends(dir: &Path) -> Vec<u32> {
    let mut ends = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        match read_json(dir, file).and_then(|config| config.get("eos_token_id").cloned()) {
            Some(Value::Array(ids)) => ends.extend(ids.iter().filter_map(id)),
            Some(one) => ends.extend(id(&one)),
            None => {}
        }
    }
    ends
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// An optional file; what is wrong with it is told by whoever needs it.
fn read_json(dir: &Path, file: &str) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(dir.join(file)).ok()?).ok()
}

#[cfg(test)]
mod tests;
