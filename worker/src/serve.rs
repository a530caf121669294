//! A worker process put together: threads, listeners and the agent, until its drain is complete.

use std::sync::Arc;

use anyhow::Context as _;
use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    agent::{Agent, AgentOptions, Runner},
    background::Background,
    base_cache::Cache,
    collective::tcp,
    config::ServeArgs,
    health,
    resources::resources,
    run::{Reporter, Run, RunControl, Workshop},
    telemetry::METRICS,
};

/// Serves until SIGTERM or Ctrl-C, and the drain after it.
///
/// # Errors
/// An address or folder is not to be had, the coordinator refuses this worker, or the drain takes too long.
pub async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let resources = resources(args.threads()).context("find out what this machine has")?;
    let background = Background::start().context("start the threads that write beside training")?;
    let workshop = workshop(args, &resources.kind, &background)?;
    let name = args.name();
    let options = AgentOptions {
        coordinator: args.coordinator.clone(),
        token: args.token.clone(),
        name: name.clone(),
        resources,
        collective_address: args.advertised(workshop.listener.local_address()),
        store: args.store.clone(),
        drain_limit: args.drain_limit,
        labels: args.labels.iter().cloned().collect(),
    };
    let drain = CancellationToken::new();
    let collective = options.collective_address.clone();
    let agent = Agent::new(options, Arc::new(Trainers(workshop)), drain.clone())?;
    let metrics = lorafleet_telemetry::serve_metrics(args.metrics_listen, &METRICS).await?;
    let health = health::serve(args.health_listen, agent.state())
        .await
        .with_context(|| format!("listen on {} for health", args.health_listen))?;
    info!(name, collective, metrics = %metrics.address(), %health, threads = args.threads(), "worker starts");
    drain_on_signal(drain)?;
    agent.run().await?;
    info!(name, "worker leaves");
    Ok(())
}

fn workshop(args: &ServeArgs, kind: &str, background: &Background) -> anyhow::Result<Arc<Workshop>> {
    let cache_dir = args.cache_dir().map_err(anyhow::Error::msg)?;
    let cache = Cache::open(&cache_dir).with_context(|| format!("the cache {}", cache_dir.display()))?;
    let tcp = args.tcp();
    let listener = tcp::Listener::bind(args.collective_listen, tcp.handshake)
        .with_context(|| format!("listen on {} for peers", args.collective_listen))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads())
        .thread_name(|index| format!("train-{index}"))
        .build()
        .context("start the threads that train")?;
    let kind = kind.to_owned();
    Ok(Arc::new(Workshop {
        cache,
        listener,
        tcp,
        alone_limit: args.alone_limit,
        pool,
        kind,
        runtime: Handle::current(),
        background: background.handle(),
    }))
}

/// The first signal drains, the second ends the process at once.
fn drain_on_signal(drain: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if drain.is_cancelled() {
                warn!("told twice to leave: leaving at once; the job goes on from its last checkpoint");
                std::process::exit(1);
            }
            drain.cancel();
        }
    });
    Ok(())
}

/// Runs assignments by training them.
pub struct Trainers(pub Arc<Workshop>);

impl Runner for Trainers {
    fn run(
        &self,
        store: &Store,
        assign: pb::Assign,
        control: Arc<RunControl>,
        reporter: Arc<dyn Reporter>,
    ) -> pb::finished::Outcome {
        Run { workshop: self.0.clone(), store: store.clone(), assign, control, reporter }.execute()
    }
}
