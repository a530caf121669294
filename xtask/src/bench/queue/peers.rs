//! Other queues on Postgres, installed into target/bench from their registries.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    command::{must, succeeds},
    workspace::{root, target},
};

/// Installs what can be installed, and returns it as `lorafleet-queue measure --peer` reads it. Says what is missing.
///
/// # Errors
/// When the scripts cannot be copied.
pub fn install() -> anyhow::Result<Vec<String>> {
    let (from, to) = (root().join("xtask/peers/queue"), target().join("bench/queue-peers"));
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name())).context("cannot copy the peers' scripts")?;
    }
    let mut peers = Vec::new();
    if node(&to)? {
        peers.extend(
            [
                ("pg_boss", "pg_boss.js"),
                ("pg_boss_single", "pg_boss_single.js"),
                ("graphile_worker", "graphile_worker.js"),
            ]
            .map(|(name, script)| format!("{name}={},{}", "node", to.join(script).display())),
        );
    } else {
        eprintln!("no pg-boss and no graphile-worker: they need node 20, npm and its registry");
    }
    let python = to.join("venv/bin/python");
    if python_packages(&to, &python)? {
        let script = to.join("procrastinate_peer.py");
        peers.push(format!("procrastinate={},{}", python.display(), script.display()));
    } else {
        eprintln!("no procrastinate: it needs python3 with venv, pip and its registry");
    }
    Ok(peers)
}

fn node(folder: &Path) -> anyhow::Result<bool> {
    if folder.join("node_modules/pg-boss").is_dir() && folder.join("node_modules/graphile-worker").is_dir() {
        return Ok(true);
    }
    if !is_there("node") || !is_there("npm") {
        return Ok(false);
    }
    succeeds(Command::new("npm").args(["install", "--no-audit", "--no-fund"]).current_dir(folder))
}

fn python_packages(folder: &Path, python: &Path) -> anyhow::Result<bool> {
    let import = Command::new(python).args(["-c", "import procrastinate, psycopg_pool"]).output();
    if import.is_ok_and(|output| output.status.success()) {
        return Ok(true);
    }
    if !is_there("python3") {
        return Ok(false);
    }
    must(Command::new("python3").args(["-m", "venv", "venv"]).current_dir(folder))?;
    succeeds(
        Command::new(python)
            .args(["-m", "pip", "install", "-q", "-r", "requirements.txt"])
            .current_dir(folder),
    )
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}
