//! A base's tokenizer from its files: tokenizer.json, or, where a checkpoint is older than that, the vocabulary of BERT
//! (`vocab.txt`) or of GPT-2 and RoBERTa (`vocab.json`, `merges.txt`), put together as transformers puts it together.

use std::{fs, io::ErrorKind, path::Path};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::tokenize::TokenizerError;

/// Reads the tokenizer of a base's folder.
///
/// # Errors
/// No file that a tokenizer can be made from is there, or it is damaged.
pub(super) fn open(dir: &Path) -> Result<Tokenizer, TokenizerError> {
    let config = object(dir, "tokenizer_config.json");
    let mut tokenizer = match read(dir, "tokenizer.json")? {
        Some(bytes) => {
            Tokenizer::from_bytes(&bytes).map_err(|error| damaged("is no tokenizer that is known", error))?
        }
        None => from_vocabulary(dir, &config)?,
    };
    add_named_tokens(&mut tokenizer, &config)?;
    Ok(tokenizer)
}

fn from_vocabulary(dir: &Path, config: &Map<String, Value>) -> Result<Tokenizer, TokenizerError> {
    let family =
        object(dir, "config.json").get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let description = match family.as_str() {
        "bert" | "distilbert" => {
            read(dir, "vocab.txt")?.map(|vocab| bert(&String::from_utf8_lossy(&vocab), config))
        }
        "gpt2" | "roberta" => match (read(dir, "vocab.json")?, read(dir, "merges.txt")?) {
            (Some(vocab), Some(merges)) => {
                let vocab = serde_json::from_slice(&vocab).map_err(|error| {
                    TokenizerError::File(format!("is missing, and vocab.json is no JSON object: {error}"))
                })?;
                Some(byte_level(vocab, &String::from_utf8_lossy(&merges), family == "roberta", config))
            }
            _ => None,
        },
        _ => None,
    };
    let description = description.ok_or_else(|| {
        TokenizerError::File(
            "is missing; write it once: python -c \"from transformers import AutoTokenizer as A; \
             A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
                .to_owned(),
        )
    })?;
    Tokenizer::from_bytes(description.to_string())
        .map_err(|error| damaged("is missing, and the vocabulary beside it is damaged", error))
}

/// WordPiece (arXiv:1609.08144) with BERT's normalization, as `BertTokenizer` of transformers.
fn bert(vocab: &str, config: &Map<String, Value>) -> Value {
    let ids: Map<String, Value> =
        vocab.lines().enumerate().map(|(id, token)| (token.to_owned(), json!(id))).collect();
    let special = |name: &str, default: &str| text(config, name).unwrap_or_else(|| default.to_owned());
    let (cls, sep) = (special("cls_token", "[CLS]"), special("sep_token", "[SEP]"));
    let unk = special("unk_token", "[UNK]");
    let all = [&special("pad_token", "[PAD]"), &unk, &cls, &sep, &special("mask_token", "[MASK]")];
    let token = |token: &str, kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let sequence = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
    let special = |token: &String| json!({"id": token, "ids": [ids.get(token)], "tokens": [token]});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&all, &ids),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": flag(config, "tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": flag(config, "strip_accents"),
            "lowercase": flag(config, "do_lower_case").unwrap_or(true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token(&cls, 0), sequence("A", 0), token(&sep, 0)],
            "pair": [token(&cls, 0), sequence("A", 0), token(&sep, 0), sequence("B", 1), token(&sep, 1)],
            "special_tokens": {cls.as_str(): special(&cls), sep.as_str(): special(&sep)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    })
}

/// Byte-level BPE, as `GPT2Tokenizer` or `RobertaTokenizer` of transformers.
fn byte_level(ids: Map<String, Value>, merges: &str, roberta: bool, config: &Map<String, Value>) -> Value {
    let special = |name: &str, default: &str| text(config, name).unwrap_or_else(|| default.to_owned());
    let space = flag(config, "add_prefix_space").unwrap_or_default();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true});
    let (tokens, post) = if roberta {
        let (cls, sep) = (special("cls_token", "<s>"), special("sep_token", "</s>"));
        let post = json!({
            "type": "RobertaProcessing", "sep": [sep, ids.get(&sep)], "cls": [cls, ids.get(&cls)],
            "trim_offsets": true, "add_prefix_space": space,
        });
        let others = [("pad_token", "<pad>"), ("unk_token", "<unk>"), ("mask_token", "<mask>")];
        (others.map(|(name, token)| special(name, token)).into_iter().chain([cls, sep]).collect(), post)
    } else {
        (vec![special("eos_token", "<|endoftext|>")], Value::Null)
    };
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&tokens.iter().collect::<Vec<_>>(), &ids),
        "normalizer": null, "pre_tokenizer": level, "post_processor": post, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges,
        },
    })
}

/// Special tokens that the vocabulary has.
fn added(tokens: &[&String], ids: &Map<String, Value>) -> Vec<Value> {
    let mut found: Vec<(&Value, &String)> =
        tokens.iter().filter_map(|token| Some((ids.get(*token)?, *token))).collect();
    found.sort_by_key(|(id, _)| id.as_u64());
    found.dedup();
    let entry = |(id, token): (&Value, &String)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    found.into_iter().map(entry).collect()
}

/// Adds what tokenizer_config.json lists in `added_tokens_decoder` and the tokenizer lacks, each at its number.
fn add_named_tokens(tokenizer: &mut Tokenizer, config: &Map<String, Value>) -> Result<(), TokenizerError> {
    let named = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut named: Vec<(u32, &Value)> =
        named.into_iter().flatten().filter_map(|(id, token)| Some((id.parse().ok()?, token))).collect();
    named.sort_by_key(|(id, _)| *id);
    for (id, entry) in named {
        let Some(content) = entry.get("content").and_then(Value::as_str) else { continue };
        let is = |field: &str| entry.get(field).and_then(Value::as_bool).unwrap_or_default();
        if tokenizer.token_to_id(content).is_some() {
            continue;
        }
        let token = AddedToken::from(content, is("special"))
            .lstrip(is("lstrip"))
            .rstrip(is("rstrip"))
            .single_word(is("single_word"))
            .normalized(is("normalized"));
        tokenizer.add_tokens([token]).map_err(|error| TokenizerError::Run(error.to_string()))?;
        if tokenizer.token_to_id(content) != Some(id) {
            return Err(TokenizerError::File(format!(
                "lacks {content:?}, which tokenizer_config.json says is token {id}; save the tokenizer again with transformers"
            )));
        }
    }
    Ok(())
}

fn text(config: &Map<String, Value>, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn flag(config: &Map<String, Value>, name: &str) -> Option<bool> {
    config.get(name)?.as_bool()
}

fn damaged(what: &str, error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::File(format!("{what}: {error}"))
}

fn read(dir: &Path, file: &str) -> Result<Option<Vec<u8>>, TokenizerError> {
    match fs::read(dir.join(file)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::File(format!("{file} cannot be read: {error}"))),
    }
}

/// An optional file; empty where it is not there. One that is no JSON object is told by the chat template, which needs it.
fn object(dir: &Path, file: &str) -> Map<String, Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests;
