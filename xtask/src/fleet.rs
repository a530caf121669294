//! A fleet on this machine for as long as the demo or a bench needs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    command::{cargo, must},
    workspace::binary,
};

/// A first start makes a database.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Workers drain first, by their own limit.
const STOP_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// Builds the three binaries, with cargo's own progress.
///
/// # Errors
/// When they do not build.
pub fn build() -> anyhow::Result<()> {
    // The whole workspace, so that cargo chooses the same features as for the tests, and compiles things once.
    must(&mut cargo(&["build", "--workspace", "--bins"]))
}

/// A running `lorafleet up`; stopped in order when dropped, and also when this process dies.
#[derive(Debug)]
pub struct Fleet {
    up: Child,
    state: PathBuf,
    url: String,
}

impl Fleet {
    /// Starts a fleet on free ports in a new folder, and waits until it works. What was in the folder is removed.
    ///
    /// # Errors
    /// When it does not start; its own messages have been shown.
    pub fn start(dir: &Path, workers: u16) -> anyhow::Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        let mut up = Command::new(binary("lorafleet"))
            .args([
                "up",
                "--port",
                "0",
                "--until-stdin-closes",
                "--workers",
                &workers.to_string(),
                "--data-dir",
            ])
            .arg(dir)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start `lorafleet up`")?;
        let state = dir.join("up.json");
        let deadline = Instant::now() + START_LIMIT;
        while !state.exists() {
            if let Some(status) = up.try_wait().context("cannot look after `lorafleet up`")? {
                bail!("`lorafleet up` did not start: {status}");
            }
            if Instant::now() > deadline {
                drop(up.stdin.take());
                bail!("`lorafleet up` was not ready within {} s", START_LIMIT.as_secs());
            }
            thread::sleep(POLL);
        }
        let mut fleet = Self { up, state, url: String::new() };
        fleet.url =
            fleet.read_state()?["coordinator"].as_str().context("up.json names no coordinator")?.to_owned();
        Ok(fleet)
    }

    /// The `lorafleet` command, speaking to this fleet.
    pub fn lorafleet(&self) -> Command {
        let mut command = Command::new(binary("lorafleet"));
        command.env("LORAFLEET_COORDINATOR", &self.url);
        command
    }

    /// The process id of one of its programs.
    ///
    /// # Errors
    /// When there is none of that name, or it does not run now.
    pub fn pid(&self, name: &str) -> anyhow::Result<u64> {
        let state = self.read_state()?;
        let programs = state["programs"].as_array().context("up.json lists no programs")?;
        let program = programs.iter().find(|program| program["name"] == name);
        program.and_then(|program| program["pid"].as_u64()).with_context(|| format!("{name} does not run"))
    }

    fn read_state(&self) -> anyhow::Result<Value> {
        let text = fs::read(&self.state).with_context(|| format!("cannot read {}", self.state.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", self.state.display()))
    }

    /// Stops everything in order.
    ///
    /// # Errors
    /// When it had to be killed, or did not end well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        // Its standard input ends, which tells it to stop.
        if self.up.stdin.take().is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            match self.up.try_wait().context("cannot look after `lorafleet up`")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("`lorafleet up` ended badly: {status}"),
                None if Instant::now() > deadline => break,
                None => thread::sleep(POLL),
            }
        }
        // Everything that it started dies with it.
        self.up.kill().context("cannot kill `lorafleet up`")?;
        self.up.wait().context("cannot wait for `lorafleet up`")?;
        bail!("`lorafleet up` did not stop within {} s and was killed", STOP_LIMIT.as_secs());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}
