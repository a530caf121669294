//! One program that `up` runs: how it is started, tied to our life, and stopped.

use std::{
    fs::OpenOptions,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

/// What a local fleet must not take from the environment: it has its own database, store and addresses.
const NOT_OURS: [&str; 10] = [
    "LORAFLEET_DATABASE_DIRECT_URL",
    "LORAFLEET_WORKER_STORE",
    "LORAFLEET_COLLECTIVE_ADVERTISE",
    "LORAFLEET_WORKER_DEVICE",
    "LORAFLEET_WORKERS_ON_MACHINE",
    "LORAFLEET_TOKEN",
    "LORAFLEET_REQUIRE_TOKENS",
    "LORAFLEET_BOOTSTRAP_TOKEN",
    "DATABASE_URL",
    "PGHOST",
];

/// How to start a program.
#[derive(Debug, Clone)]
pub struct Program {
    /// What people call it; also its log's name.
    pub name: String,
    /// The binary.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it finds in its environment besides ours.
    pub env: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    child: tokio::process::Child,
    pid: Pid,
}

impl Program {
    /// Starts it, in a process group of its own: a Ctrl-C in the terminal reaches only `up`, which stops all in order.
    ///
    /// Must be called on the main thread: the kernel ties a child's life to the thread that started it.
    ///
    /// # Errors
    /// When the binary or the log cannot be opened.
    pub fn start(&self) -> anyhow::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.binary);
        for name in NOT_OURS {
            command.env_remove(name);
        }
        command
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().with_context(|| format!("cannot write {}", self.log.display()))?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        die_with_us(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Child { child, pid: pid.context("a child without a process id")? })
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 15;
        let text = std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("\n  | {line}")).collect()
    }
}

impl Child {
    /// The process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until it ends.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to finish what it does.
    pub fn ask_to_stop(&self) {
        // It may have ended already; it is not reaped before `ended` says so, so the id is still its own.
        let _ = kill_process(self.pid, Signal::TERM);
    }

    /// Waits until it has ended, and kills it after `limit`; false if that was needed.
    pub async fn gone_within(&mut self, limit: Duration) -> bool {
        if tokio::time::timeout(limit, self.child.wait()).await.is_ok() {
            return true;
        }
        // Only fails when it ended meanwhile.
        let _ = self.child.kill().await;
        false
    }
}

/// The kernel kills the child when the thread that started it ends, however that happens. Every part of the fleet
/// survives a kill at any instant by design, so nothing gentler is needed.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    let us = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() == Some(us) {
            return Ok(());
        }
        // We died between fork and the line above: the signal will not come.
        Err(std::io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()))
    };
    // SAFETY: runs between fork and exec, where only async-signal-safe things are allowed: three system calls, no
    // allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_us(_command: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &std::path::Path) -> Program {
        Program {
            name: "shell".into(),
            binary: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("GREETING".into(), "hello".into())],
            log: log.to_owned(),
        }
    }

    #[tokio::test]
    async fn output_goes_to_the_log_and_its_end_can_be_told() {
        let dir = tempfile::tempdir().unwrap();
        let program =
            shell("for i in $(seq 30); do echo line $i; done; echo $GREETING >&2", &dir.path().join("log"));
        let mut child = program.start().unwrap();
        assert!(child.ended().await.unwrap().success());
        let tail = program.log_tail();
        assert_eq!(tail.lines().filter(|line| !line.is_empty()).count(), 15);
        assert!(tail.ends_with("| line 30\n  | hello"), "{tail}");
    }

    #[tokio::test]
    async fn one_that_is_asked_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = shell("exec sleep 600", &dir.path().join("log")).start().unwrap();
        child.ask_to_stop();
        assert!(child.gone_within(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
        let program = shell(script, &dir.path().join("log"));
        let mut child = program.start().unwrap();
        while !program.log_tail().contains("deaf") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.ask_to_stop();
        assert!(!child.gone_within(Duration::from_millis(50)).await);
        assert!(child.ended().await.unwrap().code().is_none(), "a signal ended it");
    }

    #[test]
    fn a_missing_binary_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let program =
            Program { binary: "/nowhere/lorafleet-worker".into(), ..shell("", &dir.path().join("log")) };
        let error = tokio::runtime::Runtime::new().unwrap().block_on(async { program.start() }).unwrap_err();
        assert!(error.to_string().contains("/nowhere/lorafleet-worker"), "{error}");
    }
}
