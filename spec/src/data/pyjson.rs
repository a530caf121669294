//! JSON as Python's `json.dumps` writes it, which chat templates of tool calls depend on to the byte.

use std::fmt::Write as _;

use serde_json::Value;

/// How to write: `json.dumps`' arguments.
#[derive(Debug, Clone)]
pub struct Style {
    /// Escape everything outside ASCII.
    pub ensure_ascii: bool,
    /// Line breaks, and this many spaces a level.
    pub indent: Option<usize>,
    /// Between items, and after a key.
    pub separators: (String, String),
    /// Keys in order.
    pub sort_keys: bool,
}

impl Style {
    /// Python's defaults, but for `ensure_ascii`, which chat templates have off.
    pub fn new(indent: Option<usize>) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self { ensure_ascii: false, indent, separators: (item.to_owned(), ": ".to_owned()), sort_keys: false }
    }
}

/// Writes a value.
pub fn dumps(value: &Value, style: &Style) -> String {
    let mut text = String::new();
    write(&mut text, value, style, 0);
    text
}

fn write(text: &mut String, value: &Value, style: &Style, level: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => write_number(text, number),
        Value::String(string) => write_string(text, string, style.ensure_ascii),
        Value::Array(items) if items.is_empty() => text.push_str("[]"),
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                before_item(text, style, level + 1, i);
                write(text, item, style, level + 1);
            }
            line_break(text, style, level);
            text.push(']');
        }
        Value::Object(fields) if fields.is_empty() => text.push_str("{}"),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            if style.sort_keys {
                fields.sort_by_key(|(key, _)| *key);
            }
            text.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                before_item(text, style, level + 1, i);
                write_string(text, key, style.ensure_ascii);
                text.push_str(&style.separators.1);
                write(text, item, style, level + 1);
            }
            line_break(text, style, level);
            text.push('}');
        }
    }
}

fn before_item(text: &mut String, style: &Style, level: usize, i: usize) {
    if i > 0 {
        text.push_str(&style.separators.0);
    }
    line_break(text, style, level);
}

fn line_break(text: &mut String, style: &Style, level: usize) {
    if let Some(indent) = style.indent {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', indent * level));
    }
}

/// Python writes floats by `repr`: an exponent has a sign and two digits (`1e-05`), from 1e16 on and below 1e-4.
fn write_number(text: &mut String, number: &serde_json::Number) {
    let float = match number.as_f64() {
        Some(float) if number.is_f64() => float,
        _ => {
            let _ = write!(text, "{number}");
            return;
        }
    };
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{float:e}");
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        let _ = write!(text, "{mantissa}e{sign}{digits:0>2}");
    } else {
        let _ = write!(text, "{float:?}");
    }
}

fn write_string(text: &mut String, string: &str, ensure_ascii: bool) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !c.is_ascii()) || (ensure_ascii && c == '\u{7f}') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are what Python 3.11's json.dumps gives.
    #[test]
    fn writes_what_python_writes() {
        let value = serde_json::json!({"b": [1, 2.0, 1e-5, 1e16, 123.25, null, true], "a": {"é": "<\"\n\u{1}😀>"}, "e": []});
        assert_eq!(
            dumps(&value, &Style::new(None)),
            "{\"b\": [1, 2.0, 1e-05, 1e+16, 123.25, null, true], \"a\": {\"é\": \"<\\\"\\n\\u0001😀>\"}, \"e\": []}"
        );
        let style = Style { ensure_ascii: true, sort_keys: true, ..Style::new(Some(2)) };
        assert_eq!(
            dumps(&serde_json::json!({"b": [1], "a": "é😀"}), &style),
            "{\n  \"a\": \"\\u00e9\\ud83d\\ude00\",\n  \"b\": [\n    1\n  ]\n}"
        );
    }
}
