//! Chat templates rendered as transformers renders them.

use super::*;

fn chat() -> Chat {
    Chat::new(vec![
        serde_json::json!({"role": "user", "content": " hi <b> "}),
        serde_json::json!({"role": "assistant", "content": "yo"}),
    ])
}

fn render(source: &str) -> Result<String, TemplateError> {
    let special = texts(
        serde_json::json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>", "add_bos_token": true})
            .as_object()
            .unwrap(),
    );
    ChatTemplate::new(source, special)?.render(&chat(), 2, true)
}

#[test]
fn special_tokens_and_python_methods() {
    let source = "{{ bos_token }}{% for m in messages %}{{ m['content'].strip() | upper }}{{ m.get('x', '-') }}\
                  {% endfor %}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}";
    assert_eq!(render(source).unwrap(), "<s>HI <B>-YO-</s>>");
}

#[test]
fn generation_tags_keep_their_white_space_rules() {
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c").unwrap(), "abc");
    assert_eq!(render("a\n  {% generation %}\nb\n  {% endgeneration %}\nc").unwrap(), "a\nb\nc");
}

#[test]
fn tojson_is_python_s() {
    assert_eq!(render("{{ messages[0] | tojson }}").unwrap(), r#"{"role": "user", "content": " hi <b> "}"#);
    assert_eq!(
        render("{{ [1, 'é'] | tojson(indent=1, ensure_ascii=true) }}").unwrap(),
        "[\n 1,\n \"\\u00e9\"\n]"
    );
}

#[test]
fn the_day_is_always_the_same() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
    assert!(render("{{ strftime_now('%Q') }}").unwrap_err().to_string().contains("%Q"));
}

#[test]
fn a_template_can_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
    assert!(error.contains("roles must alternate"), "{error}");
}

#[test]
fn a_broken_template_says_where() {
    let error = render("a\n{% if %}").unwrap_err().to_string();
    assert!(error.contains("not valid") && error.contains(":2"), "{error}");
}

/// features.txt is what transformers 5.24 renders from features.jinja and features.json, with the special tokens
/// below and a generation prompt: tool calls, Python's ways to write values, macros, whitespace, generation tags.
#[test]
fn renders_what_transformers_renders() {
    let line = include_str!("features.json");
    let fields = serde_json::from_str(line.trim()).unwrap();
    let row = crate::data::Rules::default().row(fields, true).unwrap();
    let crate::data::Content::Chat(chat) = row.content else { panic!("no chat") };
    let special = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().unwrap().clone();
    let template = ChatTemplate::new(include_str!("features.jinja"), special).unwrap();
    let text = template.render(&chat, chat.messages.len(), true).unwrap();
    assert_eq!(text, include_str!("features.txt"));
}
