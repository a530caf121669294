//! The rules of the `queue` section: labels, times, and what a job comes after.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;

use super::Check;
use crate::job::QueueSpec;

/// Jobs that one job may come after.
pub const MAX_AFTER: usize = 64;
/// Labels that one job may ask for.
const MAX_SELECTOR: usize = 32;
/// Tries beyond the first.
const MAX_RETRIES: u32 = 100;
/// Characters of a label's name or value.
const MAX_LABEL: usize = 63;

/// What is wrong with a label's name or value, if anything is.
#[must_use]
pub fn check_label(text: &str) -> Option<String> {
    let good = (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
    (!good).then(|| {
        format!("is {text:?}; it must be 1 to {MAX_LABEL} letters, digits, '-', '_', '.' or '/' of ASCII")
    })
}

impl Check {
    pub(super) fn queue(&mut self, spec: &pb::QueueSpec) -> QueueSpec {
        self.range("queue.selector", spec.selector.len(), 0, MAX_SELECTOR);
        for (name, value) in &spec.selector {
            for text in [name, value] {
                let wrong = check_label(text);
                self.rule(wrong.is_none(), &format!("queue.selector.{name}"), || wrong.unwrap_or_default());
            }
        }
        let not_before = self.time("queue.not_before", &spec.not_before);
        let deadline = self.time("queue.deadline", &spec.deadline);
        if let (Some(start), Some(end)) = (not_before, deadline) {
            self.rule(start < end, "queue.deadline", || {
                format!("is {}, not after `queue.not_before` ({})", spec.deadline, spec.not_before)
            });
        }
        self.rule(i64::try_from(spec.max_run_seconds).is_ok(), "queue.max_run_seconds", || {
            format!("is {}; it must be at most {}", spec.max_run_seconds, i64::MAX)
        });
        self.range("queue.retries", spec.retries, 0, MAX_RETRIES);
        self.after(&spec.after);
        QueueSpec {
            selector: spec.selector.clone(),
            not_before,
            deadline,
            max_run_seconds: (spec.max_run_seconds > 0).then_some(spec.max_run_seconds),
            after: spec.after.clone(),
            retries: spec.retries,
        }
    }

    fn time(&mut self, path: &str, text: &str) -> Option<DateTime<Utc>> {
        if text.is_empty() {
            return None;
        }
        let time = DateTime::parse_from_rfc3339(text).ok();
        self.rule(time.is_some(), path, || {
            format!("is {text:?}; it must be a time as in RFC 3339, such as 2027-01-31T18:00:00Z")
        });
        time.map(|time| time.with_timezone(&Utc))
    }

    fn after(&mut self, after: &[String]) {
        self.range("queue.after", after.len(), 0, MAX_AFTER);
        for (i, name) in after.iter().enumerate() {
            let path = format!("queue.after[{i}]");
            self.rule(!name.trim().is_empty(), &path, || "is empty".to_owned());
            self.rule(!after[..i].contains(name), &path, || format!("names {name} a second time"));
        }
    }
}
