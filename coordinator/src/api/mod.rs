//! The gRPC API: services over one listener, with health, reflection, limits and a drain.

mod artifacts;
mod counted;
pub mod error;
mod fleet;
mod jobs;
mod life;
mod links;
mod page;
mod submit;
mod sweeps;
mod tenants;
mod usage;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use lorafleet_proto::{DESCRIPTORS, v1 as pb};
use lorafleet_store::Store;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::ServingStatus;

use crate::{
    access::Gate,
    check::Checker,
    gang::Conductor,
    group::Group,
    hub::Hub,
    ids::JobId,
    queue::{self, NewJob},
    quota::AdmitError,
    tenants::Directory,
    tokens::Keys,
};

/// Requests that one connection may have open.
const STREAMS_PER_CONNECTION: u32 = 1024;
/// Silent connections are asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// After the drain began, open calls may go on for this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Health name that says whether this coordinator can do its work: its database answers.
pub const READINESS: &str = "readiness";
/// Health name that says whether this process should be left alone: it is up and serves.
pub const LIVENESS: &str = "liveness";

/// What the services stand on.
#[derive(Clone, Debug)]
pub struct Services {
    /// The database.
    pub pool: PgPool,
    /// The object store.
    pub store: Store,
    /// Streams and wakes.
    pub hub: Arc<Hub>,
    /// Where single jobs are stored, together with those of others.
    pub submissions: Submissions,
    /// What moves gangs on.
    pub conductor: Conductor,
    /// Tenants by name.
    pub tenants: Arc<Directory>,
    /// Tokens by their secrets.
    pub tokens: Arc<Keys>,
    /// Whether each call needs a token.
    pub require_tokens: bool,
    /// What workers are told at registration.
    pub terms: Terms,
    /// Watchers look at their job this often without a hint.
    pub poll: Duration,
    /// Ends open streams.
    pub shutdown: CancellationToken,
}

/// Jobs that are to be stored, each with its id; when they were.
pub type Submissions = Group<(JobId, NewJob), Result<DateTime<Utc>, AdmitError>>;

/// Where submissions are brought.
pub fn submissions(pool: &PgPool) -> Submissions {
    let pool = pool.clone();
    Group::new(move |news: Vec<(JobId, NewJob)>| {
        let pool = pool.clone();
        async move { Ok(queue::create_apart(&pool, &news).await?.into_iter().map(Ok).collect()) }
    })
}

/// What every worker is told.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Of silence, until work is given away.
    pub lease: Duration,
    /// The object store's root URL, as workers reach it.
    pub store_url: String,
}

/// Serves until `services.shutdown`, then drains: no new calls, streams end, unary calls finish.
pub async fn serve(listener: TcpListener, services: Services) -> Result<(), tonic::transport::Error> {
    let shutdown = services.shutdown.clone();
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in [
        "",
        LIVENESS,
        "lorafleet.v1.Jobs",
        "lorafleet.v1.Fleet",
        "lorafleet.v1.Artifacts",
        "lorafleet.v1.Sweeps",
        "lorafleet.v1.Tenants",
        "lorafleet.v1.Usage",
    ] {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let watch = tokio::spawn(watch_readiness(services.pool.clone(), health.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are compiled into this program and valid");
    let checker = Checker::new(services.store.clone());
    let sweeps = sweeps::SweepsService { services: services.clone(), checker: checker.clone() };
    let jobs = jobs::JobsService { services: services.clone(), checker };
    let artifacts = artifacts::ArtifactsService::new(services.store.clone(), services.pool.clone());
    let gate = Gate::new(services.tokens.clone(), services.require_tokens);
    let tenants = tenants::TenantsService { services: services.clone() };
    let usage = usage::UsageService { services: services.clone() };
    let fleet = fleet::FleetService { services };
    // Or each answer of several frames would wait for the other side's delayed acknowledgement, some 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(counted::Counting)
        .layer(gate)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(pb::jobs_server::JobsServer::new(jobs))
        .add_service(pb::sweeps_server::SweepsServer::new(sweeps))
        .add_service(pb::fleet_server::FleetServer::new(fleet))
        .add_service(pb::tenants_server::TenantsServer::new(tenants))
        .add_service(pb::usage_server::UsageServer::new(usage))
        .add_service(artifacts.into_server())
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    let drained = async {
        shutdown.cancelled().await;
        health.set_service_status(READINESS, ServingStatus::NotServing).await;
        tokio::time::sleep(DRAIN).await;
    };
    let result = tokio::select! {
        result = serving => result,
        () = drained => Ok(()),
    };
    watch.abort();
    result
}

/// Keeps the readiness name in line with whether the database answers.
async fn watch_readiness(pool: PgPool, health: tonic_health::server::HealthReporter) {
    loop {
        let answers = crate::db::answers(&pool).await;
        let status = if answers { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(READINESS, status).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
