//! Rows of every format, and what is said of those of none.

use serde_json::json;

use super::*;

fn rules(task: Task, columns: &[(&str, &str)]) -> Rules {
    let columns = columns.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
    Rules { task: Some(task), columns }
}

fn read(value: Value, rules: &Rules) -> Result<Row, String> {
    let Value::Object(fields) = value else { panic!("no object") };
    rules.row(fields, true)
}

fn causal(value: Value) -> Result<Row, String> {
    read(value, &rules(Task::CausalLm, &[]))
}

fn chat(value: Value) -> Chat {
    match causal(value).unwrap().content {
        Content::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

#[test]
fn conversations_are_recognized() {
    let openai = chat(json!({"messages": [{"role": "user", "content": "a", "name": null}], "id": 7}));
    assert_eq!(openai.messages[0], json!({"role": "user", "content": "a"}));
    let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]});
    assert_eq!(chat(parts).messages[0]["content"], "ab");
    let weights = json!({"messages": [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 1}]});
    let weights = chat(weights);
    assert_eq!(weights.learned, [false, true]);
    assert_eq!(weights.messages[0], json!({"role": "assistant", "content": "a"}));
    let share = chat(
        json!({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    );
    let roles: Vec<_> = share.messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(share.learned.len(), 3);
}

#[test]
fn prompts_with_completions_are_texts_or_messages() {
    let row = causal(json!({"prompt": "a", "completion": "b"})).unwrap();
    assert_eq!(row.format, Format::Completion);
    assert_eq!(row.content, Content::Completion { prompt: "a".into(), completion: "b".into() });
    let messages = chat(json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}],
    }));
    assert_eq!(messages.learned, [false, false, false, true]);
}

#[test]
fn instructions_have_alpaca_s_prompt() {
    let row = causal(json!({"instruction": "Add.", "input": "1 2", "output": "3"})).unwrap();
    let Content::Completion { prompt, completion } = row.content else { panic!("{row:?}") };
    assert!(
        prompt
            .starts_with("Below is an instruction that describes a task, paired with an input that provides")
    );
    assert!(
        prompt.ends_with("request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"),
        "{prompt}"
    );
    assert_eq!(completion, "3");
    for input in [
        json!({"instruction": "Go.", "output": "x"}),
        json!({"instruction": "Go.", "input": "", "output": "x"}),
    ] {
        let Content::Completion { prompt, .. } = causal(input).unwrap().content else { panic!() };
        let wanted = "Below is an instruction that describes a task. Write a response that appropriately completes \
                      the request.\n\n### Instruction:\nGo.\n\n### Response:";
        assert_eq!(prompt, wanted);
    }
}

#[test]
fn texts_with_labels_are_single_or_pairs() {
    let rules = rules(Task::Classification, &[]);
    for (row, format) in [
        (json!({"text": "a", "label": 1}), Format::Labelled),
        (json!({"sentence": "a", "label": 1, "idx": 3}), Format::Labelled),
        (json!({"text": "a", "text_pair": "b", "label": 1}), Format::LabelledPair),
        (json!({"premise": "a", "hypothesis": "b", "label": 1}), Format::LabelledPair),
        (json!({"sentence1": "a", "sentence2": "b", "label": 1}), Format::LabelledPair),
        (json!({"question": "a", "sentence": "b", "label": 1}), Format::LabelledPair),
        (json!({"question1": "a", "question2": "b", "label": 1}), Format::LabelledPair),
    ] {
        let row = read(row, &rules).unwrap();
        assert_eq!(row.format, format);
        let second = (format == Format::LabelledPair).then(|| "b".to_owned());
        assert_eq!(row.content, Content::Labelled { text: "a".into(), second, label: Label::Int(1) });
    }
}

#[test]
fn columns_may_have_other_names() {
    let renamed = rules(Task::CausalLm, &[("prompt", "question"), ("completion", "answer")]);
    // The data has a text too, but the job says what it wants.
    let row = json!({"question": "a", "answer": "b", "text": "c"});
    assert_eq!(read(row, &renamed).unwrap().format, Format::Completion);
    let error = read(json!({"question": "a", "reply": "b"}), &renamed).unwrap_err();
    assert!(
        error.contains(
            "has no `answer`, which data.columns gives for `completion`; it has `question`, `reply`"
        ),
        "{error}"
    );
    let renamed = rules(Task::Classification, &[("label", "stars"), ("text", "body")]);
    let error = read(json!({"body": 3, "stars": 1}), &renamed).unwrap_err();
    assert!(error.contains("has a `body` that is no text"), "{error}");
    let error = read(json!({"body": "a", "stars": [1]}), &renamed).unwrap_err();
    assert!(error.contains("has a `stars` that is a list"), "{error}");
}

#[test]
fn a_file_of_texts_has_lists_as_json() {
    let mut fields = Fields::new();
    fields.insert("messages".into(), json!(r#"[{"role": "user", "content": "a"}]"#));
    let row = rules(Task::CausalLm, &[]).row(fields, false).unwrap();
    assert!(matches!(row.content, Content::Chat(_)));
}

#[test]
fn rows_of_no_format_say_what_there_is() {
    let error = causal(json!({"question": "a", "answer": "b"})).unwrap_err();
    for wanted in ["messages (chat)", "prompt + completion", "it has `question`, `answer`", "data.columns"] {
        assert!(error.contains(wanted), "{error}");
    }
    let error = causal(json!({"sentence": "a", "label": 1})).unwrap_err();
    assert!(error.ends_with("with `task: classification` it would be text with label"), "{error}");
    let error = read(json!({"text": "a"}), &rules(Task::Classification, &[])).unwrap_err();
    assert!(error.ends_with("with `task: causal_lm` it would be text"), "{error}");
    assert!(causal(json!({})).unwrap_err().ends_with("it is empty"));
}

#[test]
fn bad_rows_say_what_is_wrong() {
    for (row, wanted) in [
        (json!({"messages": "a"}), "`messages` that are no list"),
        (json!({"messages": null}), "`messages` that are no list"),
        (json!({"messages": []}), "has no messages"),
        (json!({"messages": [{"role": "user", "content": "a"}, 3]}), "a message (2) that is no object"),
        (json!({"messages": [{"content": "a"}]}), "has no `role`"),
        (json!({"messages": [{"role": "user"}]}), "has no `content`"),
        (json!({"messages": [{"role": "user", "content": [1]}]}), "a part that is no text"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "`content` that is no text"),
        (json!({"messages": [{"role": "user", "content": "", "weight": 0.5}]}), "`weight` that is neither"),
        (json!({"messages": [{"role": "user", "content": ""}], "tools": 3}), "`tools`"),
        (json!({"conversations": [{"from": "alien", "value": "a"}]}), "is from `alien`"),
        (json!({"conversations": [{"from": "gpt"}]}), "no `value`"),
        (json!({"text": 1}), "a `text` that is no text"),
        (json!({"text": null}), "has no `text`: it is null"),
        (json!({"prompt": "a", "completion": ["b"]}), "a `completion` that is no text"),
    ] {
        let error = causal(row.clone()).unwrap_err();
        assert!(error.contains(wanted), "{row}: {error}");
    }
}
