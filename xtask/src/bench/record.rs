//! docs/benchmarks.md: what was measured, when, on which machine, with which versions.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use super::row::{Row, table};
use crate::{command::output, workspace::root};

const HEAD: &str = "# Benchmarks\n\nWritten by `cargo xtask bench NAME`; the latest is last. Ours and the peer's are \
measured in the same run, on the same machine.\n";

/// The machine's load average of the last minute, where it tells; a busy machine spoils what is measured, so that is
/// said at once.
pub fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    if load > 0.5 {
        eprintln!("warning: the machine is busy (load {load}): figures measured now are of little worth");
    }
    Some(load)
}

/// Adds a section with these rows, and the load of the machine before they were measured.
///
/// # Errors
/// When the file cannot be written, or the machine does not tell the date.
pub fn append(name: &str, rows: &[Row], load: Option<f64>) -> anyhow::Result<()> {
    let path = root().join("docs/benchmarks.md");
    let text = if path.exists() { read(&path)? } else { HEAD.to_owned() };
    let section = format!("\n## {name}, {}\n\n{}\n\n{}\n", date()?, machine(load), table(rows));
    let folder = path.parent().context("the file has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(&path, text + &section).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("written down in {}", path.display());
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn date() -> anyhow::Result<String> {
    Ok(output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?.trim().to_owned())
}

/// The machine and the versions, in one line; what cannot be found out is left out.
fn machine(load: Option<f64>) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m));
    let cores = std::thread::available_parallelism().map(|cores| format!("{cores} cores")).ok();
    let rustc = output(Command::new("rustc").arg("--version")).ok().map(|text| text.trim().to_owned());
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(root());
    let commit = output(&mut git).ok().map(|text| format!("commit {}", text.trim()));
    let load = load.map(|load| format!("load before {load}"));
    let parts = [model.map(str::to_owned), cores, rustc, commit, load];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
