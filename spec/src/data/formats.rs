//! The formats of data sets, recognized by the names of their fields.

mod chat;

use std::collections::BTreeMap;

use serde_json::Value;

pub use self::chat::Chat;
use super::{
    container::{Fields, Header},
    labels::{Label, Labels, Meaning},
};
use crate::job::Task;

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"messages": [{"role": …, "content": …}, …]}`, or `conversations` of `from` and `value`.
    Chat,
    /// `{"instruction": …, "input": …, "output": …}`, the input optional.
    Instruction,
    /// `{"prompt": …, "completion": …}`, two texts or two lists of messages.
    Completion,
    /// `{"text": …}`
    Text,
    /// `{"text": …, "label": …}`
    Labelled,
    /// `{"premise": …, "hypothesis": …, "label": …}` and its like.
    LabelledPair,
}

impl Format {
    /// Its name in messages and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Format::Chat => "chat",
            Format::Instruction => "instruction",
            Format::Completion => "prompt/completion",
            Format::Text => "text",
            Format::Labelled => "text with label",
            Format::LabelledPair => "pair with label",
        }
    }

    /// The error of a row that is not of the format of those before it.
    pub(super) fn differs_from(self, before: Format) -> String {
        format!("is of another format ({}) than the rows before it ({})", self.name(), before.name())
    }
}

/// One example as its row says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its format.
    pub format: Format,
    /// What it holds.
    pub content: Content,
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A conversation.
    Chat(Chat),
    /// A text of which the end is to be learned.
    Completion {
        /// What comes first.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// A text that is to be learned.
    Text(String),
    /// A text, or two, with a label for the whole.
    Labelled {
        /// The text, or the first.
        text: String,
        /// The second of a pair.
        second: Option<String>,
        /// As the row gives it.
        label: Label,
    },
}

/// The field in which labels stand.
const LABEL: &str = "label";

/// One set of fields that makes a format.
struct Layout {
    task: Task,
    format: Format,
    needs: &'static [&'static str],
    may_have: &'static [&'static str],
}

/// All of them. Of several that fit, the first counts.
const LAYOUTS: &[Layout] = {
    const fn causal(
        format: Format,
        needs: &'static [&'static str],
        may_have: &'static [&'static str],
    ) -> Layout {
        Layout { task: Task::CausalLm, format, needs, may_have }
    }
    const fn labelled(format: Format, needs: &'static [&'static str]) -> Layout {
        Layout { task: Task::Classification, format, needs, may_have: &[] }
    }
    &[
        causal(Format::Chat, &["messages"], &["tools"]),
        causal(Format::Chat, &["conversations"], &["system", "tools"]),
        causal(Format::Completion, &["prompt", "completion"], &["tools"]),
        causal(Format::Instruction, &["instruction", "output"], &["input"]),
        causal(Format::Text, &["text"], &[]),
        labelled(Format::LabelledPair, &["text", "text_pair", LABEL]),
        labelled(Format::LabelledPair, &["premise", "hypothesis", LABEL]),
        labelled(Format::LabelledPair, &["sentence1", "sentence2", LABEL]),
        labelled(Format::LabelledPair, &["question1", "question2", LABEL]),
        labelled(Format::LabelledPair, &["question", "sentence", LABEL]),
        labelled(Format::Labelled, &["text", LABEL]),
        labelled(Format::Labelled, &["sentence", LABEL]),
    ]
};

/// How rows are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Formats of which task are looked for; `None`: any.
    pub task: Option<Task>,
    /// The data's own names of fields, by the names that formats have for them.
    pub columns: BTreeMap<String, String>,
}

impl Rules {
    /// The data's own name of a field.
    fn column<'a>(&'a self, field: &'a str) -> &'a str {
        self.columns.get(field).map_or(field, String::as_str)
    }

    /// The format of rows whose fields have these names.
    fn recognize(&self, has: &dyn Fn(&str) -> bool) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| {
            let knows = |field: &String| {
                layout.needs.contains(&field.as_str()) || layout.may_have.contains(&field.as_str())
            };
            self.task.is_none_or(|task| task == layout.task)
                && self.columns.keys().all(knows)
                && layout.needs.iter().all(|field| has(self.column(field)))
        })
    }

    /// As [`Rules::recognize`], or what is missing.
    fn layout(&self, names: &[&str]) -> Result<&'static Layout, String> {
        let has = |name: &str| names.contains(&name);
        for (field, column) in &self.columns {
            let optional = LAYOUTS.iter().any(|layout| layout.may_have.contains(&field.as_str()));
            if !has(column) && !optional {
                return Err(format!(
                    "has no `{column}`, which data.columns gives for `{field}`; {}",
                    list(names)
                ));
            }
        }
        self.recognize(&has).ok_or_else(|| self.unknown(names))
    }

    /// The error where no format fits.
    fn unknown(&self, names: &[&str]) -> String {
        let mut wanted: Vec<String> = Vec::new();
        for layout in LAYOUTS.iter().filter(|layout| self.task.is_none_or(|task| task == layout.task)) {
            wanted.push(format!("{} ({})", layout.needs.join(" + "), layout.format.name()));
        }
        let mut text = format!("has the fields of no format: {}; {}", wanted.join(", "), list(names));
        let other = Self { task: None, columns: self.columns.clone() };
        if let Some(layout) = other.recognize(&|name| names.contains(&name)) {
            let task = match layout.task {
                Task::CausalLm => "causal_lm",
                Task::Classification => "classification",
            };
            text += &format!("; with `task: {task}` it would be {}", layout.format.name());
        } else if !names.is_empty() {
            text += "; if one of them has another name, give it in data.columns";
        }
        text
    }

    /// Which columns of a file are of use.
    ///
    /// # Errors
    /// They make no format: which there are.
    pub(super) fn columns_of_use(&self, header: &Header) -> Result<Vec<bool>, String> {
        let names: Vec<&str> = header.names.iter().map(String::as_str).collect();
        let layout = self.layout(&names)?;
        let fields = || layout.needs.iter().chain(layout.may_have);
        Ok(names.iter().map(|name| fields().any(|field| self.column(field) == *name)).collect())
    }

    /// The labels that a file names itself (Parquet files of the `datasets` library do). They keep their numbers, also
    /// those of which there is no example.
    ///
    /// # Errors
    /// As [`Labels::classes`].
    pub(super) fn declared(&self, header: &Header) -> Result<Option<Labels>, String> {
        let names =
            header.classes.get(self.column(LABEL)).filter(|_| self.task == Some(Task::Classification));
        names.map(|names| Labels::classes(names.clone())).transpose()
    }

    /// What a label of a file means, where its integers stand for names.
    pub(super) fn meaning(&self, label: Label, header: &Header) -> Meaning {
        let name = match (&label, header.classes.get(self.column(LABEL))) {
            (Label::Int(int), Some(names)) => usize::try_from(*int).ok().and_then(|int| names.get(int)),
            _ => None,
        };
        match name {
            Some(name) => Meaning { label: Label::Text(name.clone()), number: Some(label) },
            None => Meaning { label, number: None },
        }
    }

    /// Reads a row. In one that is not `typed`, all fields are texts.
    ///
    /// # Errors
    /// What is wrong with it, without its place.
    pub fn row(&self, mut fields: Fields, typed: bool) -> Result<Row, String> {
        let layout = {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            self.layout(&names)?
        };
        let mut taken = Fields::new();
        for field in layout.needs.iter().chain(layout.may_have) {
            if let Some(value) = fields.remove(self.column(field)).filter(|value| !value.is_null()) {
                taken.insert((*field).to_owned(), if typed { value } else { parsed(field, value) });
            }
        }
        let mut row = Taken { rules: self, fields: taken };
        let content = match layout.format {
            Format::Chat => Content::Chat(chat::read(&mut row.fields, layout.needs[0])?),
            Format::Completion if matches!(row.fields.get("prompt"), Some(Value::Array(_))) => {
                Content::Chat(chat::prompt_and_completion(&mut row.fields)?)
            }
            Format::Completion => {
                Content::Completion { prompt: row.text("prompt")?, completion: row.text("completion")? }
            }
            Format::Instruction => Content::Completion {
                prompt: alpaca(&row.text("instruction")?, &row.optional_text("input")?),
                completion: row.text("output")?,
            },
            Format::Text => Content::Text(row.text("text")?),
            Format::Labelled | Format::LabelledPair => Content::Labelled {
                text: row.text(layout.needs[0])?,
                second: match layout.needs {
                    [_, second, _] => Some(row.text(second)?),
                    _ => None,
                },
                label: row.label(typed)?,
            },
        };
        Ok(Row { format: layout.format, content })
    }
}

/// Lists in a file that has only texts are written as JSON.
fn parsed(field: &str, value: Value) -> Value {
    let list = matches!(field, "messages" | "conversations" | "tools" | "prompt" | "completion");
    match value {
        Value::String(text) if list && text.trim_start().starts_with('[') => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        Value::String(text) if field == "tools" && text.trim().is_empty() => Value::Null,
        other => other,
    }
}

/// The prompt that Stanford Alpaca was trained with (github.com/tatsu-lab/stanford_alpaca, train.py).
fn alpaca(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
             Input:\n{input}\n\n### Response:"
        )
    }
}

/// The fields of a row that its format has, by the format's names.
struct Taken<'a> {
    rules: &'a Rules,
    fields: Fields,
}

impl Taken<'_> {
    fn text(&mut self, field: &str) -> Result<String, String> {
        match self.fields.remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(format!("has a `{}` that is no text", self.rules.column(field))),
            None => Err(format!("has no `{}`: it is null", self.rules.column(field))),
        }
    }

    fn optional_text(&mut self, field: &str) -> Result<String, String> {
        if self.fields.contains_key(field) { self.text(field) } else { Ok(String::new()) }
    }

    fn label(&mut self, typed: bool) -> Result<Label, String> {
        let column = self.rules.column(LABEL);
        let value = self.fields.remove(LABEL).ok_or_else(|| format!("has no `{column}`: it is null"))?;
        Label::read(value, typed).map_err(|what| format!("has a `{column}` that {what}"))
    }
}

fn list(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "it is empty".to_owned();
    }
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("it has {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
