//! Data sets read to tokens and labels, and the lines that are refused.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::*;
use crate::{
    base::base_files,
    data::{Chat, check},
};

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

/// Reads files with these names and texts.
fn load(
    files: &[(&str, &str)],
    tokenizer: &Tokenizer,
    options: &ReadOptions,
    limit: usize,
) -> Result<Dataset, Vec<DataError>> {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<DataFile> = files
        .iter()
        .map(|(name, text)| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            DataFile { name: (*name).to_owned(), path }
        })
        .collect();
    Dataset::load(&files, tokenizer, options, limit)
}

/// Reads one of the examples.
fn format(name: &str, options: &ReadOptions) -> Dataset {
    let path = examples().join("formats").join(name);
    Dataset::load(&[DataFile { name: name.to_owned(), path }], &tokenizer(), options, 1).unwrap()
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
    let checked =
        check(Input::File(File::open(examples().join("games/train.jsonl")).unwrap()), "", &Rules::default());
    assert_eq!(checked.unwrap().examples, 672);
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
    assert!(error(&format!("{GOOD}\n{{\"texts\": 1}}")).starts_with("line 2 has the fields of no format"));
    assert!(error(&format!("{GOOD}\n{{\"text\": \"a\"}}")).starts_with("line 2 is of another format (text)"));
    let bytes = [GOOD.as_bytes(), b"\n\xff\xfe"].concat();
    let error = Dataset::read(&bytes[..], &tokenizer(), 256, 512).unwrap_err().to_string();
    assert!(error.starts_with("line 2 is not UTF-8"), "{error}");
    let text = format!("1\n{GOOD}\n2\n3\n4");
    let errors = load(&[("t.jsonl", &text)], &tokenizer(), &ReadOptions::causal(256, 512), 3).unwrap_err();
    let lines: Vec<_> = errors.iter().map(|e| e.to_string().split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(lines, ["1", "3", "4"]);
    assert_eq!(read(&format!("\u{feff}{GOOD}")).unwrap().summary.examples, 1);
}

#[test]
fn empty_and_masked_sets_are_refused() {
    assert!(error("").contains("is empty"));
    assert!(error("\n \n").contains("is empty"));
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

/// The labelled tokens of an example as a text.
fn learned(dataset: &Dataset, i: usize) -> String {
    let example = &dataset.examples[i];
    let tokens = example.tokens.iter().zip(example.labels()).filter(|(_, label)| **label);
    tokenizer().decode(&tokens.map(|(token, _)| *token).collect::<Vec<_>>()).unwrap()
}

#[test]
fn every_format_of_the_examples_is_read() {
    let mut options = ReadOptions::causal(256, 512);
    for (name, kind, label, examples) in [
        ("chat.parquet", "Parquet", "chat", 16),
        ("conversations.json", "JSON", "chat", 10),
        ("instruction.json", "JSON", "instruction", 10),
        ("text.txt", "plain text", "text", 3),
    ] {
        let summary = format(name, &options).summary;
        assert_eq!((summary.container.as_str(), summary.format.name()), (kind, label));
        assert_eq!((summary.examples, summary.truncated, summary.skipped), (examples, 0, 0), "{name}");
    }
    options.columns =
        [("prompt", "question"), ("completion", "answer")].map(|(a, b)| (a.into(), b.into())).into();
    let completions = format("completion.jsonl.gz", &options);
    assert_eq!(completions.summary.container, "JSON lines in gzip");
    assert_eq!(completions.summary.examples, 16);
}

#[test]
fn completions_and_outputs_are_learned_with_their_end() {
    let lines = r#"{"prompt": "Count: 1, 2,", "completion": " 3, 4"}"#;
    let data = read(lines).unwrap();
    assert_eq!(learned(&data, 0), " 3, 4");
    let example = &data.examples[0];
    assert_eq!(
        (example.tokens.last(), example.labels().last()),
        (Some(&0), Some(&true)),
        "the end is learned"
    );
    let options = ReadOptions { loss_on: LossOn::All, ..ReadOptions::causal(256, 512) };
    let all = load(&[("a", lines)], &tokenizer(), &options, 1).unwrap();
    assert_eq!(all.examples[0].labelled(), all.examples[0].tokens.len() - 1);
    let output = read(r#"{"instruction": "Add", "input": "1 2", "output": "It is three"}"#).unwrap();
    assert_eq!(learned(&output, 0), "It is three");
    let all = load(&[("a", GOOD)], &tokenizer(), &options, 1).unwrap();
    assert_eq!(all.examples[0].labelled(), all.examples[0].tokens.len() - 1);
}

#[test]
fn only_what_is_to_be_learned_of_a_chat_is() {
    let weights = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "first", "weight": 0}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "second"}]}"#;
    assert_eq!(learned(&read(weights).unwrap(), 0), "second");
    let prompt = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "first"}, {"role": "user", "content": "b"}], "completion": [{"role": "assistant", "content": "second"}]}"#;
    assert_eq!(learned(&read(prompt).unwrap(), 0), "second");
}

#[test]
fn a_long_text_is_cut_into_chunks() {
    let text = (0..200).map(|i| format!("word{i} ")).collect::<String>();
    let options = ReadOptions { overlap: 8, ..ReadOptions::causal(32, 512) };
    let data = load(&[("a.txt", &text)], &tokenizer(), &options, 1).unwrap();
    let whole = tokenizer().encode_whole(&text).unwrap().tokens.len() + 1;
    // All but the first token are predicted, each once.
    assert_eq!(data.summary.labelled_tokens as usize, whole - 1);
    assert!(data.summary.examples > 10 && data.summary.longest == 32 && data.summary.truncated == 0);
    for pair in data.examples.windows(2) {
        assert_eq!(pair[0].tokens[24..], pair[1].tokens[..8]);
        assert!(pair[1].labels()[..8].iter().all(|label| !label));
    }
    let error = load(&[("a", GOOD)], &tokenizer(), &options, 1).unwrap_err()[0].to_string();
    assert!(error.contains("data.overlap is 8, but only raw text is cut"), "{error}");
}

#[test]
fn files_of_a_set_follow_each_other_and_are_named() {
    let two = GOOD.replace("Hello you", "Bye");
    let options = ReadOptions::causal(256, 512);
    let data = load(&[("b.jsonl", GOOD), ("a.jsonl", &two)], &tokenizer(), &options, 1).unwrap();
    assert_eq!((learned(&data, 0).as_str(), learned(&data, 1).as_str()), ("Hello you\n", "Bye\n"));
    let errors = load(&[("b.jsonl", GOOD), ("a.jsonl", "{}")], &tokenizer(), &options, 9).unwrap_err();
    assert!(errors[0].to_string().starts_with("a.jsonl, line 1 has the fields of no format"), "{errors:?}");
}

fn classification(columns: &[(&str, &str)]) -> ReadOptions {
    let columns = columns.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
    ReadOptions { task: Task::Classification, columns, ..ReadOptions::causal(64, 512) }
}

#[test]
fn labels_come_from_the_training_data() {
    let train = format("sections.csv", &classification(&[("label", "section")]));
    let counts = [("games", 6), ("science", 6), ("sound", 6)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(train.summary.labels, counts);
    assert_eq!((train.summary.container.as_str(), train.summary.format.name()), ("CSV", "text with label"));
    let options = ReadOptions { labels: train.labels, ..classification(&[]) };
    let eval = load(&[("e", r#"{"text": "a", "label": "sound"}"#)], &tokenizer(), &options, 1).unwrap();
    assert_eq!(eval.examples[0].target, Target::Class(2));
    let lines = "{\"text\": \"a\", \"label\": \"sound\"}\n{\"text\": \"a\", \"label\": \"admin\"}";
    let error = load(&[("e", lines)], &tokenizer(), &options, 1).unwrap_err()[0].to_string();
    assert_eq!(error, "line 2 has the label `admin`, which is none of `games`, `science`, `sound`");
}

#[test]
fn a_parquet_file_s_own_class_names_count() {
    let pairs = format("pairs.parquet", &classification(&[]));
    assert_eq!(pairs.labels.as_ref().unwrap().names(), ["different", "same"]);
    assert_eq!(pairs.examples[0].target, Target::Class(1));
    let second = pairs.examples[0].second.unwrap();
    assert!(0 < second && second < pairs.examples[0].tokens.len());
    // A job that names them otherwise means the same numbers.
    let labels = Labels::classes(vec!["no".into(), "yes".into()]).unwrap();
    let renamed = format("pairs.parquet", &ReadOptions { labels: Some(labels), ..classification(&[]) });
    assert_eq!(renamed.examples, pairs.examples);
    let error =
        load(&[("p.csv", "premise,label\na,b\n")], &tokenizer(), &classification(&[]), 1).unwrap_err();
    assert!(error[0].to_string().contains("it has `premise`, `label`"), "{error:?}");
}

#[test]
fn scores_are_numbers_with_fractions() {
    let data = load(
        &[("s.csv", "sentence1,sentence2,label\na,b,3.5\nc,d,5\n")],
        &tokenizer(),
        &classification(&[]),
        1,
    );
    let data = data.unwrap();
    assert_eq!((data.labels, data.summary.scores), (Some(Labels::Scores), Some((3.5, 5.0))));
    assert_eq!(data.examples[1].target, Target::Score(5.0));
    let error =
        load(&[("s", r#"{"text": "a", "label": "x"}"#)], &tokenizer(), &classification(&[]), 1).unwrap_err();
    assert!(error[0].to_string().contains("at least two labels, and there is only `x`"), "{error:?}");
}

#[test]
fn without_a_chat_template_other_formats_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(examples().join("base/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 0}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let options = ReadOptions::causal(256, 512);
    let error = load(&[("a", GOOD)], &tokenizer, &options, 9).unwrap_err()[0].to_string();
    assert!(error.contains("has no chat template") && error.contains("prompt + completion"), "{error}");
    let text = load(&[("a", r#"{"text": "Hello"}"#)], &tokenizer, &options, 1).unwrap();
    assert_eq!(text.examples[0].tokens.last(), Some(&0));
    assert_eq!(tokenizer.encode_prompt("Hello").unwrap(), tokenizer.encode("Hello").unwrap().tokens);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is said in whatever order, what is learned is what the assistant says, each time with an end.
        #[test]
        fn labels_lie_within_the_assistant_s_turns(
            turns in prop::collection::vec((any::<bool>(), "[a-zA-Zäß .,\n]{0,20}"), 1..8),
        ) {
            let messages: Vec<Value> = turns
                .iter()
                .map(|(assistant, text)| {
                    serde_json::json!({"role": if *assistant { "assistant" } else { "user" }, "content": text})
                })
                .collect();
            let tokenizer = tokenizer();
            let (tokens, labels) = tokenizer.encode_chat(&Chat::new(messages)).unwrap();
            prop_assert_eq!(tokens.len(), labels.len());
            let mut said = Vec::new();
            for (i, run) in labels.chunk_by(|a, b| a == b).enumerate() {
                let start: usize = labels.chunk_by(|a, b| a == b).take(i).map(<[bool]>::len).sum();
                if run[0] {
                    said.push(tokenizer.decode(&tokens[start..start + run.len()]).unwrap());
                }
            }
            let assistant: String = turns.iter().filter(|(assistant, _)| *assistant).map(|(_, text)| text.as_str()).collect();
            prop_assert_eq!(said.concat(), assistant);
        }
    }
}
