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

/// What a tokenizer is built from where there is no tokenizer.json.
const VOCABULARIES: &[&str] = &["merges.txt", "vocab.json", "vocab.txt"];
/// The file that every base has.
pub const BASE_CONFIG: &str = "config.json";

/// Names of the files in a folder that make up a base, sorted: what is uploaded, digested and loaded. Anything else
/// in the folder (README, other frameworks' weights) is no part of it.
///
/// # Errors
/// config.json or weights are missing, or the index of sharded weights is damaged.
pub fn base_files(dir: &Path) -> Result<Vec<String>, BaseError> {
    if !dir.is_dir() {
        return Err(BaseError::NotAFolder(dir.to_owned()));
    }
    weight_names(dir)?;
    let io = |source| BaseError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let index = if names.iter().any(|name| name == SINGLE) { None } else { Some(read_index(dir)?) };
    needed_files(&names, index.as_deref())
}

/// Which of these files make up a base, sorted, wherever they are. `index` is the text of
/// `model.safetensors.index.json`, needed where the weights are sharded; without it, its own name stands for the shards.
///
/// # Errors
/// config.json or weights are not among them, or the index is damaged.
pub fn needed_files(names: &[String], index: Option<&str>) -> Result<Vec<String>, BaseError> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if !has(BASE_CONFIG) {
        return Err(BaseError::MissingFile { file: BASE_CONFIG.to_owned(), hint: None });
    }
    let mut files = BTreeSet::from([BASE_CONFIG.to_owned()]);
    match index {
        _ if has(SINGLE) => drop(files.insert(SINGLE.to_owned())),
        _ if !has(INDEX) => return Err(no_weights(has)),
        Some(index) => {
            files.extend(shards(index)?);
            files.insert(INDEX.to_owned());
        }
        None => drop(files.insert(INDEX.to_owned())),
    }
    let missing: Vec<_> = files
        .iter()
        .filter(|name| !has(name))
        .map(|name| BaseError::MissingFile { file: name.clone(), hint: Some(format!("; {INDEX} names it")) })
        .collect();
    if !missing.is_empty() {
        return Err(BaseError::Many(missing));
    }
    let vocabularies = VOCABULARIES.iter().filter(|_| !has("tokenizer.json"));
    let others = OPTIONAL.iter().chain(vocabularies).filter(|name| has(name));
    files.extend(others.map(|name| (*name).to_owned()));
    Ok(files.into_iter().collect())
}

fn no_weights(has: impl Fn(&str) -> bool) -> BaseError {
    let old = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    let hint = match old.into_iter().find(|name| has(name)) {
        Some(old) => format!("; {}", convert(old)),
        None => format!(", and so is {INDEX}"),
    };
    BaseError::MissingFile { file: SINGLE.to_owned(), hint: Some(hint) }
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
    let shards = shards(&read_index(dir)?)?;
    let missing: Vec<_> = shards
        .iter()
        .filter(|name| !dir.join(name).is_file())
        .map(|name| BaseError::MissingFile { file: name.clone(), hint: Some(format!("; {INDEX} names it")) })
        .collect();
    if missing.is_empty() { Ok(shards) } else { Err(BaseError::Many(missing)) }
}

fn read_index(dir: &Path) -> Result<String, BaseError> {
    let path = dir.join(INDEX);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(no_weights(|name| dir.join(name).exists())),
        Err(source) => Err(BaseError::Io { path, source }),
    }
}

fn shards(index: &str) -> Result<Vec<String>, BaseError> {
    shard_names(index).map_err(|message| BaseError::Weights { file: INDEX.to_owned(), message })
}

/// How pickled weights, which could run code when they are opened, become weights that are only data.
fn convert(old: &str) -> String {
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
