//! One coordinator from start to end: connects, serves, schedules, dispatches, drains.

use std::time::Duration;

use lorafleet_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    api::{self, Services, Terms},
    config::Config,
    db::{self, StartError},
    dispatch::Dispatcher,
    gang::Conductor,
    housekeeping::Housekeeper,
    hub::Hub,
    leader::Leader,
    sweeper::Sweeper,
    tenants::Directory,
    tokens::{self, BootstrapError, Keys},
};

/// The loops may take this long to end.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Why a coordinator ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database.
    #[error(transparent)]
    Database(#[from] StartError),
    /// The object store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no first token.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The listener broke.
    #[error("the API stopped serving: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs a coordinator on a bound listener until `shutdown`, then drains it.
///
/// # Errors
/// Postgres stays away, the store's URL cannot be written, or the listener breaks.
pub async fn run(
    config: &Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let store = Store::open(&config.store)?;
    store.probe_writable().await?;
    let pool = db::connect(&config.db()).await?;
    if let Some(file) = &config.bootstrap_token {
        tokens::bootstrap(&pool, file).await?;
    }
    let hub = Hub::new();
    // The loops end when serving ends, for whatever reason.
    let loops = shutdown.child_token();
    let leader = Leader::new(pool.clone(), hub.clone(), config.leader());
    let housekeeper = Housekeeper::new(pool.clone(), leader.leadership(), config.retention());
    let housekeeping = tokio::spawn(housekeeper.run(loops.clone()));
    let leading = tokio::spawn(leader.run(loops.clone()));
    let conductor = Conductor::new(pool.clone(), hub.clone(), store.clone());
    let dispatcher = Dispatcher::new(pool.clone(), hub.clone(), conductor.clone(), config.poll, config.lease);
    let dispatching = tokio::spawn(dispatcher.run(loops.clone()));
    let sweeping = tokio::spawn(Sweeper::new(pool.clone(), store.clone()).run(loops.clone()));
    if let Ok(address) = listener.local_addr() {
        info!(%address, store = config.store, "coordinator ready");
    }
    let terms = Terms { heartbeat: config.heartbeat, lease: config.lease, store_url: config.store.clone() };
    let services = Services {
        pool: pool.clone(),
        store,
        hub,
        submissions: api::submissions(&pool),
        conductor,
        tenants: Directory::new(pool.clone()),
        tokens: Keys::new(pool.clone()),
        require_tokens: config.require_tokens,
        terms,
        poll: config.poll,
        shutdown,
    };
    let served = api::serve(listener, services).await;
    loops.cancel();
    let ended = async {
        // A loop that panicked has said so; the others are waited for all the same.
        let _ = leading.await;
        let _ = dispatching.await;
        let _ = sweeping.await;
        let _ = housekeeping.await;
        pool.close().await;
    };
    if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
        tracing::warn!("the database did not let go in time");
    }
    info!("coordinator stopped");
    Ok(served?)
}
