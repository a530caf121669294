//! What a coordinator cannot start with is said, and the exit code tells.

use std::{process::Command, time::Duration};

use anyhow::Result;
use lorafleet_postgres::Postgres;
use lorafleet_tests::process::{Process, program};

fn coordinator(database_url: &str, store: &str) -> Result<(bool, String)> {
    let dir = tempfile::TempDir::new()?;
    let mut process = Process::start(
        "coordinator",
        Command::new(program("lorafleet-coordinator")?)
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .args(["--database-url", database_url, "--database-timeout", "1s", "--store", store]),
        dir.path(),
    )?;
    let status = process.wait(Duration::from_secs(60))?;
    Ok((status.success(), process.log()))
}

#[test]
fn postgres_that_is_down_is_tried_again_and_then_given_up() -> Result<()> {
    let nowhere = tempfile::TempDir::new()?;
    let url = format!("postgres:///lorafleet?host={}", nowhere.path().display());
    let (success, log) = coordinator(&url, "memory://")?;
    assert!(!success, "it started without a database\n{log}");
    assert!(
        log.contains("retry_in") && log.contains("--database-url right?"),
        "it does not say what it waits for, and that it gave up\n{log}"
    );
    Ok(())
}

#[test]
fn a_store_that_cannot_be_written_is_named() -> Result<()> {
    let postgres = Postgres::throwaway()?;
    let (success, log) = coordinator(&postgres.url("postgres"), "file:///proc/lorafleet")?;
    assert!(!success, "it started without a store\n{log}");
    assert!(log.contains("/proc/lorafleet"), "it does not name the store\n{log}");
    Ok(())
}
