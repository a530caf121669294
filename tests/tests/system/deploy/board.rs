//! The board shows something: a real Prometheus looks at a fleet that trains, and every query of the board answers.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use lorafleet_tests::{
    Fleet, JobFile, Options,
    fleet::PATIENCE,
    http,
    process::{Process, program_of},
    wait::until,
};
use serde_json::{Value, json};

use super::{list, object, read, root, text, yaml};

const BOARD: &str = "deploy/grafana/lorafleet.json";

/// Title of a panel and its query, as Grafana would send it.
fn queries() -> Result<Vec<(String, String)>> {
    let board: Value = serde_json::from_str(&read(BOARD)?)?;
    let all = list(&board, "/panels").flat_map(|panel| {
        let title = text(panel, "/title");
        list(panel, "/targets")
            .map(move |target| (title.to_owned(), text(target, "/expr").replace("$__rate_interval", "10s")))
    });
    Ok(all.collect())
}

/// Prometheus on loopback, with the project's config but for where it looks and how often.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    fn start(fleet: &Fleet) -> Result<Prometheus> {
        let mut config = yaml("deploy/prometheus/prometheus.yml")?;
        config["global"]["scrape_interval"] = json!("500ms");
        let coordinators: Vec<String> =
            fleet.coordinators.iter().map(Process::metrics_address).collect::<Result<_>>()?;
        let workers: Vec<String> =
            fleet.workers.values().map(Process::metrics_address).collect::<Result<_>>()?;
        for job in config["scrape_configs"].as_array_mut().context("no scrape_configs")? {
            let targets = if job["job_name"] == "worker" { &workers } else { &coordinators };
            let fields = job.as_object_mut().context("a job that is no map")?;
            fields.remove("dns_sd_configs");
            fields.insert("static_configs".into(), json!([{"targets": targets}]));
        }
        let home = fleet.home("prometheus")?;
        let file = home.join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let program = program_of("prometheus");
        let process = Process::start(
            "prometheus",
            Command::new(&program)
                .current_dir(&home)
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
                .arg(format!("--web.listen-address={address}")),
            fleet.dir.path(),
        );
        let process = process.context(
            "prometheus is missing; install it: apt-get install prometheus (elsewhere: prometheus.io/download, on PATH)",
        )?;
        Ok(Prometheus { address, _process: process })
    }

    /// The answer of its HTTP API.
    fn get(&self, path: &str) -> Result<Value> {
        let body = http::get(&self.address.to_string(), &format!("/api/v1/{path}"))?;
        let body: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(body["status"] == "success", "{path}: {body}");
        Ok(body["data"].clone())
    }

    /// Whether a query has a number anywhere since then; NaN is none.
    fn has_number(&self, query: &str, since: u64) -> Result<bool> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("query_range?query={query}&start={since}&end={}&step=1", now()?))?;
        let numbers = list(&answer, "/result").flat_map(|series| list(series, "/values"));
        Ok(numbers.filter_map(|pair| pair[1].as_str()?.parse::<f64>().ok()).any(f64::is_finite))
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_board_answers_while_a_fleet_trains() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    for name in ["a", "b"] {
        fleet.start_worker(name, 1)?;
    }
    until("both workers to say where their metrics are", PATIENCE, || async {
        Ok(fleet.workers.values().all(|worker| worker.metrics_address().is_ok()).then_some(()))
    })
    .await?;
    let (prometheus, since) = (Prometheus::start(&fleet)?, now()?);
    until("Prometheus to reach all three", PATIENCE, || async {
        let up = prometheus.get("query?query=sum(up)")?;
        Ok((up.pointer("/result/0/value/1").and_then(Value::as_str) == Some("3")).then_some(()))
    })
    .await?;
    let job = JobFile { steps: 8, checkpoint_every: 2, workers: (2, 2), ..JobFile::default() };
    let first = fleet.submit(&JobFile { name: "first", ..job.clone() })?;
    let second = fleet.submit(&JobFile { name: "second", ..job })?;
    fleet.succeeded(&first).await?;
    fleet.succeeded(&second).await?;

    let queries = queries()?;
    ensure!(queries.len() >= 30, "the board has only {} queries", queries.len());
    let empty = until("every query to have a number", Duration::from_secs(20), || async {
        let mut empty = Vec::new();
        for (title, query) in &queries {
            if !prometheus.has_number(query, since)? {
                empty.push(format!("{title}: {query}"));
            }
        }
        if empty.is_empty() { Ok(Some(())) } else { bail!("these have none:\n{}", empty.join("\n")) }
    });
    empty.await
}

#[test]
fn the_board_uses_metrics_that_are_described() -> Result<()> {
    let page = read("docs/metrics.md")?;
    let mut seen = 0;
    for (title, query) in queries()? {
        for metric in query
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|w| w.starts_with("lorafleet_"))
        {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| metric.strip_suffix(end))
                .unwrap_or(metric);
            ensure!(page.contains(&format!("`{name}")), "{title}: docs/metrics.md does not describe {name}");
            seen += 1;
        }
    }
    ensure!(seen >= 30, "only {seen} metrics on the board");
    Ok(())
}

#[test]
fn grafana_is_told_where_prometheus_and_the_board_are() -> Result<()> {
    let folder = "deploy/grafana/provisioning";
    let source = yaml(&format!("{folder}/datasources/prometheus.yaml"))?;
    let uid = text(&source, "/datasources/0/uid");
    let board: Value = serde_json::from_str(&read(BOARD)?)?;
    for panel in list(&board, "/panels").filter(|panel| panel["type"] != "row") {
        ensure!(text(panel, "/datasource/uid") == uid, "{} asks another source", panel["title"]);
    }
    let compose = yaml("deploy/compose.yaml")?;
    let port = "9090";
    ensure!(text(&source, "/datasources/0/url") == format!("http://prometheus:{port}"), "another Prometheus");
    ensure!(object(&compose, "/services").any(|(name, _)| name == "prometheus"), "no prometheus in compose");
    let provider = yaml(&format!("{folder}/dashboards/lorafleet.yaml"))?;
    let path = text(&provider, "/providers/0/options/path");
    let mounted = list(&compose, "/services/grafana/volumes")
        .filter_map(Value::as_str)
        .any(|mount| mount.starts_with("./grafana/lorafleet.json:") && mount.contains(path));
    ensure!(mounted && root().join(BOARD).exists(), "the board is not mounted at {path}");
    Ok(())
}
