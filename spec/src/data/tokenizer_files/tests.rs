//! Tokenizers without tokenizer.json, and added tokens; the expected tokens are what transformers 5.24 gives.

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

const BERT_VOCAB: &str =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n,\n!\nw\n##o\n##rl\n##d\n日\nthe\na\n";

#[test]
fn bert_from_its_vocabulary() {
    let files = [("vocab.txt", BERT_VOCAB), ("config.json", r#"{"model_type": "bert"}"#)];
    let tokenizer = open(folder(&files).path()).unwrap();
    assert_eq!(ids(&tokenizer, "Hello, wörlds! 日 [MASK] thing"), [2, 5, 8, 6, 7, 9, 14, 4, 1, 3]);
    let pair = tokenizer.encode(("hello", "the world"), true).unwrap();
    assert_eq!((pair.get_ids(), pair.get_type_ids()), (&[2, 5, 3, 15, 6, 3][..], &[0, 0, 0, 1, 1, 1][..]));
    let cased = [files[0], files[1], ("tokenizer_config.json", r#"{"do_lower_case": false}"#)];
    assert_eq!(ids(&open(folder(&cased).path()).unwrap(), "Hello world"), [2, 1, 6, 3]);
}

/// The vocabulary of the cases for byte-level BPE, with what stands before and after it.
fn bpe(before: &[&str], after: &str) -> String {
    let tokens =
        ["h", "e", "l", "o", "Ġ", "w", "r", "d", "!", "Ã", "¶", "he", "ll", "hell", "hello", "Ġw", "Ġwo"];
    let all = before.iter().copied().chain(tokens).chain([after]);
    let ids: Map<String, Value> = all.enumerate().map(|(id, token)| (token.to_owned(), json!(id))).collect();
    Value::from(ids).to_string()
}

const MERGES: &str = "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ w\nĠw o\n";

#[test]
fn roberta_and_gpt2_from_their_vocabularies() {
    let vocab = bpe(&["<s>", "<pad>", "</s>", "<unk>"], "<mask>");
    let files = [
        ("vocab.json", vocab.as_str()),
        ("merges.txt", MERGES),
        ("config.json", r#"{"model_type": "roberta"}"#),
    ];
    let roberta = open(folder(&files).path()).unwrap();
    assert_eq!(ids(&roberta, "hello world! <mask>"), [0, 18, 20, 10, 6, 11, 12, 8, 21, 2]);
    let pair = roberta.encode(("hello", "wo"), true).unwrap();
    assert_eq!(pair.get_ids(), [0, 18, 2, 2, 9, 7, 2]);
    let vocab = bpe(&[], "<|endoftext|>");
    let files = [
        ("vocab.json", vocab.as_str()),
        ("merges.txt", MERGES),
        ("config.json", r#"{"model_type": "gpt2"}"#),
    ];
    let gpt2 = open(folder(&files).path()).unwrap();
    assert_eq!(ids(&gpt2, "hello world!<|endoftext|>ö"), [14, 16, 6, 2, 7, 8, 17, 9, 10]);
    assert_eq!(gpt2.decode(&[14, 16, 6], true).unwrap(), "hello wor");
}

#[test]
fn what_no_tokenizer_can_be_made_from_is_told() {
    let error = |files: &[(&str, &str)]| open(folder(files).path()).unwrap_err().to_string();
    let none =
        error(&[("config.json", r#"{"model_type": "llama"}"#), ("vocab.json", "{}"), ("merges.txt", "")]);
    assert!(none.starts_with("tokenizer.json: is missing; write it once: python -c"), "{none}");
    let half = error(&[("config.json", r#"{"model_type": "gpt2"}"#), ("vocab.json", "{}")]);
    assert!(half.contains("is missing; write it once"), "{half}");
    let damaged = error(&[("config.json", r#"{"model_type": "bert"}"#), ("vocab.txt", "a\nb\n")]);
    assert!(damaged.contains("the vocabulary beside it is damaged"), "{damaged}");
    let damaged = error(&[("tokenizer.json", "{}")]);
    assert!(damaged.starts_with("tokenizer.json: is no tokenizer that is known"), "{damaged}");
}

#[test]
fn tokens_that_only_the_config_names_are_added() {
    let named = |id: u32| {
        let config = json!({"added_tokens_decoder": {
            "0": {"content": "[PAD]", "special": true},
            id.to_string(): {"content": "<|user|>", "special": true, "lstrip": false, "normalized": false},
        }});
        let config = config.to_string();
        let files = [
            ("vocab.txt", BERT_VOCAB),
            ("config.json", r#"{"model_type": "bert"}"#),
            ("tokenizer_config.json", config.as_str()),
        ];
        open(folder(&files).path())
    };
    assert_eq!(ids(&named(17).unwrap(), "<|user|>hello"), [2, 17, 5, 3]);
    let error = named(40).unwrap_err().to_string();
    assert!(error.contains("lacks \"<|user|>\", which tokenizer_config.json says is token 40"), "{error}");
}
