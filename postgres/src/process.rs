//! One child process that dies with us.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Between two looks at whether a process has ended.
const POLL: Duration = Duration::from_millis(5);

/// A running child.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Dropped last, which ends the thread that is the child's parent in the kernel's eyes.
    _keeper: mpsc::Sender<()>,
}

impl Process {
    /// Starts the command in a process group of its own, so that a terminal's Ctrl-C reaches only us. On Linux the
    /// kernel sends it `death` when our process ends, however it ends.
    pub(crate) fn spawn(mut command: Command, death: Signal) -> io::Result<Process> {
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        die_with_parent(&mut command, death);
        // The kernel means the parent *thread*; one that a runtime ends when idle would take the child with it. So a
        // thread of its own starts the child, and waits until this Process is dropped.
        let (spawned, result) = mpsc::channel();
        let (keeper, until_dropped) = mpsc::channel::<()>();
        std::thread::Builder::new().name("postgres-keeper".into()).spawn(move || {
            // Nobody receives only if the caller's thread died meanwhile.
            let _ = spawned.send(command.spawn());
            let _ = until_dropped.recv();
        })?;
        let child = result.recv().map_err(|_| io::Error::other("the thread that starts Postgres died"))??;
        Ok(Process { child, _keeper: keeper })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks it to stop and waits until it has, `limit` at most; false when it has not.
    pub(crate) fn stop(&mut self, signal: Signal, limit: Duration) -> io::Result<bool> {
        if self.ended()?.is_some() {
            return Ok(true);
        }
        rustix::process::kill_process(Pid::from_child(&self.child), signal)?;
        let start = Instant::now();
        while self.ended()?.is_none() {
            if start.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    /// Kills it without asking.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, death: Signal) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(death))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(io::ErrorKind::NotConnected)); // it died before we could ask for the signal
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and neither allocates nor takes a lock.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, prepare) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _death: Signal) {}

/// A process that is not our child, by its id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Foreign(Pid);

impl Foreign {
    /// The process of this id, if there is one, be it a zombie.
    pub(crate) fn find(id: i32) -> Option<Foreign> {
        let pid = Pid::from_raw(id)?;
        // Not being allowed to signal it means that it is there.
        let gone = matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
        (!gone).then_some(Foreign(pid))
    }

    /// It has ended and nobody has asked how, as happens for ever in a container whose first process does not.
    pub(crate) fn is_zombie(self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_nonzero()));
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z')))
    }

    fn has_ended(self) -> bool {
        Foreign::find(self.0.as_raw_nonzero().get()).is_none() || self.is_zombie()
    }

    /// Its working directory; nothing where the system has no /proc or does not tell.
    pub(crate) fn working_directory(self) -> Option<std::path::PathBuf> {
        std::fs::read_link(format!("/proc/{}/cwd", self.0.as_raw_nonzero())).ok()
    }

    /// As [`Process::stop`].
    pub(crate) fn stop(self, signal: Signal, limit: Duration) -> io::Result<bool> {
        rustix::process::kill_process(self.0, signal)?;
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn outlives_the_thread_that_asked_for_it() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let spawn = move || Process::spawn(sleep, Signal::KILL).unwrap();
        let mut process = std::thread::spawn(spawn).join().unwrap();
        std::thread::sleep(Duration::from_millis(50)); // long enough for a signal to arrive, were there one
        assert!(process.ended().unwrap().is_none());
        assert!(process.stop(Signal::TERM, LIMIT).unwrap());
    }

    #[test]
    fn foreign_processes_can_be_stopped() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60").current_dir("/");
        let mut process = Process::spawn(sleep, Signal::KILL).unwrap();
        let foreign = Foreign::find(process.id() as i32).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(foreign.working_directory(), Some("/".into()));
        }
        let reap = std::thread::spawn(move || process.stop(Signal::CONT, LIMIT).unwrap());
        assert!(foreign.stop(Signal::TERM, LIMIT).unwrap());
        assert!(reap.join().unwrap());
        assert!(Foreign::find(i32::MAX).is_none());
    }
}
