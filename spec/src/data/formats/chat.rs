//! Conversations: OpenAI's messages, ShareGPT's conversations, and prompts with completions made of messages.

use serde_json::{Map, Value};

use crate::data::container::Fields;

/// Messages that one chat may have.
const MAX_MESSAGES: usize = 10_000;

/// A conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// At least one object, each with a `role`; fields that are null are left out, as transformers does.
    pub messages: Vec<Value>,
    /// JSON schemas of tools, as some templates show them to the model.
    pub tools: Option<Value>,
    /// For each message, whether it is to be learned where the assistant says it.
    pub learned: Vec<bool>,
}

impl Chat {
    /// A conversation of which every turn of the assistant is to be learned.
    pub fn new(messages: Vec<Value>) -> Self {
        Self { learned: vec![true; messages.len()], messages, tools: None }
    }

    /// A conversation of one user message.
    pub fn prompt(text: &str) -> Self {
        Self::new(vec![serde_json::json!({"role": "user", "content": text})])
    }
}

/// Reads a conversation in `field`.
pub(super) fn read(fields: &mut Fields, field: &str) -> Result<Chat, String> {
    let (mut messages, mut learned) = messages(fields.remove(field), field)?;
    if let Some(Value::String(system)) = fields.remove("system").filter(|system| *system != "") {
        messages.insert(0, serde_json::json!({"role": "system", "content": system}));
        learned.insert(0, true);
    }
    Ok(Chat { messages, learned, tools: tools(fields)? })
}

/// Reads a conversation whose end is to be learned.
pub(super) fn prompt_and_completion(fields: &mut Fields) -> Result<Chat, String> {
    let (mut all, prompt_learned) = messages(fields.remove("prompt"), "prompt")?;
    let mut learned = vec![false; prompt_learned.len()];
    let (completion, completion_learned) = messages(fields.remove("completion"), "completion")?;
    all.extend(completion);
    learned.extend(completion_learned);
    Ok(Chat { messages: all, learned, tools: tools(fields)? })
}

/// Messages, and which of them are to be learned.
type Messages = (Vec<Value>, Vec<bool>);

fn messages(value: Option<Value>, field: &str) -> Result<Messages, String> {
    let Some(Value::Array(messages)) = value else {
        return Err(format!("has `{field}` that are no list"));
    };
    if messages.is_empty() {
        return Err(format!("has no messages: `{field}` is an empty list"));
    }
    if messages.len() > MAX_MESSAGES {
        return Err(format!("has {} messages; {MAX_MESSAGES} are allowed", messages.len()));
    }
    let messages = messages.into_iter().enumerate();
    let messages: Result<Vec<_>, String> = messages
        .map(|(i, message)| {
            self::message(message).map_err(|what| format!("has a message ({}) that {what}", i + 1))
        })
        .collect();
    Ok(messages?.into_iter().unzip())
}

/// One message in OpenAI's form, and whether it is to be learned.
fn message(message: Value) -> Result<(Value, bool), String> {
    let Value::Object(mut fields) = message else { return Err("is no object".to_owned()) };
    fields.retain(|_, value| !value.is_null());
    if !fields.contains_key("role") && fields.contains_key("from") {
        share_gpt(&mut fields)?;
    }
    match fields.get("role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        Some(_) => return Err("has a `role` that is no text".to_owned()),
        None => return Err("has no `role`".to_owned()),
    }
    if let Some(Value::Array(parts)) = fields.get("content") {
        let text = texts(parts)?;
        fields.insert("content".to_owned(), Value::String(text));
    }
    match fields.get("content") {
        Some(Value::String(_)) => {}
        Some(_) => return Err("has a `content` that is no text".to_owned()),
        None if fields.contains_key("tool_calls") => {}
        None => return Err("has no `content`".to_owned()),
    }
    let learned = match fields.remove("weight").map(|weight| weight.as_f64()) {
        None => true,
        Some(Some(1.0)) => true,
        Some(Some(0.0)) => false,
        Some(_) => return Err("has a `weight` that is neither 0 (not to be learned) nor 1".to_owned()),
    };
    Ok((Value::Object(fields), learned))
}

/// ShareGPT's `from` and `value` become `role` and `content`.
fn share_gpt(fields: &mut Map<String, Value>) -> Result<(), String> {
    let role = match fields.remove("from") {
        Some(Value::String(from)) => match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "model" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            _ => return Err(format!("is from `{from}`; human, gpt, system and tool are known")),
        },
        _ => return Err("has a `from` that is no text".to_owned()),
    };
    let value = fields.remove("value").ok_or_else(|| "has a `from`, but no `value`".to_owned())?;
    fields.insert("role".to_owned(), Value::String(role.to_owned()));
    fields.insert("content".to_owned(), value);
    Ok(())
}

/// OpenAI's content in parts, as long as all of them are texts.
fn texts(parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("text") | None, Some(Value::String(text))) => Ok(text.clone()),
        _ => Err("has a `content` with a part that is no text; only text is learned".to_owned()),
    };
    parts.iter().map(text).collect()
}

fn tools(fields: &mut Fields) -> Result<Option<Value>, String> {
    match fields.remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(Value::Array(tools))),
        Some(_) => Err("has `tools` that are no list of objects".to_owned()),
    }
}
