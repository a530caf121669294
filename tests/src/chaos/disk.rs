//! A small disk of a worker's own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::program_of;

/// A file system in memory; unmounted when dropped.
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts one at `at`, and fills it but for a few kilobytes.
    pub fn full(at: &Path) -> Result<Disk> {
        fs::create_dir_all(at)?;
        let output = Command::new(program_of("mount"))
            .args(["-t", "tmpfs", "-o", "size=1m", "lorafleet-chaos"])
            .arg(at)
            .output()
            .context("run mount")?;
        if !output.status.success() {
            bail!("mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let disk = Disk { at: at.to_owned() };
        fs::File::create(at.join("ballast"))?.write_all(&vec![0; 900 * 1024])?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a program may still have files open.
        let _ = Command::new(program_of("umount")).arg("-l").arg(&self.at).output();
    }
}
