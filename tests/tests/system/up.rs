//! `lorafleet up`: a whole fleet from one command, whose jobs go on when it is started again on the same folder.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use lorafleet_tests::{
    JobFile,
    fleet::PATIENCE,
    process::{Process, program},
    wait::until,
};
use serde_json::Value;

/// Starts `up` on a folder and waits until it says where its coordinator is.
async fn up(data: &Path, logs: &Path) -> Result<(Process, String)> {
    let mut command = Command::new(program("lorafleet")?);
    command.args(["up", "--port", "0", "--workers", "2", "--data-dir"]).arg(data).env("HOME", logs);
    let process = Process::start("up", &mut command, logs)?;
    let state = data.join("up.json");
    let url = until("`up` to be up", PATIENCE, || async {
        let Ok(text) = std::fs::read(&state) else { return Ok(None) };
        let state: Value = serde_json::from_slice(&text)?;
        Ok(state["coordinator"].as_str().map(String::from))
    })
    .await?;
    Ok((process, url))
}

fn lorafleet(url: &str, args: &[&str]) -> Result<Value> {
    let output = Command::new(program("lorafleet")?).args(["--coordinator", url]).args(args).output()?;
    if !output.status.success() {
        bail!("lorafleet {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Canonical protobuf JSON writes 64-bit integers as strings and leaves zeros out.
fn step(job: &Value) -> u64 {
    job["step"].as_str().and_then(|step| step.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_up_is_started_again() -> Result<()> {
    let dir = tempfile::TempDir::new()?;
    let (data, logs) = (dir.path().join("data"), dir.path());
    let file = JobFile { steps: 60, checkpoint_every: 5, workers: (2, 2), ..JobFile::default() }
        .write(dir.path())?;

    let (mut first, url) = up(&data, logs).await?;
    let submitted = lorafleet(&url, &["submit", &file.display().to_string(), "--json"])?;
    let name = submitted["name"].as_str().context("submit printed no name")?.to_owned();
    until("step 3", PATIENCE, || async {
        Ok((step(&lorafleet(&url, &["get", &name, "--json"])?) >= 3).then_some(()))
    })
    .await?;
    assert!(first.terminate(Duration::from_secs(90))?.success(), "`up` ended badly");

    let (mut second, url) = up(&data, logs).await?;
    let job = until("the job to end", PATIENCE, || async {
        let job = lorafleet(&url, &["get", &name, "--json"])?;
        Ok((job["state"] != "JOB_STATE_QUEUED" && job["state"] != "JOB_STATE_RUNNING").then_some(job))
    })
    .await?;
    assert_eq!(job["state"], "JOB_STATE_SUCCEEDED", "{job}");
    assert_eq!(job["attempt"], 2, "it did not run through the restart: {job}");
    assert!(second.terminate(Duration::from_secs(90))?.success());
    assert!(!data.join("up.json").exists(), "up.json outlived `up`");
    Ok(())
}
