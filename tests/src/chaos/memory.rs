//! A limit of a process's memory, by a control group of either version.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// A control group; removed when dropped.
pub struct MemoryLimit {
    dir: PathBuf,
}

impl MemoryLimit {
    /// Moves the process into a group that may take so many bytes more than it has.
    pub fn set(pid: u32, bytes: u64) -> Result<MemoryLimit> {
        let (root, file) = hierarchy().context("no control groups for memory")?;
        let dir = root.join(format!("lorafleet-chaos-{pid}"));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let limit = MemoryLimit { dir };
        fs::write(limit.dir.join(file), bytes.to_string())?;
        fs::write(limit.dir.join("cgroup.procs"), pid.to_string())?;
        Ok(limit)
    }

    /// Whether this machine has them, and lets us use them.
    pub fn is_possible() -> bool {
        let Some((root, _)) = hierarchy() else { return false };
        let dir = root.join(format!("lorafleet-chaos-try-{}", std::process::id()));
        let possible = fs::create_dir(&dir).is_ok();
        let _ = fs::remove_dir(&dir);
        possible
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group that still holds a process stays until that has ended.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Where groups with memory limits are made, and the file that sets one.
fn hierarchy() -> Option<(PathBuf, &'static str)> {
    let first = PathBuf::from("/sys/fs/cgroup/memory");
    if first.join("cgroup.procs").exists() {
        return Some((first, "memory.limit_in_bytes"));
    }
    let unified = PathBuf::from("/sys/fs/cgroup");
    let controllers = fs::read_to_string(unified.join("cgroup.subtree_control")).ok()?;
    controllers.split_whitespace().any(|name| name == "memory").then_some((unified, "memory.max"))
}
