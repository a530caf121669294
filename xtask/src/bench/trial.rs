//! One job through a whole fleet, for benches that measure what comes out of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::peer::Peer;
use crate::{command::must, command::output, fleet::Fleet, workspace::target};

/// The base of an example, made by `examples/models.py` with the peer's Python; kept for the next run.
///
/// # Errors
/// When it cannot be made.
pub fn base(name: &str, peer: &Peer) -> anyhow::Result<PathBuf> {
    let dir = target().join("bench/models").join(name);
    if !dir.join("tokenizer.json").exists() {
        let script = crate::workspace::root().join("examples/models.py");
        must(Command::new(peer.python()).arg(script).arg(name).arg(&dir))?;
    }
    Ok(dir)
}

/// Submits a job file of this text, follows it on the screen to its end, and returns its result as JSON.
///
/// # Errors
/// When it does not succeed.
pub fn run(fleet: &Fleet, name: &str, text: &str) -> anyhow::Result<Value> {
    let path = target().join("bench").join(format!("{name}.yaml"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    must(fleet.lorafleet().arg("submit").arg(&path).arg("--watch"))?;
    let list: Value = serde_json::from_str(&output(fleet.lorafleet().args(["list", "--json"]))?)?;
    let jobs = list["jobs"].as_array().context("the fleet lists no jobs")?;
    let job = jobs.iter().find(|job| job["spec"]["displayName"] == name);
    let job = job.and_then(|job| job["name"].as_str()).with_context(|| format!("no job {name} in {list}"))?;
    let job: Value = serde_json::from_str(&output(fleet.lorafleet().args(["get", job, "--json"]))?)?;
    ensure!(job["result"].is_object(), "the job {name} has no result: {job}");
    Ok(job["result"].clone())
}

/// A number of a result; 64-bit ones are texts in protobuf's JSON.
///
/// # Errors
/// When it is not there.
pub fn number(result: &Value, field: &str) -> anyhow::Result<f64> {
    let value = &result[field];
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.with_context(|| format!("no {field} in {result}"))
}

/// A score of the result after training.
///
/// # Errors
/// When it is not there.
pub fn score(result: &Value, name: &str) -> anyhow::Result<f64> {
    let scores = result["scoresAfter"].as_array().context("the result has no scores")?;
    let score = scores.iter().find(|score| score["name"] == name);
    score.and_then(|score| score["value"].as_f64()).with_context(|| format!("no {name} in {result}"))
}

/// A path as YAML and JSON write it.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
