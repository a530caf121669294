//! Data sets read to tokens and labels, and the lines that are refused.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use super::*;
use crate::base::base_files;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&examples().join("base")).unwrap()
}

/// The example's tokenizer with one file replaced.
fn with_file(name: &str, text: &str) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for name in base_files(&examples().join("base")).unwrap() {
        fs::copy(examples().join("base").join(&name), dir.path().join(&name)).unwrap();
    }
    fs::write(dir.path().join(name), text).unwrap();
    Tokenizer::load(dir.path()).unwrap()
}

fn with_template(source: &str) -> Tokenizer {
    with_file("chat_template.jinja", source)
}

fn read(text: &str) -> Result<Dataset, DataError> {
    Dataset::read(text.as_bytes(), &tokenizer(), 256, 512)
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "Hi é😀"}, {"role": "assistant", "content": "Hello you\n"}]}"#;

/// transformers 5.24 gives these counts for the same files and lengths.
#[test]
fn the_example_s_data_has_the_peer_s_labels() {
    let file = |name: &str| BufReader::new(File::open(examples().join("games").join(name)).unwrap());
    let eval = Dataset::read(file("validation.jsonl"), &tokenizer(), 256, 512).unwrap();
    assert_eq!(eval.summary.labelled_tokens, 8291);
    assert_eq!(eval.summary.format.name(), "chat");
    for example in &eval.examples {
        assert!(example.tokens.len() <= 256 && example.tokens.len() == example.labels().len());
        assert!(!example.labels()[0]);
    }
    assert_eq!(check_reader(file("train.jsonl")).unwrap(), 672);
}

#[test]
fn labels_are_the_assistant_s_words_and_the_end_of_its_turn() {
    let tokenizer = tokenizer();
    let dataset = read(&format!("\n{GOOD}\n\n")).unwrap();
    let example = &dataset.examples[0];
    let labelled: Vec<u32> = example
        .tokens
        .iter()
        .zip(example.labels())
        .filter(|(_, label)| **label)
        .map(|(token, _)| *token)
        .collect();
    assert_eq!(tokenizer.decode(&labelled).unwrap(), "Hello you\n");
    assert_eq!(labelled.last(), Some(&0), "the end-of-turn token");
    assert_eq!(tokenizer.stop_ids(), [0]);
    let prompt = tokenizer.encode_prompt("Hi é😀").unwrap();
    assert!(example.tokens.starts_with(&prompt));
    assert!(!example.labels()[prompt.len() - 1] && example.labels()[prompt.len()]);
}

#[test]
fn white_space_after_a_turn_has_no_label() {
    let tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|endoftext|>\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    );
    let dataset = Dataset::read(GOOD.as_bytes(), &tokenizer, 256, 512).unwrap();
    let example = &dataset.examples[0];
    let last = example.tokens.len() - 1;
    assert_eq!(example.tokens[last - 1], 0);
    assert!(example.labels()[last - 1] && !example.labels()[last]);
}

#[test]
fn bad_lines_have_their_numbers() {
    assert!(error(&format!("{GOOD}\n\n{{oops\n")).starts_with("line 3 is not JSON"));
    assert!(error(&format!("{GOOD}\n{{\"text\": 1}}")).starts_with("line 2 has no `messages`"));
    let bytes = [GOOD.as_bytes(), b"\n\xff\xfe"].concat();
    let error = Dataset::read(&bytes[..], &tokenizer(), 256, 512).unwrap_err().to_string();
    assert!(error.starts_with("line 2 is not UTF-8"), "{error}");
    let text = format!("1\n{GOOD}\n2\n3\n4");
    let errors = Dataset::read_all(text.as_bytes(), &tokenizer(), 256, 512, 3).unwrap_err();
    let lines: Vec<_> = errors.iter().map(|e| e.to_string().split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(lines, ["1", "3", "4"]);
    assert_eq!(read(&format!("\u{feff}{GOOD}")).unwrap().summary.examples, 1);
}

#[test]
fn empty_and_masked_sets_are_refused() {
    assert!(error("").contains("is empty"));
    assert!(error("\n \n").contains("is empty"));
    assert!(check_reader("\n".as_bytes()).unwrap_err().to_string().contains("is empty"));
    let no_answer = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
    assert!(error(no_answer).contains("all tokens of all 1 examples are masked"));
    let error = Dataset::read(GOOD.as_bytes(), &tokenizer(), 3, 512).unwrap_err().to_string();
    assert!(error.contains("within max_length 3"), "{error}");
    let mixed = read(&format!("{no_answer}\n{GOOD}")).unwrap();
    assert_eq!((mixed.summary.examples, mixed.summary.skipped), (1, 1));
}

#[test]
fn max_length_cuts_and_cannot_pass_the_positions() {
    let whole = read(GOOD).unwrap();
    let n = whole.examples[0].tokens.len();
    let cut = Dataset::read(GOOD.as_bytes(), &tokenizer(), n - 1, 512).unwrap();
    assert_eq!(cut.examples[0].tokens[..], whole.examples[0].tokens[..n - 1]);
    assert_eq!((cut.summary.truncated, whole.summary.truncated), (1, 0));
    let error = Dataset::read(GOOD.as_bytes(), &tokenizer(), 513, 512).unwrap_err().to_string();
    assert!(error.contains("max_length is 513, longer than the 512 positions"), "{error}");
}

#[test]
fn a_template_that_is_not_prefix_stable_is_refused() {
    let tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last %}LAST {% endif %}{{ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>{% endif %}",
    );
    let error = Dataset::read(GOOD.as_bytes(), &tokenizer, 256, 512).unwrap_err().to_string();
    assert!(
        error.starts_with("line 1: the base's chat template is not prefix-stable: up to message 2"),
        "{error}"
    );
}

#[test]
fn a_template_s_own_refusal_names_the_line() {
    let tokenizer = with_template("{{ raise_exception('roles must alternate') }}");
    let error = Dataset::read(GOOD.as_bytes(), &tokenizer, 256, 512).unwrap_err().to_string();
    assert!(error.starts_with("line 1 cannot be used") && error.contains("roles must alternate"), "{error}");
}

#[test]
fn tokens_beyond_the_embedding_are_refused() {
    let tokenizer = with_file("config.json", r#"{"vocab_size": 20}"#);
    let error = Dataset::read(GOOD.as_bytes(), &tokenizer, 256, 512).unwrap_err().to_string();
    assert!(error.starts_with("line 1 holds the token") && error.contains("only 20"), "{error}");
}

#[test]
fn stop_tokens_come_from_the_configs_and_the_template() {
    assert_eq!(with_file("generation_config.json", r#"{"eos_token_id": [0, 3]}"#).stop_ids(), [0, 3]);
    let turn = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|system|>\n{% endfor %}";
    assert_eq!(with_template(turn).stop_ids(), [0, 4], "the special token that ends an assistant's turn");
}
