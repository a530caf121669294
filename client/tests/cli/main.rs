//! The `lorafleet` command against a scripted coordinator: what it sends, what it prints, how it exits.

#![allow(clippy::unwrap_used)] // Helpers of tests: what is unexpected in them fails the test.

mod artifacts;
mod coordinator;
mod errors;
mod hub;
mod jobs;
mod mirror;
mod submit;
mod tenants;
mod watch;

use std::{path::Path, process::Output};

use coordinator::Coordinator;

/// What one run of the command came to.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `lorafleet` against a coordinator.
async fn lorafleet(coordinator: &Coordinator, args: &[&str]) -> Ran {
    lorafleet_at(&coordinator.url, args, None).await
}

async fn lorafleet_at(url: &str, args: &[&str], cache: Option<&Path>) -> Ran {
    let cache = cache.map(|cache| ("XDG_CACHE_HOME", cache.to_str().unwrap()));
    lorafleet_with(url, args, cache.as_slice()).await
}

async fn lorafleet_with(url: &str, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lorafleet"));
    command.args(args).env("LORAFLEET_COORDINATOR", url).env("TZ", "UTC").env_remove("RUST_LOG");
    for name in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
}
