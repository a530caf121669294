//! A child process that ends with its test, whose output is shown when the test fails.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// One running program of the fleet.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in a file under `log_dir`.
    pub fn start(name: &str, command: &mut Command, log_dir: &Path) -> Result<Process> {
        let log = log_dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Process { name: name.into(), child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: the process gets no chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill_process(Pid::from_raw(pid).context("pid 0")?, signal)?;
        Ok(())
    }

    /// Waits for the end; an error when it does not come.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                bail!("{} did not end within {deadline:?}\n{}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// All that it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it serves its metrics, by its log.
    pub fn metrics_address(&self) -> Result<String> {
        let log = self.log();
        let after = log.lines().find_map(|line| {
            let (_, rest) = line.split_once("metrics address=").or_else(|| line.split_once("metrics="))?;
            rest.split_whitespace().next()
        });
        Ok(after.with_context(|| format!("no address of metrics in\n{log}"))?.to_owned())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!("--- {} (last {} lines)\n{}", self.name, lines.len() - from, lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // It may end by itself in between; then there is nothing left to kill.
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        if thread::panicking() {
            let how = status.map_or_else(|e| e.to_string(), |s| format!("{s} (signal {:?})", s.signal()));
            eprintln!("{}\n--- {} ended: {how}", self.tail(), self.name);
        }
    }
}

/// Where cargo put the project's programs.
pub fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // target/debug/deps/test-… → target/debug; a program of this crate lies there itself.
    let folder = exe.parent().context("a program without a folder")?;
    let dir =
        if folder.ends_with("deps") { folder.parent().context("deps without a parent")? } else { folder };
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} is not built: run `cargo build --workspace --bins` (or `cargo xtask test`) first",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the system's; those of administrators are often outside PATH.
pub fn program_of(name: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Path::new);
    folders.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).unwrap_or_else(|| name.into())
}
