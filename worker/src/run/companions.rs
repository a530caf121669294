//! Files that lie beside the trainer's in every checkpoint: they make it usable without the base's folder.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use lorafleet_spec::job::Method;
use lorafleet_store::FileName;

use super::{end::End, prepare::Parts};

/// Names of the classes in the order of their numbers, as a JSON list.
pub(super) const LABELS_FILE: &str = "labels.json";
/// Larger files of a base are none that a tokenizer needs.
const MOST: u64 = 64 << 20;

/// A classifier's label names; and after full fine-tuning the base's tokenizer, so that the checkpoint is a whole
/// Hugging Face folder.
pub(super) fn files(parts: &Parts) -> Result<BTreeMap<FileName, Bytes>, End> {
    let mut files = BTreeMap::new();
    if let Some(labels) = parts.train.labels.as_ref().filter(|labels| !labels.names().is_empty()) {
        let text = serde_json::to_vec_pretty(labels.names())
            .map_err(|error| End::Failed(format!("the labels have no JSON: {error}")))?;
        add(&mut files, LABELS_FILE, text)?;
    }
    if parts.job.adapter.method == Method::Full {
        let unreadable = |error| End::lost(format!("{}: {error}", parts.files.dir.display()));
        tokenizer_files(&parts.files.dir, &mut files).map_err(unreadable)?;
    }
    Ok(files)
}

/// Whatever the base's folder has beside its configuration and weights.
fn tokenizer_files(dir: &Path, files: &mut BTreeMap<FileName, Bytes>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let about = entry.metadata()?;
        let other = name == "config.json" || name.contains(".safetensors") || name == "SHA256SUMS";
        if other || !about.is_file() || about.len() > MOST {
            continue;
        }
        if let Ok(name) = name.parse() {
            files.insert(name, fs::read(entry.path())?.into());
        }
    }
    Ok(())
}

fn add(files: &mut BTreeMap<FileName, Bytes>, name: &str, contents: Vec<u8>) -> Result<(), End> {
    let parsed = name.parse().map_err(|error| End::lost(format!("{name}: {error}")))?;
    files.insert(parsed, contents.into());
    Ok(())
}
