//! The scheduling loop: lead, end leases, take back what the lost held, start gangs, grow and shrink them, say why
//! jobs wait.

mod budget;
mod limits;
mod names;
mod shares;
mod sight;
mod starts;
mod words;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use sight::Sight;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    db::{DbError, within},
    fleet, gang,
    hub::Hub,
    ids::{Fence, JobId, PlaceNo, RunId, TenantId, WorkerId},
    leadership::{Candidate, Leadership},
    metrics,
    queue::{self, GangEntry, Window},
    scheduler::{self, Decision, Standing, Times},
    silence::{self, Patience, Silence},
    stillness::Stillness,
    sweeps, usage,
};

/// Leases are looked at this often.
const LEASE_CHECK: Duration = Duration::from_millis(500);
/// Times and dependencies of jobs are looked at this often.
const LIMITS_CHECK: Duration = Duration::from_millis(200);
/// Quotas of worker-seconds are looked at this often.
const BUDGET_CHECK: Duration = Duration::from_secs(2);
/// What tenants used, and how long running jobs still train, is looked at this often.
const SHARES_CHECK: Duration = Duration::from_secs(3);
/// Depth of the queue is measured this often.
const DEPTH_CHECK: Duration = Duration::from_secs(5);
/// After a look that changed nothing, the next submission waits for as long as the look took, but no longer than this.
const MAX_REST: Duration = Duration::from_millis(100);
/// Sweeps are looked at this often.
const SWEEP_CHECK: Duration = Duration::from_millis(500);

/// How the scheduler behaves.
#[derive(Clone, Copy, Debug)]
pub struct LeaderConfig {
    /// How long silence is borne.
    pub patience: Patience,
    /// The queue is looked at this often, hint or not.
    pub poll: Duration,
    /// A gang must be ready within this time.
    pub load_limit: Duration,
    /// A job that could use more workers than it needs waits this long for others to come.
    pub gather: Duration,
}

/// The scheduling half of a coordinator; it does something only while it leads.
#[derive(Debug)]
pub struct Leader {
    pool: PgPool,
    hub: Arc<Hub>,
    config: LeaderConfig,
    candidate: Candidate,
    memory: Memory,
}

/// What came of one look at the fleet and the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tick {
    /// Somebody was given a worker, or asked for one.
    Changed,
    /// Nothing, or another coordinator leads.
    Same,
}

/// What a leader has seen since it leads. Times are its own clock's; a new leader begins with nothing.
#[derive(Debug)]
struct Memory {
    leases: Stillness<WorkerId>,
    sight: Sight,
    loading_since: HashMap<(JobId, Fence), Instant>,
    last_tick: Option<Instant>,
    leases_checked: Option<Instant>,
    depth_checked: Option<Instant>,
    limits_checked: Option<Instant>,
    sweeps_checked: Option<Instant>,
    budgets_checked: Option<Instant>,
    /// Tenants none of whose jobs is to start now.
    over_budget: Vec<TenantId>,
    shares_checked: Option<Instant>,
    /// What tenants may use, and used.
    tenants: Vec<scheduler::Tenant>,
    /// Why jobs wait was last written, and where they stand.
    explained: Option<Instant>,
    placed: Option<Instant>,
    usage: usage::Keeper,
}

impl Memory {
    fn new() -> Self {
        Self {
            leases: Stillness::new(),
            sight: Sight::default(),
            loading_since: HashMap::new(),
            last_tick: None,
            leases_checked: None,
            depth_checked: None,
            limits_checked: None,
            sweeps_checked: None,
            budgets_checked: None,
            over_budget: Vec::new(),
            shares_checked: None,
            tenants: Vec::new(),
            explained: None,
            placed: None,
            usage: usage::Keeper::default(),
        }
    }
}

impl Leader {
    /// A candidate.
    pub fn new(pool: PgPool, hub: Arc<Hub>, config: LeaderConfig) -> Self {
        Self { pool, hub, config, candidate: Candidate::new(), memory: Memory::new() }
    }

    /// The leadership, as long as it is believed to hold.
    pub fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.candidate.leadership()
    }

    /// Runs until `shutdown`, then gives the leadership up.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let start = Instant::now();
            let outcome = within(self.tick(start)).await;
            let rest = match &outcome {
                Ok(Tick::Changed) => Duration::ZERO,
                // Each submission to a full fleet is a hint: at most half of the time goes into looking because of them.
                Ok(Tick::Same) | Err(_) => start.elapsed().min(MAX_REST),
            };
            if let Err(error) = outcome {
                // Nothing could be seen: whoever is silent gets a whole lease once Postgres is back.
                self.memory.leases.reset();
                self.candidate.lost_sight();
                warn!(%error, "scheduling paused");
            }
            let idle = tokio::time::sleep(self.config.poll);
            let longer_queue = async {
                tokio::time::sleep(rest).await;
                self.hub.longer_queue().await;
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.hub.scheduler_wanted() => {}
                () = longer_queue => {}
                () = idle => {}
            }
        }
        if let Err(error) = within(self.candidate.resign(&self.pool)).await {
            warn!(%error, "leadership not given up; a standby takes over by itself");
        }
        metrics::leader(false);
    }

    async fn tick(&mut self, now: Instant) -> Result<Tick, DbError> {
        // After a pause of its own (stopped, starved) a leader has not watched, so nobody was silent.
        let pause = self.memory.last_tick.replace(now).map(|last| now.duration_since(last));
        if pause.is_some_and(|pause| pause > self.config.poll + self.config.patience.lease / 3) {
            self.memory.leases.reset();
        }
        let Some(leadership) = self.candidate.campaign(&self.pool, now).await? else {
            metrics::leader(false);
            metrics::depth(0, 0);
            self.memory = Memory { last_tick: Some(now), ..Memory::new() };
            return Ok(Tick::Same);
        };
        metrics::leader(true);
        self.memory.usage.keep(now, &self.pool);
        if due(&mut self.memory.leases_checked, now, LEASE_CHECK) {
            self.end_silent_leases(now).await?;
        }
        self.take_back().await?;
        self.time_loading(&leadership, now).await?;
        if due(&mut self.memory.sweeps_checked, now, SWEEP_CHECK) {
            // Before workers are given out, so that those of ended children are among them.
            for job in sweeps::advance(&self.pool, &leadership).await? {
                self.changed(job);
            }
        }
        if due(&mut self.memory.limits_checked, now, LIMITS_CHECK) {
            self.keep_limits(&leadership).await?;
        }
        if due(&mut self.memory.budgets_checked, now, BUDGET_CHECK) {
            self.keep_budgets().await?;
        }
        if due(&mut self.memory.shares_checked, now, SHARES_CHECK) {
            self.keep_shares(now).await?;
        }
        let tick = self.schedule(&leadership, now).await?;
        if due(&mut self.memory.depth_checked, now, DEPTH_CHECK) {
            let (queued, running) = queue::depth(&self.pool).await?;
            metrics::depth(queued, running);
        }
        Ok(tick)
    }

    async fn end_silent_leases(&mut self, now: Instant) -> Result<(), DbError> {
        let leases = fleet::leases(&self.pool).await?;
        let counters: Vec<(WorkerId, i64)> =
            leases.iter().map(|lease| (lease.worker, lease.counter)).collect();
        let still = self.memory.leases.observe(now, &counters);
        let silence = |lease: &fleet::Lease| Silence { still: still[&lease.worker], closed: lease.closed };
        let workers = leases.iter().map(|lease| (lease.worker, silence(lease))).collect();
        let gangs = fleet::gangs(&self.pool).await?;
        let ended: HashSet<WorkerId> =
            silence::ended(&workers, &gangs, self.config.patience).into_iter().collect();
        for lease in leases.iter().filter(|lease| ended.contains(&lease.worker)) {
            if let Some(name) = fleet::end_lease(&self.pool, lease.worker, lease.counter).await? {
                metrics::lease_ended();
                info!(worker = name, "lease ended");
            }
        }
        Ok(())
    }

    /// Ends the part of every member whose worker is gone.
    async fn take_back(&self) -> Result<(), DbError> {
        for orphan in queue::orphans(&self.pool).await? {
            let why = if orphan.restarted { "was started anew" } else { "fell silent; its lease ended" };
            gang::member_gone(&self.pool, gang::Moment::of(&self.hub), &orphan, why).await?;
            info!(run = %orphan.run, worker = orphan.name, why, "member gone");
            self.hub.job_changed(orphan.run.job);
            self.hub.want_dispatch();
        }
        Ok(())
    }

    async fn time_loading(&mut self, leadership: &Leadership, now: Instant) -> Result<(), DbError> {
        let loading: HashSet<(JobId, Fence)> = queue::loading(&self.pool).await?.into_iter().collect();
        self.memory.loading_since.retain(|key, _| loading.contains(key));
        for key in loading {
            let since = *self.memory.loading_since.entry(key.clone()).or_insert(now);
            let (job, fence) = key;
            if now.duration_since(since) >= self.config.load_limit {
                let message = format!("was not ready within {} s", self.config.load_limit.as_secs());
                gang::give_up_loading(&self.pool, leadership, job, &fence, &message).await?;
                self.hub.job_changed(job);
            }
        }
        Ok(())
    }

    async fn schedule(&mut self, leadership: &Leadership, now: Instant) -> Result<Tick, DbError> {
        let started = Instant::now();
        let fleet = self.memory.sight.fleet(now, &fleet::free(&self.pool).await?);
        let workers = u32::try_from(fleet.len()).unwrap_or(u32::MAX);
        let (tenants, over_budget) = (self.memory.tenants.len(), self.memory.over_budget.as_slice());
        let unmatched = self.memory.sight.unmatched();
        let window = Window { workers, unmatched: &unmatched, tenants, over_budget };
        let entries = queue::queued(&self.pool, window).await?;
        self.memory.sight.match_selectors(&entries, &fleet);
        let queued = self.memory.sight.queue(now, &entries);
        let gangs = queue::gangs(&self.pool).await?;
        let ended = queue::troubled_places(&self.pool).await?;
        let held = self.memory.sight.gangs(now, &gangs, &ended);
        let times = Times::usual(self.config.gather);
        let decisions = scheduler::schedule(&queued.into(), &held, &fleet, &self.memory.tenants, times);
        self.start_all(leadership, &decisions).await?;
        for decision in &decisions {
            self.carry_out(leadership, decision, &gangs).await?;
        }
        self.explain(now, &decisions, &entries).await?;
        if !entries.is_empty() {
            metrics::decision(started.elapsed());
        }
        let waits = decisions.iter().all(|decision| matches!(decision, Decision::Wait { .. }));
        Ok(if waits { Tick::Same } else { Tick::Changed })
    }

    async fn carry_out(
        &self,
        leadership: &Leadership,
        decision: &Decision,
        gangs: &[GangEntry],
    ) -> Result<(), DbError> {
        match decision {
            // Done for all at once.
            Decision::Start { .. } | Decision::Wait { .. } => {}
            Decision::Preempt { job, for_job } => {
                if gang::preempt(&self.pool, leadership, *job, *for_job).await? {
                    info!(%job, %for_job, "preempted");
                    self.changed(*job);
                }
            }
            Decision::Grow { job, places } => {
                // Whoever runs the job already holds a place that the rows forgot: it is taken up, not given another.
                for place in places.iter().filter(|place| !self.hub.lists(place.worker, *job)) {
                    self.grow(leadership, *job, *place).await?;
                }
            }
            Decision::Shrink { job, places, for_job } => {
                let gang = gangs.iter().find(|gang| gang.job == *job && gang.standing != Standing::Ending);
                let Some(gang) = gang else { return Ok(()) };
                for place in places {
                    let run = RunId { job: *job, attempt: gang.attempt, place: PlaceNo(*place) };
                    self.shrink(leadership, run, *for_job).await?;
                }
            }
        }
        Ok(())
    }

    async fn grow(
        &self,
        leadership: &Leadership,
        job: JobId,
        place: scheduler::Place,
    ) -> Result<(), DbError> {
        match gang::grow(&self.pool, leadership, job, place).await {
            Ok(Some(number)) => {
                info!(%job, place = %number, "a worker is to join");
                self.changed(job);
                Ok(())
            }
            Ok(None) => Ok(()),
            // The slot was given away, or the worker is in the gang, by another coordinator at the same instant.
            Err(error) if error.unique_violation().is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn shrink(&self, leadership: &Leadership, run: RunId, for_job: JobId) -> Result<(), DbError> {
        let reason = format!("{} needs the worker", for_job.name());
        if gang::shrink(&self.pool, leadership, run, &reason).await? {
            info!(%run, %for_job, "a worker is asked to leave");
            self.changed(run.job);
        }
        Ok(())
    }

    fn changed(&self, job: JobId) {
        self.hub.job_changed(job);
        self.hub.want_dispatch();
    }
}

/// Whether something is due at `now` that was last done at `last`; notes that it is done.
fn due(last: &mut Option<Instant>, now: Instant, every: Duration) -> bool {
    let due = last.is_none_or(|last| now.duration_since(last) >= every);
    if due {
        *last = Some(now);
    }
    due
}
