//! All figures of the queue in one run, as one JSON object.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{
    history,
    idle::{self, assignments, quantile},
    peers, rig,
    rig::Rig,
    throughput::{self, Rates},
};

/// How much is measured, and beside whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Jobs of the throughput run; peers run as many.
    pub jobs: usize,
    /// Clients at once in it.
    pub clients: usize,
    /// Workers in it.
    pub workers: usize,
    /// Workers that only send heartbeats.
    pub idle_workers: usize,
    /// Finished jobs in history.
    pub history: u64,
    /// Peers: a name, a program and its script.
    pub peers: Vec<(String, PathBuf, PathBuf)>,
    /// Only figures whose name begins so.
    pub only: Option<String>,
}

/// Measures one thing after another and tells each as it is known.
///
/// # Errors
/// When something that should work does not.
pub async fn measure(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Value> {
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name.starts_with(only));
    let postgres = rig::postgres()?;
    let mut figures = Map::new();
    let mut note = |name: &str, value: Value| {
        say(&format!("{name}: {value}"));
        figures.insert(name.to_owned(), value);
    };
    if wanted("throughput") {
        let size = (plan.jobs, plan.clients);
        for (name, program, script) in &plan.peers {
            let rates = peers::run(&postgres, program, script, size).await?;
            note(&format!("throughput_{name}"), rates_json(rates));
        }
        let rates = throughput::whole(&postgres, plan.jobs, plan.clients, plan.workers).await?;
        note("throughput", rates_json(rates));
    }
    if wanted("submit") {
        note("submit_1", json!(throughput::submissions(&postgres, plan.jobs / 4, 1).await?));
        note("submit_32", json!(throughput::submissions(&postgres, plan.jobs, 32).await?));
    }
    if wanted("assign") {
        let rig = Rig::start(&postgres, &[]).await?;
        let seconds = assignments(&rig, 4, 300).await?;
        note("assign_median_s", json!(quantile(&seconds, 0.5)));
        note("assign_p99_s", json!(quantile(&seconds, 0.99)));
    }
    if wanted("beats") {
        let beats = idle::beats(&postgres, plan.idle_workers, Duration::from_secs(30)).await?;
        note("beats_cores", json!(beats.cores));
        note("beats_missed", json!(beats.missed));
    }
    if wanted("history") {
        let cost = history::cost(&postgres, plan.history, 100).await?;
        note("history_jobs", json!(plan.history));
        note("history_without_s", json!(cost.without));
        note("history_with_s", json!(cost.with));
    }
    Ok(Value::Object(figures))
}

fn rates_json(rates: Rates) -> Value {
    json!({ "jobs_per_s": rates.jobs_per_s, "submitted_per_s": rates.submitted_per_s })
}
