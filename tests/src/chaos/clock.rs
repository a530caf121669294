//! A wall clock of a program's own, which can jump while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

const SOURCE: &str = include_str!("clock.c");

/// The library that shifts a program's clock; made by the C compiler that Rust links with.
pub struct ClockLibrary {
    path: PathBuf,
}

/// One program's clock.
pub struct Clock {
    shift: PathBuf,
    library: PathBuf,
}

impl ClockLibrary {
    /// Compiles it into `dir`; an error where there is no C compiler.
    pub fn build(dir: &Path) -> Result<ClockLibrary> {
        let (source, path) = (dir.join("clock.c"), dir.join("clock.so"));
        fs::write(&source, SOURCE)?;
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&path)
            .arg(&source)
            .arg("-ldl")
            .output()
            .context("run cc")?;
        if !output.status.success() {
            bail!("cc: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(ClockLibrary { path })
    }

    /// A clock that goes right until it is told otherwise; its file lies at `shift`.
    pub fn clock(&self, shift: PathBuf) -> Result<Clock> {
        fs::write(&shift, 0_i64.to_ne_bytes())?;
        Ok(Clock { shift, library: self.path.clone() })
    }
}

impl Clock {
    /// What a program needs in its environment to go by this clock.
    pub fn env(&self) -> [(String, String); 2] {
        [
            ("LD_PRELOAD".into(), self.library.display().to_string()),
            ("LORAFLEET_CHAOS_CLOCK".into(), self.shift.display().to_string()),
        ]
    }

    /// From now on the clock is wrong by so many seconds.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options().write(true).open(&self.shift)?;
        Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_the_jump() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(library) = ClockLibrary::build(dir.path()) else { return };
        let clock = library.clock(dir.path().join("shift")).unwrap();
        let year = |clock: &Clock| {
            let output = Command::new("date").arg("-u").arg("+%Y").envs(clock.env()).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let now = year(&clock);
        clock.jump(2 * 366 * 86_400).unwrap();
        assert!(year(&clock) >= now + 2);
    }
}
