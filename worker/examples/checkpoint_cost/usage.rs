//! What threads have cost so far: processor time and fresh pages, where the system tells (Linux).

use std::{fs, ops::Sub};

/// Seconds of a tick of /proc; the same on every Linux.
const TICK: f64 = 0.01;
/// The name of the threads that train begins with this.
pub const TRAINS: &str = "train-";

/// So far, or between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor seconds.
    pub seconds: f64,
    /// Pages that were touched for the first time.
    pub faults: f64,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { seconds: self.seconds - before.seconds, faults: self.faults - before.faults }
    }
}

impl Usage {
    /// Of a whole process, with the threads that have ended.
    pub fn of_process(id: u32) -> Self {
        read(&format!("/proc/{id}/stat")).map(|(_, usage)| usage).unwrap_or_default()
    }

    /// Of this process's threads that train.
    pub fn of_training() -> Self {
        let Ok(threads) = fs::read_dir("/proc/self/task") else { return Self::default() };
        let stats =
            threads.flatten().filter_map(|thread| read(&thread.path().join("stat").to_string_lossy()));
        stats.filter(|(name, _)| name.starts_with(TRAINS)).fold(Self::default(), |sum, (_, usage)| Self {
            seconds: sum.seconds + usage.seconds,
            faults: sum.faults + usage.faults,
        })
    }
}

/// The name in a `stat` file, and what it counts.
fn read(path: &str) -> Option<(String, Usage)> {
    let text = fs::read_to_string(path).ok()?;
    let (name, rest) = text.split_once('(')?.1.rsplit_once(") ")?;
    // From the third field on: see proc(5).
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let usage = Usage { seconds: TICK * (field(14)? + field(15)?), faults: field(10)? };
    Some((name.to_owned(), usage))
}
