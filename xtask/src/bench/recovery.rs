//! How long a gang stands still when a member dies, and how soon a newcomer trains.

use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::row::{Row, Target};
use crate::{command::output, fleet, workspace::binary};

/// The default of `--peer-silence`, in seconds.
const SILENCE: f64 = 5.0;

pub fn run() -> anyhow::Result<Vec<Row>> {
    fleet::build()?;
    let text = output(Command::new(binary("lorafleet-chaos")).arg("recovery"))?;
    let times: Value = serde_json::from_str(&text).context("what was measured is no JSON")?;
    let (recovery, silence, newcomer) =
        (sorted(&times, "recoveries")?, sorted(&times, "silences")?, sorted(&times, "newcomers")?);
    let row = |name: String, ours: f64, target| Row { name, ours, peer: None, target };
    let kills =
        format!("SIGKILL of one of 4 workers to the next step, less a usual step, of {}", recovery.len());
    Ok(vec![
        row(format!("{kills}: median, s"), median(&recovery), Target::AtMost(0.25)),
        row(format!("{kills}: worst, s"), worst(&recovery), Target::AtMost(1.0)),
        row(
            "SIGSTOP of one of 4 workers until the gang goes on, less the 5 s of silence that it is given: median, s".into(),
            median(&silence) - SILENCE,
            Target::AtMost(1.0),
        ),
        row("the same, worst, s".into(), worst(&silence) - SILENCE, Target::AtMost(2.0)),
        row(
            "start of a newcomer's process to the gang's first step with it: median, s".into(),
            median(&newcomer),
            Target::None,
        ),
    ])
}

fn sorted(times: &Value, name: &str) -> anyhow::Result<Vec<f64>> {
    let list = times[name].as_array().with_context(|| format!("no {name} in {times}"))?;
    let mut list: Vec<f64> = list.iter().filter_map(Value::as_f64).collect();
    ensure!(!list.is_empty(), "no {name} were measured");
    list.sort_by(f64::total_cmp);
    Ok(list)
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

fn worst(sorted: &[f64]) -> f64 {
    sorted.last().copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_between_the_middle_ones() {
        assert_eq!(
            (median(&[1.0, 2.0, 4.0]), median(&[1.0, 2.0, 4.0, 9.0]), worst(&[1.0, 9.0])),
            (2.0, 3.0, 9.0)
        );
    }
}
