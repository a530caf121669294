//! Texts for a classifier, tokenized and cut as transformers does.

use super::*;

/// `pairs.json` holds a WordPiece tokenizer with BERT's post-processor and a byte-level BPE with RoBERTa's, both small,
/// and what transformers 5's `PreTrainedTokenizerFast(first, second, truncation="longest_first", max_length=…)` gives.
#[test]
fn texts_have_the_peer_s_tokens() {
    let tokenizers: Vec<Value> = serde_json::from_str(include_str!("pairs.json")).unwrap();
    for one in &tokenizers {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), one["tokenizer"].to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        for case in one["cases"].as_array().unwrap() {
            let max_length = case["max_length"].as_u64().unwrap() as usize;
            let found = tokenizer
                .encode_texts(case["first"].as_str().unwrap(), case["second"].as_str(), max_length)
                .unwrap();
            assert_eq!(serde_json::json!(found.tokens), case["ids"], "{} {case}", one["name"]);
            assert_eq!(serde_json::json!(found.second), case["begins"], "{} {case}", one["name"]);
            assert_eq!(found.cut, case["cut"], "{} {case}", one["name"]);
            if one["name"] == "bert" {
                let second = found.second.unwrap_or(found.tokens.len());
                let types: Vec<u8> = (0..found.tokens.len()).map(|i| u8::from(i >= second)).collect();
                assert_eq!(
                    serde_json::json!(types),
                    case["types"],
                    "token type 1 begins with the second text"
                );
            }
        }
        let error = tokenizer.encode_texts("a", Some("b"), 2).unwrap_err().to_string();
        assert!(error.contains("max_length is 2, but"), "{error}");
    }
}
