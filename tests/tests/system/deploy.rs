//! What deploy/ holds is true: Kubernetes' own types take the manifests, and they name what the programs know.

mod board;
mod compose;
mod manifests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lorafleet_tests::process::program;
use serde_json::Value;

/// The project's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// A file of YAML, or of JSON, which is YAML too.
fn yaml(path: &str) -> Result<Value> {
    serde_saphyr::from_str(&read(path)?).with_context(|| path.to_owned())
}

fn object<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// What a program knows, by its own word.
struct Known {
    program: &'static str,
    words: BTreeSet<String>,
}

impl Known {
    fn of(program_name: &'static str) -> Result<Known> {
        let output = Command::new(program(program_name)?).arg("--help").output()?;
        ensure!(output.status.success(), "{program_name} --help: {}", output.status);
        let help = String::from_utf8(output.stdout)?;
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
        Ok(Known { program: program_name, words: help.split(word).map(str::to_owned).collect() })
    }

    /// The program that an image is made for.
    fn by_image(image: &str) -> Result<Option<Known>> {
        let name = image.rsplit('/').next().unwrap_or_default();
        match name.split(':').next() {
            Some("lorafleet-coordinator") => Known::of("lorafleet-coordinator").map(Some),
            Some("lorafleet-worker") => Known::of("lorafleet-worker").map(Some),
            _ => Ok(None),
        }
    }

    /// The flags exist; returns (flag, value).
    fn flags<'a>(&self, args: impl Iterator<Item = &'a Value>) -> Result<Vec<(&'a str, &'a str)>> {
        args.map(|arg| {
            let arg = arg.as_str().context("an argument that is no text: quote it")?;
            let (flag, value) = arg.split_once('=').with_context(|| format!("{arg}: write --flag=value"))?;
            ensure!(self.words.contains(flag), "{} knows no {flag}", self.program);
            Ok((flag, value))
        })
        .collect()
    }

    /// The variable is one of the program's, or of the object store's.
    fn variable(&self, name: &str) -> Result<()> {
        let store = ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
        ensure!(store || self.words.contains(name), "{} reads no {name}", self.program);
        Ok(())
    }
}

/// The ports that a program listens on, by its flags.
fn listens(flags: &[(&str, &str)]) -> Result<BTreeSet<i64>> {
    let on = flags.iter().filter(|(flag, _)| flag.ends_with("listen"));
    on.map(|(flag, value)| {
        let port =
            value.strip_prefix("0.0.0.0:").with_context(|| format!("{flag}={value} is for one pod only"))?;
        Ok(port.parse()?)
    })
    .collect()
}
