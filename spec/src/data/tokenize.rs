//! A base's tokenizer with its chat template: texts and conversations to tokens, and back.

use std::{collections::BTreeSet, fmt, fs, path::Path};

use serde_json::Value;

use super::{
    formats::Chat,
    mask::{self, MaskError},
    template::{ChatTemplate, TemplateError},
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
    template: ChatTemplate,
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

impl Tokenizer {
    /// Loads a base's tokenizer from its folder: tokenizer.json, the chat template, and the tokens that end a turn.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn load(base_dir: &Path) -> Result<Self, TokenizerError> {
        let mut inner = tokenizer_files::open(base_dir)?;
        inner.with_truncation(None).map_err(|error| TokenizerError::Run(error.to_string()))?;
        inner.with_padding(None);
        let template = ChatTemplate::load(base_dir)?;
        let vocab = read_json(base_dir, "config.json")
            .and_then(|config| config.get("vocab_size").and_then(Value::as_u64))
            .and_then(|vocab| usize::try_from(vocab).ok());
        let mut tokenizer = Self { inner, template, stop: Vec::new(), vocab };
        tokenizer.stop = tokenizer.find_stop_ids(base_dir);
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

    /// Tokens as a text, special ones left out.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(tokens, true).map_err(|error| TokenizerError::Run(error.to_string()))
    }

    /// A prompt as one user turn and the beginning of the assistant's: what `generate` goes on from.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let text = self.template.render(&Chat::prompt(prompt), 1, true)?;
        Ok(self.encode(&text)?.tokens)
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

    /// The base's chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Rows of the base's embedding, by its config.json.
    pub fn vocab(&self) -> Option<usize> {
        self.vocab
    }

    fn find_stop_ids(&self, base_dir: &Path) -> Vec<u32> {
        let mut stop = BTreeSet::new();
        for file in ["generation_config.json", "config.json"] {
            let ids = read_json(base_dir, file).and_then(|config| config.get("eos_token_id").cloned());
            match ids {
                Some(Value::Array(ids)) => stop.extend(ids.iter().filter_map(id)),
                Some(one) => stop.extend(id(&one)),
                None => {}
            }
        }
        stop.extend(self.template.special("eos_token").and_then(|token| self.inner.token_to_id(token)));
        stop.extend(self.turn_end());
        stop.into_iter().collect()
    }

    /// The special token that the template puts after an assistant's words, as labels will include it.
    fn turn_end(&self) -> Option<u32> {
        let chat = Chat {
            messages: vec![
                serde_json::json!({"role": "user", "content": "a"}),
                serde_json::json!({"role": "assistant", "content": "b"}),
            ],
            tools: None,
        };
        let text = self.template.render(&chat, 2, false).ok()?;
        let last = *self.encode(mask::python_rstrip(&text)).ok()?.tokens.last()?;
        self.inner.get_added_tokens_decoder().get(&last).filter(|token| token.special).map(|_| last)
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// An optional file; what is wrong with it is told by whoever needs it.
fn read_json(dir: &Path, file: &str) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(dir.join(file)).ok()?).ok()
}
