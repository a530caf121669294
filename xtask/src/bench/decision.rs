//! One scheduling decision with 100,000 jobs in the queue and 10,000 workers, by what the fleet is about.

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    peer::last_json,
    row::{Row, Target},
};
use crate::{command::output, fleet, workspace::binary};

/// Cases, and what they are.
const CASES: [(&str, &str); 5] = [
    ("full", "nothing free"),
    ("empty", "all free"),
    ("blocked", "a fifth free, the first job needs half of the fleet, others overtake it"),
    ("preemption", "nothing free, jobs of lower priority go back to the queue"),
    ("shrinking", "nothing free, half of the gangs hold more than they need"),
];

pub fn run() -> anyhow::Result<Vec<Row>> {
    fleet::build()?;
    let text = output(Command::new(binary("lorafleet-scheduler")).arg("decision"))?;
    rows(&last_json(&text).context("lorafleet-scheduler printed no figures")?)
}

fn rows(figures: &Value) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (case, title) in CASES {
        let parts = [
            ("median_ms", "median, ms (aim 10)", Target::AtMost(50.0)),
            ("worst_ms", "worst of 21, ms", Target::AtMost(50.0)),
            ("cpu_ms", "mean of its processor time, ms", Target::None),
        ];
        for (part, what, target) in parts {
            let ours = figures[case][part].as_f64().with_context(|| format!("no {part} of {case}"))?;
            rows.push(Row { name: format!("a decision, {title}: {what}"), ours, peer: None, target });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn each_case_has_its_rows() {
        let figures: Map<String, Value> = CASES
            .iter()
            .map(|(case, _)| ((*case).to_owned(), json!({"median_ms": 9.0, "worst_ms": 51.0, "cpu_ms": 8.0})))
            .collect();
        let rows = rows(&figures.into()).unwrap();
        assert_eq!(rows.len(), 3 * CASES.len());
        assert_eq!([rows[0].met(), rows[1].met(), rows[2].met()], [Some(true), Some(false), None]);
        assert!(super::rows(&json!({})).is_err());
    }
}
