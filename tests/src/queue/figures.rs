//! All figures of the queue in one run, as one JSON object.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Result;
use lorafleet_postgres::Postgres;
use serde_json::{Map, Value, json};

use super::{
    history,
    idle::{self, assignments},
    peers, restart, rig,
    rig::Rig,
    throughput::{self, Rates},
};
use crate::quantile::quantile;

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
    /// Times that the throughput run is made, ours and the peers' in turns; the medians count.
    pub rounds: usize,
    /// Only figures whose name begins so.
    pub only: Option<String>,
}

/// Measures one thing after another and tells each as it is known.
///
/// # Errors
/// When something that should work does not.
pub async fn measure(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Value> {
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name.starts_with(only));
    let mut postgres = rig::postgres()?;
    let mut figures = Map::new();
    let mut note = |name: &str, value: Value| {
        say(&format!("{name}: {value}"));
        figures.insert(name.to_owned(), value);
    };
    note("flush_s", json!(rig::flush_seconds()?));
    if wanted("throughput") {
        throughputs(&postgres, plan, &mut note).await?;
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
        note("beats_postgres_cores", json!(beats.postgres_cores));
        note("beats_missed", json!(beats.missed));
    }
    if wanted("history") {
        let cost = history::cost(&postgres, plan.history, 100).await?;
        note("history_jobs", json!(plan.history));
        note("history_without_s", json!(cost.without));
        note("history_with_s", json!(cost.with));
    }
    if wanted("restart") {
        let recovery = restart::recovery(&mut postgres, plan.jobs, plan.clients, plan.workers).await?;
        note("restart_succeeded", json!(recovery.succeeded));
        note("restart_resumed_s", json!(recovery.resumed_s));
    }
    Ok(Value::Object(figures))
}

/// Ours and the peers' in turns, so that what else the machine does befalls all.
async fn throughputs(postgres: &Postgres, plan: &Plan, note: &mut dyn FnMut(&str, Value)) -> Result<()> {
    let mut rates: BTreeMap<String, Vec<Rates>> = BTreeMap::new();
    for round in 0..plan.rounds.max(1) {
        for (name, program, script) in &plan.peers {
            let name = format!("throughput_{name}");
            let peers = peers::run(postgres, program, script, (plan.jobs, plan.clients)).await?;
            note(&format!("{name}_{round}"), json!(peers.jobs_per_s));
            rates.entry(name).or_default().push(peers);
        }
        let ours = throughput::whole(postgres, plan.jobs, plan.clients, plan.workers).await?;
        note(&format!("throughput_{round}"), json!(ours.jobs_per_s));
        rates.entry("throughput".into()).or_default().push(ours);
    }
    for (name, rates) in rates {
        let median = |value: fn(&Rates) -> f64| {
            let mut values: Vec<f64> = rates.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            quantile(&values, 0.5)
        };
        let (jobs, submitted) = (median(|rates| rates.jobs_per_s), median(|rates| rates.submitted_per_s));
        note(&name, json!({ "jobs_per_s": jobs, "submitted_per_s": submitted }));
    }
    Ok(())
}
