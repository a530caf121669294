//! The formats of data lines, recognized by their fields.

use serde_json::{Map, Value};

/// Bytes that one line may have.
pub const MAX_LINE: usize = 16 << 20;
/// Messages that one chat may have.
const MAX_MESSAGES: usize = 10_000;

/// A format of data lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"messages": [{"role": …, "content": …}, …]}`
    Chat,
}

impl Format {
    /// Its name in messages and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Format::Chat => "chat",
        }
    }
}

/// One example as its line says it.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation.
    Chat(Chat),
}

impl Row {
    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            Row::Chat(_) => Format::Chat,
        }
    }
}

/// A conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// At least one object, each with a `role`; fields that are null are left out, as transformers does.
    pub messages: Vec<Value>,
    /// JSON schemas of tools, as some templates show them to the model.
    pub tools: Option<Value>,
}

impl Chat {
    /// A conversation of one user message.
    pub fn prompt(text: &str) -> Self {
        Self { messages: vec![serde_json::json!({"role": "user", "content": text})], tools: None }
    }
}

/// Checks one line of a data set as it is uploaded; blank lines are the caller's to skip.
///
/// # Errors
/// What is wrong with the line, without its number.
pub fn check_line(line: &str) -> Result<Format, String> {
    parse_line(line).map(|row| row.format())
}

/// Reads one line of a data set.
///
/// # Errors
/// What is wrong with the line, without its number.
pub fn parse_line(line: &str) -> Result<Row, String> {
    if line.len() > MAX_LINE {
        return Err(format!("has {} bytes; {MAX_LINE} are allowed", line.len()));
    }
    let value: Value =
        serde_json::from_str(line).map_err(|error| format!("is not JSON: {}", at_column(&error)))?;
    let Value::Object(mut fields) = value else {
        return Err("is JSON, but no object; a line looks like {\"messages\": [...]}".to_owned());
    };
    match fields.remove("messages") {
        Some(messages) => Ok(Row::Chat(Chat { messages: chat(messages)?, tools: tools(&mut fields)? })),
        None => Err(format!("has no `messages`; {}", has(&fields))),
    }
}

/// serde_json counts lines within the text that it got, which here is one line.
fn at_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

fn has(fields: &Map<String, Value>) -> String {
    if fields.is_empty() {
        return "it is empty".to_owned();
    }
    let names: Vec<_> = fields.keys().take(8).map(|name| format!("`{name}`")).collect();
    format!("it has {}", names.join(", "))
}

fn chat(messages: Value) -> Result<Vec<Value>, String> {
    let Value::Array(messages) = messages else {
        return Err("has `messages` that are no list".to_owned());
    };
    if messages.is_empty() {
        return Err("has no messages: `messages` is an empty list".to_owned());
    }
    if messages.len() > MAX_MESSAGES {
        return Err(format!("has {} messages; {MAX_MESSAGES} are allowed", messages.len()));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| {
            self::message(message).map_err(|what| format!("has a message ({}) that {what}", i + 1))
        })
        .collect()
}

fn message(message: Value) -> Result<Value, String> {
    let Value::Object(mut fields) = message else { return Err("is no object".to_owned()) };
    fields.retain(|_, value| !value.is_null());
    match fields.get("role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        Some(_) => return Err("has a `role` that is no text".to_owned()),
        None => return Err("has no `role`".to_owned()),
    }
    match fields.get("content") {
        Some(Value::String(_)) => {}
        Some(_) => return Err("has a `content` that is no text".to_owned()),
        None if fields.contains_key("tool_calls") => {}
        None => return Err("has no `content`".to_owned()),
    }
    Ok(Value::Object(fields))
}

fn tools(fields: &mut Map<String, Value>) -> Result<Option<Value>, String> {
    match fields.remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(Value::Array(tools))),
        Some(_) => Err("has `tools` that are no list of objects".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_line_is_recognized() {
        let line = r#"{"messages": [{"role": "user", "content": "a", "name": null}], "id": 7}"#;
        assert_eq!(check_line(line), Ok(Format::Chat));
        let Ok(Row::Chat(chat)) = parse_line(line) else { panic!("no chat") };
        assert_eq!(chat.messages[0], serde_json::json!({"role": "user", "content": "a"}));
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, wanted) in [
            ("{oops", "is not JSON: key must be a string at column 2"),
            ("[1]", "is JSON, but no object"),
            (r#"{"text": "a", "label": 1}"#, "has no `messages`; it has `text`, `label`"),
            (r#"{"messages": "a"}"#, "no list"),
            (r#"{"messages": []}"#, "has no messages"),
            (r#"{"messages": [{"role": "user", "content": "a"}, 3]}"#, "a message (2) that is no object"),
            (r#"{"messages": [{"content": "a"}]}"#, "has no `role`"),
            (r#"{"messages": [{"role": "user"}]}"#, "has no `content`"),
            (r#"{"messages": [{"role": "user", "content": [1]}]}"#, "`content` that is no text"),
            (r#"{"messages": [{"role": "user", "content": ""}], "tools": 3}"#, "`tools`"),
        ] {
            let error = check_line(line).unwrap_err();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
