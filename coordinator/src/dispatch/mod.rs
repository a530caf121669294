//! Tells each connected worker what its rows say: level-triggered, so that a lost message is only a late one.

mod next;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use next::{Shown, Tell, Told, next, stop_reason};
use pb::coordinator_message::Message as Down;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    checkpoints,
    db::{DbError, within},
    fleet,
    gang::{self, Answer, Claim, Conductor, Fenced, Finish},
    hub::{Connected, Hub},
    ids::{Fence, JobId, RunId, WorkerId},
    job::{AttemptState, MemberOutcome, Phase},
    queue::{self, Held, Whereabouts},
};

/// Heartbeats that still name a job after which it is told to stop again.
const STOP_AGAIN: u64 = 3;
/// Leases are renewed this often at least, for all that were heard of, in one statement; more often where leases are short.
const RENEW: Duration = Duration::from_secs(1);
/// Renewals in a lease's time, at least.
const RENEWALS: u32 = 15;

/// What jobs say, by job.
type Specs = HashMap<JobId, pb::JobSpec>;

/// The sending half of a coordinator.
#[derive(Debug)]
pub struct Dispatcher {
    pool: PgPool,
    hub: Arc<Hub>,
    conductor: Conductor,
    poll: Duration,
    renew: Duration,
    told: HashMap<(u64, RunId), Told>,
}

impl Dispatcher {
    /// A dispatcher that looks at the rows at least every `poll`, and renews leases of this length.
    pub fn new(pool: PgPool, hub: Arc<Hub>, conductor: Conductor, poll: Duration, lease: Duration) -> Self {
        Self { pool, hub, conductor, poll, renew: RENEW.min(lease / RENEWALS), told: HashMap::new() }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut renew = tokio::time::interval(self.renew);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(self.poll);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = renew.tick() => within(renew_leases(&self.pool, &self.hub)).await,
                _ = look.tick() => within(self.look()).await,
                () = self.hub.dispatch_wanted() => within(self.tell_all()).await.map(|_| ()),
            };
            if let Err(error) = result {
                warn!(%error, "dispatch paused");
            }
        }
    }

    /// Tells all, and carries on what nobody else did: whoever was to do it may be gone.
    async fn look(&mut self) -> Result<(), DbError> {
        for job in self.tell_all().await? {
            self.conductor.advance(job).await?;
        }
        Ok(())
    }

    /// Compares what every connected worker should know with what it was told. Returns the jobs whose members wait.
    async fn tell_all(&mut self) -> Result<HashSet<JobId>, DbError> {
        // The streams first: what a worker lists had its row before it was told.
        let streams = self.hub.connected();
        let mut waiting = HashSet::new();
        if streams.is_empty() {
            self.told.clear();
            return Ok(waiting);
        }
        let workers: Vec<WorkerId> = streams.iter().map(|stream| stream.worker).collect();
        let mut by_worker: HashMap<WorkerId, Vec<Held>> = HashMap::new();
        for held in queue::held(&self.pool, &workers).await? {
            if held.parted || (held.phase == Phase::Loading && held.ready) {
                waiting.insert(held.run.job);
            }
            by_worker.entry(held.worker).or_default().push(held);
        }
        let specs = self.specs_to_tell(&streams, &by_worker).await?;
        let mut current = HashSet::new();
        let mut claims: HashMap<JobId, Vec<(&Connected, Claim)>> = HashMap::new();
        for stream in &streams {
            let places = by_worker.remove(&stream.worker).unwrap_or_default();
            for held in &places {
                current.insert((stream.connection, held.run));
                self.tell_about(stream, held, &specs).await?;
            }
            for (run, fence) in &stream.running {
                current.insert((stream.connection, *run));
                let held = places.iter().find(|held| held.run == *run);
                if held.is_none_or(|held| is_ahead(fence, held)) && self.stop_is_due(stream, *run) {
                    let claim = Claim { worker: stream.worker, fence: fence.clone(), place: run.place };
                    claims.entry(run.job).or_default().push((stream, claim));
                }
            }
        }
        for (job, claims) in claims {
            self.answer_claims(job, claims).await?;
        }
        self.told.retain(|key, _| current.contains(key));
        Ok(waiting)
    }

    /// What jobs say that somebody was not told about, read at once.
    async fn specs_to_tell(
        &self,
        streams: &[Connected],
        by_worker: &HashMap<WorkerId, Vec<Held>>,
    ) -> Result<Specs, DbError> {
        let mut jobs = HashSet::new();
        for stream in streams {
            let places = by_worker.get(&stream.worker).into_iter().flatten();
            let untold = |held: &&Held| {
                let told = self.told.get(&(stream.connection, held.run));
                told.is_none_or(|told| told.assign.is_none()) && !stream.running.contains_key(&held.run)
            };
            let loading = places.filter(|held| held.phase == Phase::Loading || held.index.is_none());
            jobs.extend(loading.filter(|held| !held.ready).filter(untold).map(|held| held.run.job));
        }
        queue::specs(&self.pool, jobs).await
    }

    async fn tell_about(&mut self, stream: &Connected, held: &Held, specs: &Specs) -> Result<(), DbError> {
        let key = (stream.connection, held.run);
        let before = self.told.get(&key).cloned().unwrap_or_default();
        let mut told = before.clone();
        let shown = Shown {
            listed: stream.running.get(&held.run),
            begun: stream.begun.get(&held.run),
            heartbeats: stream.heartbeats,
        };
        for tell in next(held, &mut told, shown) {
            if !self.tell(stream, held, tell, specs).await? {
                // It does not read, or it is gone: the next round tells it again.
                told = before;
                break;
            }
        }
        self.told.insert(key, told);
        Ok(())
    }

    /// False: it could not be told.
    async fn tell(
        &self,
        stream: &Connected,
        held: &Held,
        tell: Tell,
        specs: &Specs,
    ) -> Result<bool, DbError> {
        let job = held.run.job.name();
        let message = match tell {
            Tell::Assign => {
                let job = held.run.job;
                let spec = match specs.get(&job) {
                    Some(spec) => Some(spec.clone()),
                    // It is told again.
                    None => queue::specs(&self.pool, [job]).await?.remove(&job),
                };
                let Some(spec) = spec else { return Ok(true) };
                let adapter = self.adapter_of(&spec).await?;
                Down::Assign(pb::Assign { adapter, ..assign(held, spec) })
            }
            // The conductor has told it since this round began.
            Tell::Begin if !stream.begun.contains_key(&held.run) && self.has_begun(held) => return Ok(true),
            Tell::Begin => {
                let begin = self.begin_message(held).await?;
                return Ok(self.hub.begin(held.worker, held.run, &held.fence, begin));
            }
            Tell::Regroup => Down::Regroup(pb::Regroup { job, fence: Some((&held.fence).into()) }),
            Tell::Leave(reason) => {
                Down::Leave(pb::Leave { job, attempt: held.run.attempt, place: held.run.place.0, reason })
            }
            Tell::Stop(reason) => stop(held.run, &held.fence, reason),
            Tell::HasStopped => {
                self.end(held, &pb::finished::Outcome::Stopped(pb::Stopped {})).await?;
                return Ok(true);
            }
            Tell::HasForgotten => {
                let lost =
                    pb::Lost { message: "its worker knows of it no more".to_owned(), ..Default::default() };
                self.end(held, &pb::finished::Outcome::Lost(lost)).await?;
                return Ok(true);
            }
        };
        Ok(stream.outbox.try_send(Ok(pb::CoordinatorMessage { message: Some(message) })).is_ok())
    }

    fn has_begun(&self, held: &Held) -> bool {
        self.hub.has_begun(held.worker, held.run, &held.fence)
    }

    /// What the job that `adapter.start` names has trained, if it names one. Where that is gone, the worker says so.
    async fn adapter_of(&self, spec: &pb::JobSpec) -> Result<Option<pb::Checkpoint>, DbError> {
        let start = spec.adapter.as_ref().and_then(|adapter| adapter.start.as_ref());
        match start.and_then(|start| JobId::from_name(&start.job).ok()) {
            Some(job) => checkpoints::result_of(&self.pool, job).await,
            None => Ok(None),
        }
    }

    /// Ends a place in its holder's stead.
    async fn end(&self, held: &Held, outcome: &pb::finished::Outcome) -> Result<(), DbError> {
        let finish = Finish { worker: held.worker, run: held.run, outcome };
        if let Fenced::Done(advance) = gang::finished(&self.pool, self.conductor.moment(), finish).await? {
            self.conductor.follow(held.run.job, advance).await?;
        }
        self.hub.want_scheduler();
        Ok(())
    }

    /// Workers run what the rows do not know: it is taken up by the rows, or they are told to stop.
    async fn answer_claims(&mut self, job: JobId, claims: Vec<(&Connected, Claim)>) -> Result<(), DbError> {
        let (streams, claims): (Vec<_>, Vec<_>) = claims.into_iter().unzip();
        let answers = gang::reclaim(&self.pool, job, &claims).await?;
        if answers.contains(&Answer::Reclaimed) {
            info!(%job, "what the database had forgotten goes on");
            self.hub.job_changed(job);
            self.hub.want_dispatch();
        }
        for ((stream, claim), answer) in streams.into_iter().zip(claims).zip(answers) {
            if answer == Answer::Stale {
                let run = RunId { job, attempt: claim.fence.attempt, place: claim.place };
                self.stop_stale(stream, run, &claim.fence).await?;
            }
        }
        Ok(())
    }

    fn stop_is_due(&self, stream: &Connected, run: RunId) -> bool {
        let told = self.told.get(&(stream.connection, run)).and_then(|told| told.stop);
        told.is_none_or(|at| stream.heartbeats >= at + STOP_AGAIN)
    }

    /// A worker runs what it holds no place for.
    async fn stop_stale(&mut self, stream: &Connected, run: RunId, fence: &Fence) -> Result<(), DbError> {
        let at = queue::whereabouts(&self.pool, stream.worker, run).await?;
        let message = pb::CoordinatorMessage { message: Some(stop(run, fence, stop_reason_of(at))) };
        if stream.outbox.try_send(Ok(message)).is_ok() {
            self.told.entry((stream.connection, run)).or_default().stop = Some(stream.heartbeats);
        }
        Ok(())
    }

    async fn begin_message(&self, held: &Held) -> Result<pb::Begin, DbError> {
        let mut connection = self.pool.acquire().await?;
        let members = queue::members(&mut connection, held.run.job, &held.fence).await?;
        drop(connection);
        let resume = checkpoints::resumable(&self.pool, held.run.job, &held.fence).await?;
        Ok(pb::Begin { job: held.run.job.name(), fence: Some((&held.fence).into()), members, resume })
    }
}

/// Whether a worker lists a place in a generation that the rows do not know, or do not know it to have loaded.
fn is_ahead(listed: &Fence, held: &Held) -> bool {
    let (listed_number, number) = (listed.generation, held.fence.generation);
    held.state == AttemptState::Running
        && listed_number > 0
        && (listed_number > number
            || (listed_number == number && listed.generation_id != held.fence.generation_id)
            || !held.ready)
}

fn assign(held: &Held, spec: pb::JobSpec) -> pb::Assign {
    pb::Assign {
        job: held.run.job.name(),
        // The attempt is what counts; the place lives through its generations.
        fence: Some((&Fence::loading(held.run.attempt)).into()),
        spec: Some(spec),
        place: held.run.place.0,
        adapter: None,
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

/// Tells a worker to leave its gang.
pub fn stop(run: RunId, fence: &Fence, reason: pb::StopReason) -> Down {
    Down::Stop(pb::Stop {
        job: run.job.name(),
        fence: Some(fence.into()),
        reason: reason.into(),
        place: run.place.0,
    })
}

/// Why a worker is to stop what it holds no live place for, given where it stands in the attempt.
pub fn stop_reason_of(at: Option<Whereabouts>) -> pb::StopReason {
    match at {
        None => pb::StopReason::Stale,
        Some(at) if at.attempt == AttemptState::Running => match at.outcome {
            Some(MemberOutcome::Expelled | MemberOutcome::Lost) => pb::StopReason::Expelled,
            _ => pb::StopReason::Stale,
        },
        Some(at) => stop_reason(at.attempt),
    }
}
