//! `lorafleet-coordinator`: reads its configuration, sets up logs and metrics, runs until SIGTERM or Ctrl-C.

use anyhow::Context as _;
use clap::Parser as _;
use lorafleet_coordinator::{Config, METRICS, run};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    config.check().map_err(anyhow::Error::msg)?;
    lorafleet_telemetry::init("lorafleet-coordinator", config.log_format)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads.into())
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(serve(&config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let metrics = lorafleet_telemetry::serve_metrics(config.metrics_listen, METRICS).await?;
    tracing::info!(address = %metrics.address(), "metrics");
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let ask = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("draining");
        ask.cancel();
    });
    run(config, listener, shutdown).await?;
    Ok(())
}
