//! The files that make up a base in a folder.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{BaseError, TensorFile, tensors::header_len};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files beside config.json and the weights that belong to a base where they exist.
const OPTIONAL: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Names of the files in a folder that make up a base, sorted: what is uploaded, digested and loaded. Anything else
/// in the folder (README, other frameworks' weights) is no part of it.
///
/// # Errors
/// config.json or weights are missing, or the index of sharded weights is damaged.
pub fn base_files(dir: &Path) -> Result<Vec<String>, BaseError> {
    if !dir.is_dir() {
        return Err(BaseError::NotAFolder(dir.to_owned()));
    }
    let mut files: BTreeSet<String> = weight_names(dir)?.into_iter().collect();
    if !dir.join("config.json").is_file() {
        return Err(BaseError::MissingFile { file: "config.json".to_owned(), hint: None });
    }
    files.insert("config.json".to_owned());
    if !files.contains(SINGLE) {
        files.insert(INDEX.to_owned());
    }
    files.extend(OPTIONAL.iter().filter(|name| dir.join(name).is_file()).map(|name| (*name).to_owned()));
    Ok(files.into_iter().collect())
}

/// Paths of a base's safetensors files: `model.safetensors`, or else the shards that its index names.
///
/// # Errors
/// There are neither; the index is damaged; a shard is missing.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, BaseError> {
    Ok(weight_names(dir)?.into_iter().map(|name| dir.join(name)).collect())
}

fn weight_names(dir: &Path) -> Result<Vec<String>, BaseError> {
    if dir.join(SINGLE).is_file() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let path = dir.join(INDEX);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let old = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
            let hint = match old.into_iter().find(|name| dir.join(name).exists()) {
                Some(old) => format!("; {}", convert(old)),
                None => format!(", and so is {INDEX}"),
            };
            return Err(BaseError::MissingFile { file: SINGLE.to_owned(), hint: Some(hint) });
        }
        Err(source) => return Err(BaseError::Io { path, source }),
    };
    let shards =
        shard_names(&text).map_err(|message| BaseError::Weights { file: INDEX.to_owned(), message })?;
    let missing: Vec<_> = shards
        .iter()
        .filter(|name| !dir.join(name).is_file())
        .map(|name| BaseError::MissingFile { file: name.clone(), hint: Some(format!("; {INDEX} names it")) })
        .collect();
    if missing.is_empty() { Ok(shards) } else { Err(BaseError::Many(missing)) }
}

/// How pickled weights, which could run code when they are opened, become weights that are only data.
pub(super) fn convert(old: &str) -> String {
    format!(
        "{old} is pickled, which is not read; convert it once: python -c \"from transformers import AutoModel as A; \
         A.from_pretrained('FOLDER').save_pretrained('FOLDER')\" (AutoModelForCausalLM, where it has a head)"
    )
}

/// The shards that an index names, each once, sorted.
fn shard_names(index: &str) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_str(index).map_err(|error| format!("is no JSON: {error}"))?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or("has no `weight_map`")?;
    let mut names = BTreeSet::new();
    for value in map.values() {
        let name = value.as_str().ok_or("has a `weight_map` entry that is no file name")?;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            return Err(format!("names {name:?}, which is no file beside it"));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() { Err("names no files".to_owned()) } else { Ok(names.into_iter().collect()) }
}

/// Reads the header of one safetensors file.
///
/// # Errors
/// The file cannot be read, or is truncated.
pub fn read_tensor_file(path: &Path) -> Result<TensorFile, BaseError> {
    let io = |source| BaseError::Io { path: path.to_owned(), source };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let weights = |message: String| BaseError::Weights { file: name.clone(), message };
    if file_bytes < 8 {
        return Err(weights(format!("is truncated: it has {file_bytes} bytes")));
    }
    let mut first = [0; 8];
    file.read_exact(&mut first).map_err(io)?;
    let len = header_len(first, file_bytes).map_err(weights)?;
    let mut header = vec![0; usize::try_from(len).map_err(|_| weights("has too large a header".to_owned()))?];
    file.read_exact(&mut header).map_err(io)?;
    let header =
        String::from_utf8(header).map_err(|_| weights("has a header that is not UTF-8".to_owned()))?;
    Ok(TensorFile { name, header, file_bytes })
}

/// The headers of all of a folder's safetensors files.
pub(super) fn read_tensor_files(dir: &Path) -> Result<Vec<TensorFile>, BaseError> {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for path in weight_files(dir)? {
        match read_tensor_file(&path) {
            Ok(file) => files.push(file),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(BaseError::Many(errors)),
    }
}
