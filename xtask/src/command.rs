//! Running other programs: shown as they run, or with their output read.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, bail};

use crate::workspace::root;

/// Cargo, in the repository's root.
pub fn cargo(args: &[&str]) -> Command {
    // Cargo tells its children which cargo it is; the toolchain stays the same.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a program to its end, its output shown; true when it succeeded.
///
/// # Errors
/// When it cannot be started.
pub fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    announce(command);
    let status = command.status().with_context(|| format!("cannot start {}", name(command)))?;
    Ok(status.success())
}

/// Runs a program that must succeed, its output shown.
///
/// # Errors
/// When it cannot be started or fails.
pub fn must(command: &mut Command) -> anyhow::Result<()> {
    if !succeeds(command)? {
        bail!("`{}` failed", line(command));
    }
    Ok(())
}

/// Runs a program that must succeed, and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started, fails, or does not write UTF-8.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` did not write text", line(command)))
}

/// Runs a program, its output both shown and returned line by line (standard output and error as they come); and
/// whether it succeeded.
///
/// # Errors
/// When it cannot be started or read.
pub fn shown_and_read(command: &mut Command) -> anyhow::Result<(Vec<String>, bool)> {
    announce(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", name(command)))?;
    let (lines, receiver) = mpsc::sync_channel(1024);
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let readers =
        [forward(stdout, std::io::stdout(), lines.clone()), forward(stderr, std::io::stderr(), lines)];
    let read = receiver.into_iter().collect();
    for reader in readers {
        reader.join().map_err(|_| anyhow::anyhow!("a reader of {} died", name(command)))?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {}", name(command)))?;
    Ok((read, status.success()))
}

fn forward(
    from: impl Read + Send + 'static,
    mut to: impl std::io::Write + Send + 'static,
    lines: mpsc::SyncSender<String>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            // A closed terminal must not stop the tests.
            let _ = writeln!(to, "{line}");
            if lines.send(line).is_err() {
                return;
            }
        }
    })
}

fn announce(command: &Command) {
    eprintln!("\u{2192} {}", line(command));
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let short = |program: &OsStr| {
        std::path::Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
    };
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(short(command.get_program())).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_read() {
        let (mut lines, success) =
            shown_and_read(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        lines.sort();
        assert_eq!(lines, ["err", "out"]);
        assert!(!success);
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = must(Command::new("sh").args(["-c", "exit 1"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 1` failed");
    }
}
