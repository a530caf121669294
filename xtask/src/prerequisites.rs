//! What a fresh machine lacks, installed where that can be done without asking, and said where not.

use std::{path::Path, process::Command};

use anyhow::{Context as _, bail};
use lorafleet_postgres::Binaries;

use crate::command::{must, output, succeeds};

/// Makes sure that the programs that check deploy/ are here: kubectl and Prometheus.
///
/// # Errors
/// When one is not and cannot be installed; says what to do.
pub fn deployment() -> anyhow::Result<()> {
    for (program, package) in [("kubectl", "kubernetes-client"), ("prometheus", "prometheus")] {
        let there = || Command::new(program).args(["--help"]).output().is_ok();
        if there() {
            continue;
        }
        let by_hand = format!("{program} is missing and could not be installed: apt-get install {package}");
        if !Path::new("/etc/debian_version").exists() {
            bail!("{program} is missing; install it, on PATH (Debian's package is {package})");
        }
        eprintln!("{program} is missing; installing Debian's package");
        let installed = apt(&["update", "-q"])
            .and_then(|()| apt(&["install", "-y", "-q", "--no-install-recommends", package]));
        installed.context(by_hand)?;
        if !there() {
            bail!("apt-get installed {package}, but {program} is still not to be found");
        }
    }
    Ok(())
}

/// Makes sure that PostgreSQL's programs are here.
///
/// # Errors
/// When they are not and cannot be installed; says what to do.
pub fn postgres() -> anyhow::Result<()> {
    if Binaries::find().is_ok() {
        return Ok(());
    }
    if !Path::new("/etc/debian_version").exists() {
        Binaries::find()?;
    }
    eprintln!("PostgreSQL's programs are missing; installing Debian's package");
    let installed = apt(&["update", "-q"])
        .and_then(|()| apt(&["install", "-y", "-q", "--no-install-recommends", "postgresql"]));
    installed.context("PostgreSQL could not be installed; do it by hand: apt-get install postgresql")?;
    Binaries::find().context("apt-get installed postgresql, but its programs are still not to be found")?;
    Ok(())
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let mut command = if is_root()? {
        Command::new("apt-get")
    } else if Command::new("sudo").arg("-n").arg("true").output().is_ok_and(|output| output.status.success())
    {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    } else {
        bail!("this needs root, and sudo does not work without a password");
    };
    // No server of the system's own is wanted: only the programs.
    must(command.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_root() -> anyhow::Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Makes sure that rustfmt and clippy belong to the toolchain.
///
/// # Errors
/// When they do not and rustup cannot add them.
pub fn lints() -> anyhow::Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there =
            crate::command::cargo(&[tool, "--version"]).output().is_ok_and(|output| output.status.success());
        if !there && !succeeds(Command::new("rustup").args(["component", "add", component]))? {
            bail!("`cargo {tool}` is missing; install the {component} component of your Rust toolchain");
        }
    }
    Ok(())
}
