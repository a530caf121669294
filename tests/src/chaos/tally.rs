//! How many faults of each kind had an effect, and what was found.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use super::{check::Findings, kind::Kind};

/// Faults of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Done to a fleet, or set for it.
    pub done: u64,
    /// Of these, those whose effect was seen.
    pub effective: u64,
}

/// What a series of runs came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub kinds: BTreeMap<Kind, Count>,
    pub jobs: u64,
    /// Steps in flight that were computed again.
    pub again: u64,
    /// Checkpoints that were read, by gangs of which nobody had lived.
    pub reads: u64,
    pub violations: u64,
}

impl Tally {
    /// Adds a run.
    pub fn add(&mut self, faults: &[(Kind, bool)], findings: &Findings) {
        for (kind, effective) in faults {
            let count = self.kinds.entry(*kind).or_default();
            count.done += 1;
            count.effective += u64::from(*effective);
        }
        self.jobs += 1;
        self.again += findings.again;
        self.reads += findings.reads;
        self.violations += findings.violations.len() as u64;
    }

    /// Of `kinds`, those that had fewer effective faults than `wanted`.
    pub fn rare(&self, kinds: &[Kind], wanted: u64) -> Vec<Kind> {
        let few = |kind: &&Kind| self.kinds.get(kind).is_none_or(|count| count.effective < wanted);
        kinds.iter().filter(few).copied().collect()
    }

    /// Adds another series.
    pub fn merge(&mut self, other: &Tally) {
        for (kind, more) in &other.kinds {
            let count = self.kinds.entry(*kind).or_default();
            count.done += more.done;
            count.effective += more.effective;
        }
        self.jobs += other.jobs;
        self.again += other.again;
        self.reads += other.reads;
        self.violations += other.violations;
    }

    /// As a Markdown table with a sentence before it.
    pub fn table(&self) -> String {
        let effective: u64 = self.kinds.values().map(|count| count.effective).sum();
        let mut text = format!(
            "jobs: {}, effective faults: {effective}, violations: {}, steps in flight computed again: {}, checkpoints \
             read when nobody lived: {}\n\n| fault | done | effective |\n| --- | ---: | ---: |\n",
            self.jobs, self.violations, self.again, self.reads
        );
        for (kind, count) in &self.kinds {
            let _ = writeln!(text, "| {kind} | {} | {} |", count.done, count.effective);
        }
        text
    }

    /// Reads [`Tally::table`] back; nothing where the text holds none.
    pub fn read(text: &str) -> Option<Tally> {
        let line = text.lines().find(|line| line.starts_with("jobs: "))?;
        let numbers: Vec<u64> =
            line.split(", ").map(|part| part.rsplit(": ").next()?.parse().ok()).collect::<Option<_>>()?;
        let [jobs, _, violations, again, reads] = numbers[..] else { return None };
        let row = |line: &str| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [kind, done, effective] = cells[..] else { return None };
            Some((kind.parse().ok()?, Count { done: done.parse().ok()?, effective: effective.parse().ok()? }))
        };
        Some(Tally { kinds: text.lines().filter_map(row).collect(), jobs, again, reads, violations })
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let kind = |(kind, count): (&Kind, &Count)| {
            (kind.to_string(), json!({"done": count.done, "effective": count.effective}))
        };
        json!({
            "jobs": self.jobs,
            "violations": self.violations,
            "again": self.again,
            "reads": self.reads,
            "kinds": self.kinds.iter().map(kind).collect::<serde_json::Map<_, _>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::kind::Point;

    #[test]
    fn a_table_is_read_back() {
        let mut tally = Tally::default();
        let findings = Findings { again: 2, reads: 1, violations: Vec::new() };
        let point = Kind::Failpoint(Point::MidReduction);
        tally.add(&[(Kind::KillWorker, true), (Kind::KillWorker, false), (point, true)], &findings);
        tally.add(&[], &findings);
        assert_eq!(tally.kinds[&Kind::KillWorker], Count { done: 2, effective: 1 });
        assert_eq!(Tally::read(&format!("# Tally\n\n{}\nmore\n", tally.table())), Some(tally.clone()));
        let mut twice = tally.clone();
        twice.merge(&tally);
        assert_eq!((twice.jobs, twice.again, twice.kinds[&point].effective), (4, 8, 2));
        assert_eq!(Tally::read("nothing"), None);
        assert_eq!(twice.rare(&[Kind::KillWorker, Kind::KillAll, point], 2), [Kind::KillAll]);
    }
}
