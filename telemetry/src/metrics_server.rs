//! Metrics: recorded by the process, served to Prometheus over HTTP at `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::{Error, Result};

/// Scrapes served at once; further ones wait.
const MAX_CONNECTIONS: usize = 16;
/// How long one connection may last.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How often samples that nobody scraped are folded into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);
/// Prometheus' text format.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Upper bounds of histograms of times, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// Upper bounds of histograms of sizes, in bytes: 4 KiB to 16 GiB.
const BYTES: [f64; 12] = {
    let mut bounds = [4096.0; 12];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 4.0;
        i += 1;
    }
    bounds
};

/// A metric as Prometheus shows it. Names are `lorafleet_<noun>_<unit>[_total]`; labels are few, and never a job id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it does over time.
    pub kind: MetricKind,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// By what its series are told apart.
    pub labels: &'static [&'static str],
}

/// What a metric does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts samples in buckets; its name ends in `_seconds` or `_bytes`, which choose the buckets.
    Histogram,
}

impl Metric {
    /// A number that only grows.
    pub const fn counter(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: MetricKind::Counter, help, labels: &[] }
    }

    /// A number that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: MetricKind::Gauge, help, labels: &[] }
    }

    /// A distribution.
    pub const fn histogram(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: MetricKind::Histogram, help, labels: &[] }
    }

    /// One series for each value of these labels; each appears when it is first recorded.
    pub const fn by(self, labels: &'static [&'static str]) -> Metric {
        Metric { labels, ..self }
    }

    /// Makes its help text known, and begins what counts at zero: a rate sees the first increment only then, and a
    /// board can tell "never" from "not there". A gauge waits for its first value.
    fn describe(&self) {
        let single = self.labels.is_empty();
        match self.kind {
            MetricKind::Counter => {
                metrics::describe_counter!(self.name, self.help);
                if single {
                    metrics::counter!(self.name).increment(0);
                }
            }
            MetricKind::Gauge => metrics::describe_gauge!(self.name, self.help),
            MetricKind::Histogram => {
                metrics::describe_histogram!(self.name, self.help);
                if single {
                    // Asking for it registers it, without a sample.
                    let _ = metrics::histogram!(self.name);
                }
            }
        }
    }
}

/// The endpoint; it stops when dropped, but what was recorded stays.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    tasks: [AbortHandle; 2],
}

impl MetricsServer {
    /// Where it listens: the port is the real one, also when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Records this process's metrics and serves them at `http://{address}/metrics` in Prometheus' text format.
/// Calling it again serves the same metrics at another address.
///
/// # Errors
/// [`Error::Bind`] when the address is not to be had, [`Error::MetricsTaken`] when another recorder is installed.
pub async fn serve_metrics(address: SocketAddr, known: &[Metric]) -> Result<MetricsServer> {
    let handle = recorder()?;
    for metric in known {
        metric.describe();
    }
    let bind = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let upkeep = handle.clone();
    let tasks = [
        tokio::spawn(accept(listener, handle)).abort_handle(),
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        })
        .abort_handle(),
    ];
    Ok(MetricsServer { address, tasks })
}

/// The one recorder of the process, installed at the first call.
fn recorder() -> Result<PrometheusHandle> {
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let buckets = |error: metrics_exporter_prometheus::BuildError| Error::Metrics(error.to_string());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES))
        .map_err(buckets)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| Error::MetricsTaken)?;
    *installed = Some(handle.clone());
    Ok(handle)
}

async fn accept(listener: TcpListener, handle: PrometheusHandle) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::spawn(async move {
                    serve_connection(stream, handle).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, say: others may be closed soon.
                tracing::warn!(%error, "accepting a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, handle: PrometheusHandle) {
    let service = service_fn(move |request| {
        let response = answer(&request, &handle);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(CONNECTION_LIMIT);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    // A scraper that goes away or dawdles is nobody's error.
    let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
}

fn answer(request: &Request<Incoming>, handle: &PrometheusHandle) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.method() != Method::GET && request.method() != Method::HEAD {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    } else if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = Full::from("the metrics are at /metrics\n");
    } else {
        response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
        *response.body_mut() = Full::from(handle.render());
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn serves_what_was_recorded() {
        let known = [
            Metric::counter("lorafleet_tests_total", "Tests run.").by(&["kind"]),
            Metric::counter("lorafleet_failures_total", "Tests failed."),
            Metric::histogram("lorafleet_setup_seconds", "Time before a test."),
            Metric::histogram("lorafleet_test_seconds", "Time of a test."),
            Metric::histogram("lorafleet_test_bytes", "Size of a test."),
        ];
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (one, two) =
            (serve_metrics(loopback, &known).await.unwrap(), serve_metrics(loopback, &[]).await.unwrap());
        assert_ne!(one.address().port(), 0);
        assert_ne!(one.address(), two.address());
        metrics::counter!("lorafleet_tests_total", "kind" => "unit").increment(3);
        metrics::histogram!("lorafleet_test_seconds").record(0.2);
        metrics::histogram!("lorafleet_test_bytes").record(5000.0);
        for server in [&one, &two] {
            let text = get(server.address(), "/metrics").await;
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            for line in [
                "# HELP lorafleet_tests_total Tests run.",
                "# TYPE lorafleet_tests_total counter",
                "lorafleet_tests_total{kind=\"unit\"} 3",
                "lorafleet_failures_total 0",
                "lorafleet_setup_seconds_count 0",
                "lorafleet_test_seconds_bucket{le=\"0.25\"} 1",
                "lorafleet_test_bytes_bucket{le=\"4096\"} 0",
                "lorafleet_test_bytes_bucket{le=\"16384\"} 1",
            ] {
                assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
            }
        }
        assert!(get(one.address(), "/").await.starts_with("HTTP/1.1 404"));
        let taken = serve_metrics(one.address(), &[]).await.unwrap_err().to_string();
        assert!(taken.contains(&one.address().to_string()), "{taken}");
    }
}
