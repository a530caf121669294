//! Threads that work when nobody else wants a core: for what is written beside training.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tracing::debug;

/// The lowest that the system has for a thread: what trains goes first.
const NICE: i32 = 19;
/// Threads for files at most; sockets need none.
const FILE_THREADS: usize = 4;

/// A runtime all of whose threads let every other thread go first: sockets, encryption and files of an upload cost
/// training no core that it could use. It should live as long as the process, since connections of the store belong to it.
#[derive(Debug)]
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts its thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(FILE_THREADS)
            .thread_name("background")
            .on_thread_start(be_nice)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// For whoever has work for it.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle().clone()
    }
}

impl Drop for Background {
    /// Waits for nothing: a runtime may not be waited for where tasks run.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets every other thread go first.
pub(crate) fn be_nice() {
    // On Linux a priority belongs to a thread, and no process means the calling one; elsewhere it is the process's.
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::setpriority_process(None, NICE)
    {
        debug!(%error, "a background thread has the priority of all others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn its_threads_are_of_low_priority() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let background = Background::start().unwrap();
        let (of_tasks, of_files) = background.handle().block_on(async {
            let task = tokio::spawn(async move { priority() });
            let file = tokio::task::spawn_blocking(priority);
            (task.await.unwrap(), file.await.unwrap())
        });
        assert_eq!((of_tasks, of_files), (NICE, NICE));
        assert!(priority() < NICE, "only they");
    }
}
