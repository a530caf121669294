//! A base's chat template, rendered as transformers renders it.

use std::{borrow::Cow, fs, io::ErrorKind, path::Path};

use fancy_regex::Regex;
use minijinja::{
    Environment, Error, ErrorKind as JinjaError, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind},
};
use serde_json::{Map, Value as Json};

use super::{
    formats::Chat,
    pyjson::{self, Style},
};

/// Bytes that a template may have.
const MAX_TEMPLATE: usize = 1 << 20;
/// Depth to which a template may call macros.
const RECURSION_LIMIT: usize = 100;
/// Instructions that one rendering may take (one for each 64 bytes of a result, too).
const FUEL: u64 = 50_000_000;
/// Name of the one template in its environment.
const NAME: &str = "chat_template";

/// What is wrong with a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The base has none.
    #[error("the base has no chat template (neither chat_template.jinja nor one in tokenizer_config.json)")]
    Missing,
    /// A file cannot be read, or does not hold what it should.
    #[error("{file}: {message}")]
    File {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The template is not valid.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template refused the messages, or failed on them.
    #[error("the chat template fails: {0}")]
    Render(String),
}

/// A base's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// bos_token, eos_token, … as texts, which templates insert.
    special: Map<String, Json>,
}

impl ChatTemplate {
    /// Reads a base's template, if it has one: `chat_template.jinja`, or the one in `tokenizer_config.json`. `special`
    /// is what [`special_tokens`] found.
    ///
    /// # Errors
    /// It cannot be read, or it is not valid.
    pub fn load(dir: &Path, special: Map<String, Json>) -> Result<Option<Self>, TemplateError> {
        let source = match read(dir, "chat_template.jinja")? {
            Some(source) => Some(source),
            None => in_config(&read_object(dir, "tokenizer_config.json")?.unwrap_or_default()),
        };
        source.map(|source| Self::new(&source, special)).transpose()
    }

    /// A template from its source and the texts of special tokens by their names (`eos_token`, …).
    ///
    /// # Errors
    /// It is not valid.
    pub fn new(source: &str, special: Map<String, Json>) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE {
            let message = format!("it has {} bytes; {MAX_TEMPLATE} are allowed", source.len());
            return Err(TemplateError::Syntax(message));
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, without_generation_tags(source).into_owned())
            .map_err(|error| TemplateError::Syntax(explain(&error)))?;
        Ok(Self { environment, special })
    }

    /// The text of the first `count` messages of a conversation; with `generation_prompt`, also the beginning of an
    /// assistant's turn.
    ///
    /// # Errors
    /// The template refuses the messages or fails.
    pub fn render(
        &self,
        chat: &Chat,
        count: usize,
        generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut context = self.special.clone();
        context.insert("messages".to_owned(), Json::Array(chat.messages[..count].to_vec()));
        context.insert("tools".to_owned(), chat.tools.clone().unwrap_or(Json::Null));
        context.insert("documents".to_owned(), Json::Null);
        context.insert("add_generation_prompt".to_owned(), Json::Bool(generation_prompt));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from(Serde(context))))
            .map_err(|error| TemplateError::Render(explain(&error)))
    }
}

/// Texts of a base's special tokens by their names (`eos_token`), from its tokenizer_config.json and
/// special_tokens_map.json, as far as they are there.
///
/// # Errors
/// A file cannot be read.
pub fn special_tokens(dir: &Path) -> Result<Map<String, Json>, TemplateError> {
    let mut special = texts(&read_object(dir, "tokenizer_config.json")?.unwrap_or_default());
    if let Some(map) = read_object(dir, "special_tokens_map.json")? {
        for (name, token) in texts(&map) {
            special.entry(name).or_insert(token);
        }
    }
    Ok(special)
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let white_space = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(white_space.expect("the delimiters are Jinja's own"));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(JinjaError::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// Turns `{% generation %}` … `{% endgeneration %}`, which mark what an assistant wrote and which minijinja does not
/// know, into a condition that always holds: so the white space rules of the tags stay.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let tags = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .expect("the expression is valid: a constant");
    tags.replace_all(source, |tag: &fancy_regex::Captures<'_>| {
        let part = |i| tag.get(i).map_or("", |part| part.as_str());
        let word = if part(2).is_empty() { "if true" } else { "endif" };
        format!("{{%{} {word} {}%}}", part(1), part(3))
    })
}

/// transformers' filter: `json.dumps`, without HTML escapes.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let invalid = |error: serde_json::Error| Error::new(JinjaError::BadSerialization, error.to_string());
    let json = serde_json::to_value(&value).map_err(invalid)?;
    let mut style = Style::new(options.get::<Option<usize>>("indent")?);
    style.ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or_default();
    style.sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or_default();
    if let Some(separators) = options.get::<Option<Value>>("separators")?
        && separators.kind() == ValueKind::Seq
    {
        let part = |i| separators.get_item_by_index(i).map(|part| part.to_string());
        style.separators = (part(0)?, part(1)?);
    }
    options.assert_all_used()?;
    Ok(pyjson::dumps(&json, &style))
}

/// The time that templates see: always this one, the day that Llama's own templates fall back to. A job's tokens must
/// not depend on the day on which it is trained, or resumed.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut code = chars.next();
        if code == Some('-') {
            code = chars.next();
        }
        text.push_str(match code {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d') => "26",
            Some('B') => "July",
            Some('b') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('H' | 'M' | 'S') => "00",
            Some('%') => "%",
            _ => {
                let message = format!("strftime_now does not know the format {format:?}");
                return Err(Error::new(JinjaError::InvalidOperation, message));
            }
        });
    }
    Ok(text)
}

/// The error with what caused it and where, on one line.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn read(dir: &Path, file: &'static str) -> Result<Option<String>, TemplateError> {
    match fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TemplateError::File { file, message: format!("cannot be read: {error}") }),
    }
}

fn read_object(dir: &Path, file: &'static str) -> Result<Option<Map<String, Json>>, TemplateError> {
    let Some(text) = read(dir, file)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| TemplateError::File { file, message: format!("is no JSON object: {error}") })
}

/// Texts of the special tokens: each is a text, or an object with `content`.
fn texts(config: &Map<String, Json>) -> Map<String, Json> {
    config
        .iter()
        .filter(|(name, _)| name.ends_with("_token") && !name.starts_with("add_"))
        .filter_map(|(name, token)| {
            let text = token.as_str().or_else(|| token.get("content").and_then(Json::as_str))?;
            Some((name.clone(), Json::String(text.to_owned())))
        })
        .collect()
}

/// The template in tokenizer_config.json: a text, or a list of named ones of which `default` is it.
fn in_config(config: &Map<String, Json>) -> Option<String> {
    match config.get("chat_template")? {
        Json::String(source) => Some(source.clone()),
        Json::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|entry| entry.get("template"))
            .and_then(Json::as_str)
            .map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
