//! Tells each connected worker what its rows say: level-triggered, so that a lost message is only a late one.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    checkpoints,
    db::{DbError, within},
    fleet, gang,
    hub::{Connected, Hub},
    ids::{Fence, JobId, WorkerId},
    job::{AttemptState, Phase},
    queue::{self, Held},
};

/// Heartbeats without a trace of an assignment after which it is sent again.
const ASSIGN_AGAIN: u64 = 3;
/// Heartbeats that still name a job after which it is told to stop again.
const STOP_AGAIN: u64 = 3;
/// Heartbeats without a trace of a job that was told to stop after which it counts as stopped.
const STOPPED_AFTER: u64 = 2;
/// Leases are renewed this often, for all that were heard of, in one statement.
const RENEW: Duration = Duration::from_millis(500);
/// Looking for manifests without a row may take this long; without an answer the gang begins with the rows there are.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);

/// What was told about one place on one stream, counted in heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    assign: Option<u64>,
    begin: bool,
    stop: Option<u64>,
}

/// What to tell a worker about a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tell {
    Assign,
    Begin,
    Stop(pb::StopReason),
    /// Nothing: it has stopped without saying so.
    HasStopped,
}

/// The sending half of a coordinator.
#[derive(Debug)]
pub struct Dispatcher {
    pool: PgPool,
    hub: Arc<Hub>,
    store: Store,
    poll: Duration,
    told: HashMap<(u64, JobId, Fence), Told>,
    beginning: Arc<Mutex<HashSet<(JobId, Fence)>>>,
}

/// What to tell about a place that is held: pure, given what was told before and whether the worker lists the job.
fn next(held: &Held, told: &mut Told, listed: bool, heartbeats: u64) -> Vec<Tell> {
    let mut tell = Vec::new();
    if matches!(held.phase, Phase::Closing | Phase::Ended) {
        match told.stop {
            Some(at) if !listed && heartbeats >= at + STOPPED_AFTER => tell.push(Tell::HasStopped),
            Some(at) if heartbeats < at + STOP_AGAIN => {}
            _ => {
                tell.push(Tell::Stop(stop_reason(held.state)));
                told.stop = Some(heartbeats);
            }
        }
        return tell;
    }
    match told.assign {
        // It lists the job: it has the assignment, maybe from another coordinator.
        None if listed => told.assign = Some(heartbeats),
        Some(at) if listed || heartbeats < at + ASSIGN_AGAIN => {}
        _ => {
            tell.push(Tell::Assign);
            *told = Told { assign: Some(heartbeats), ..Told::default() };
        }
    }
    if held.phase == Phase::Training && !told.begin {
        tell.push(Tell::Begin);
        told.begin = true;
    }
    tell
}

fn stop_reason(state: AttemptState) -> pb::StopReason {
    match state {
        AttemptState::Cancelled => pb::StopReason::Cancelled,
        AttemptState::Running | AttemptState::Lost | AttemptState::Released => pb::StopReason::GangLost,
        AttemptState::Succeeded | AttemptState::Failed => pb::StopReason::Stale,
    }
}

impl Dispatcher {
    /// A dispatcher that looks at the rows at least every `poll`.
    pub fn new(pool: PgPool, hub: Arc<Hub>, store: Store, poll: Duration) -> Self {
        Self { pool, hub, store, poll, told: HashMap::new(), beginning: Arc::default() }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut renew = tokio::time::interval(RENEW.min(self.poll));
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(self.poll);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = renew.tick() => within(renew_leases(&self.pool, &self.hub)).await,
                _ = look.tick() => within(self.tell_all()).await,
                () = self.hub.dispatch_wanted() => within(self.tell_all()).await,
            };
            if let Err(error) = result {
                warn!(%error, "dispatch paused");
            }
        }
    }

    /// Compares what every connected worker should know with what it was told.
    async fn tell_all(&mut self) -> Result<(), DbError> {
        // The streams first: what a worker lists had its row before it was told.
        let streams = self.hub.connected();
        if streams.is_empty() {
            self.told.clear();
            return Ok(());
        }
        let workers: Vec<WorkerId> = streams.iter().map(|stream| stream.worker).collect();
        let mut by_worker: HashMap<WorkerId, Vec<Held>> = HashMap::new();
        for held in queue::held(&self.pool, &workers).await? {
            if held.phase == Phase::Loading && held.all_ready {
                self.begin(held.job, held.fence.clone());
            }
            by_worker.entry(held.worker).or_default().push(held);
        }
        let mut current = HashSet::new();
        for stream in &streams {
            let places = by_worker.remove(&stream.worker).unwrap_or_default();
            for held in &places {
                current.insert((stream.connection, held.job, held.fence.clone()));
                self.tell_about(stream, held).await?;
            }
            for (job, fence) in &stream.running {
                if !places.iter().any(|held| held.job == *job && held.fence == *fence) {
                    current.insert((stream.connection, *job, fence.clone()));
                    self.stop_stale(stream, *job, fence).await?;
                }
            }
        }
        self.told.retain(|key, _| current.contains(key));
        Ok(())
    }

    async fn tell_about(&mut self, stream: &Connected, held: &Held) -> Result<(), DbError> {
        let key = (stream.connection, held.job, held.fence.clone());
        let before = self.told.get(&key).copied().unwrap_or_default();
        let mut told = before;
        let listed = stream.running.contains(&(held.job, held.fence.clone()));
        for tell in next(held, &mut told, listed, stream.heartbeats) {
            let message = match tell {
                Tell::Assign => self.assign(held).await?,
                Tell::Begin => Some(self.begin_message(held).await?),
                Tell::Stop(reason) => Some(stop(held.job, &held.fence, reason)),
                Tell::HasStopped => {
                    let stopped = pb::finished::Outcome::Stopped(pb::Stopped {});
                    gang::finished(&self.pool, held.worker, held.job, &held.fence, &stopped).await?;
                    self.hub.want_scheduler();
                    None
                }
            };
            let Some(message) = message else { continue };
            let message = pb::CoordinatorMessage { message: Some(message) };
            if stream.outbox.try_send(Ok(message)).is_err() {
                // It does not read, or it is gone: the next round tells it again.
                told = before;
                break;
            }
        }
        self.told.insert(key, told);
        Ok(())
    }

    /// A worker runs what it holds no place for.
    async fn stop_stale(&mut self, stream: &Connected, job: JobId, fence: &Fence) -> Result<(), DbError> {
        let told = self.told.entry((stream.connection, job, fence.clone())).or_default();
        if told.stop.is_some_and(|at| stream.heartbeats < at + STOP_AGAIN) {
            return Ok(());
        }
        let state = queue::attempt_state(&self.pool, job, fence).await?;
        let reason = state.map_or(pb::StopReason::Stale, |state| match state {
            AttemptState::Running => pb::StopReason::Stale,
            ended => stop_reason(ended),
        });
        let message = pb::CoordinatorMessage { message: Some(stop(job, fence, reason)) };
        if stream.outbox.try_send(Ok(message)).is_ok() {
            told.stop = Some(stream.heartbeats);
        }
        Ok(())
    }

    async fn assign(&self, held: &Held) -> Result<Option<pb::coordinator_message::Message>, DbError> {
        let Some(spec) = queue::spec(&self.pool, held.job).await? else { return Ok(None) };
        Ok(Some(pb::coordinator_message::Message::Assign(pb::Assign {
            job: held.job.name(),
            fence: Some((&held.fence).into()),
            spec: Some(spec),
            index: held.index,
            world_size: held.world_size,
            place: held.index + 1,
        })))
    }

    async fn begin_message(&self, held: &Held) -> Result<pb::coordinator_message::Message, DbError> {
        let mut connection = self.pool.acquire().await?;
        let members = queue::members(&mut connection, held.job, &held.fence).await?;
        drop(connection);
        let resume = checkpoints::resumable(&self.pool, held.job, held.fence.attempt).await?;
        let member = |m: queue::Member| pb::Member {
            index: m.index,
            worker: m.worker,
            address: m.address,
            place: m.index + 1,
        };
        Ok(pb::coordinator_message::Message::Begin(pb::Begin {
            job: held.job.name(),
            fence: Some((&held.fence).into()),
            members: members.into_iter().map(member).collect(),
            resume,
        }))
    }

    /// Lets a gang train, on a task of its own: the store is asked for manifests without a row first.
    fn begin(&self, job: JobId, fence: Fence) {
        let key = (job, fence.clone());
        if !self.beginning.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        let (pool, store, hub) = (self.pool.clone(), self.store.clone(), Arc::clone(&self.hub));
        let beginning = Arc::clone(&self.beginning);
        tokio::spawn(async move {
            adopt(&pool, &store, job, fence.attempt).await;
            match within(gang::begin(&pool, job, &fence)).await {
                Ok(_) => {
                    hub.job_changed(job);
                    hub.want_dispatch();
                }
                Err(error) => warn!(%job, %fence, %error, "gang not begun; tried again"),
            }
            beginning.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        });
    }
}

async fn adopt(pool: &PgPool, store: &Store, job: JobId, attempt: u32) {
    if attempt == 1 {
        return;
    }
    let adopting = checkpoints::adopt(pool, store, job, attempt);
    match tokio::time::timeout(ADOPT_LIMIT, adopting).await {
        Ok(Ok(0)) => {}
        Ok(Ok(adopted)) => info!(%job, adopted, "manifests without a row adopted"),
        Ok(Err(error)) => warn!(%job, %error, "manifests without a row were not looked for"),
        Err(_) => warn!(%job, limit = ?ADOPT_LIMIT, "manifests without a row were not found in time"),
    }
}

/// Renews the leases of all that were heard of; who holds none any more is told.
async fn renew_leases(pool: &PgPool, hub: &Hub) -> Result<(), DbError> {
    let heard = hub.take_heard();
    if heard.is_empty() {
        return Ok(());
    }
    let held: HashSet<WorkerId> = fleet::beat(pool, &heard).await?.into_iter().collect();
    for worker in heard.iter().filter(|worker| !held.contains(worker)) {
        hub.disown(*worker, fleet::is_superseded(pool, *worker).await?);
    }
    Ok(())
}

fn stop(job: JobId, fence: &Fence, reason: pb::StopReason) -> pb::coordinator_message::Message {
    pb::coordinator_message::Message::Stop(pb::Stop {
        job: job.name(),
        fence: Some(fence.into()),
        reason: reason.into(),
        place: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(state: AttemptState, phase: Phase) -> Held {
        Held {
            worker: WorkerId::random(),
            job: JobId::new(),
            fence: Fence::loading(1).next(0),
            index: 0,
            world_size: 1,
            state,
            phase,
            all_ready: false,
        }
    }

    #[test]
    fn an_assignment_is_told_once_and_again_when_it_leaves_no_trace() {
        let place = held(AttemptState::Running, Phase::Loading);
        let mut told = Told::default();
        assert_eq!(next(&place, &mut told, false, 1), [Tell::Assign]);
        assert_eq!(next(&place, &mut told, false, 2), []);
        assert_eq!(next(&place, &mut told, false, 1 + ASSIGN_AGAIN), [Tell::Assign]);
        assert_eq!(next(&place, &mut told, true, 100), []);
    }

    #[test]
    fn after_a_reconnect_what_a_worker_lists_is_not_assigned_again() {
        let place = held(AttemptState::Running, Phase::Training);
        assert_eq!(next(&place, &mut Told::default(), true, 1), [Tell::Begin]);
        assert_eq!(next(&place, &mut Told::default(), false, 1), [Tell::Assign, Tell::Begin]);
    }

    #[test]
    fn a_stop_is_repeated_until_the_job_is_gone() {
        let place = held(AttemptState::Cancelled, Phase::Ended);
        let mut told = Told::default();
        assert_eq!(next(&place, &mut told, true, 1), [Tell::Stop(pb::StopReason::Cancelled)]);
        assert_eq!(next(&place, &mut told, true, 2), []);
        assert_eq!(next(&place, &mut told, true, 1 + STOP_AGAIN), [Tell::Stop(pb::StopReason::Cancelled)]);
        assert_eq!(next(&place, &mut told, false, 1 + STOP_AGAIN + STOPPED_AFTER), [Tell::HasStopped]);
    }

    #[test]
    fn a_gang_that_lost_a_member_is_told_so() {
        let place = held(AttemptState::Running, Phase::Closing);
        assert_eq!(next(&place, &mut Told::default(), true, 1), [Tell::Stop(pb::StopReason::GangLost)]);
    }
}
