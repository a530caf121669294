//! Keeps gangs moving on this coordinator: carries an attempt on when something happened to it, tells its members at
//! once, and looks again when the rule asks for it. Whatever is missed here the dispatcher's poll finds in the rows.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use sqlx::PgPool;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Fenced,
    advance::{Advance, Moment, Opened, advance},
    finish::{Finish, finished_all},
    ready::{Loaded, ready},
};
use crate::{
    checkpoints,
    db::{DbError, within},
    group::Group,
    hub::Hub,
    ids::{JobId, PlaceNo, RunId, WorkerId},
    queue,
};

/// Looking for manifests without a row may take this long; without an answer the gang begins with the rows there are.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);

/// What moves gangs on; clones are the same one.
#[derive(Clone, Debug)]
pub struct Conductor {
    pool: PgPool,
    hub: Arc<Hub>,
    store: Store,
    /// Jobs whose manifests are being looked for.
    adopting: Arc<Mutex<HashSet<JobId>>>,
    /// When jobs are to be looked at again.
    waking: Arc<Mutex<HashMap<JobId, Instant>>>,
    words: Words,
}

/// What workers say that is written together.
#[derive(Clone, Debug)]
struct Words {
    ready: Group<Loaded, Fenced<Advance>>,
    ended: Group<Ended, Fenced<Advance>>,
}

/// A place whose holder says that its part is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Who says it.
    pub worker: WorkerId,
    /// Its place.
    pub run: RunId,
    /// What became of it.
    pub outcome: pb::finished::Outcome,
}

impl Words {
    fn new(pool: &PgPool, hub: &Arc<Hub>) -> Self {
        let (of_ready, of_ended) = ((pool.clone(), Arc::clone(hub)), (pool.clone(), Arc::clone(hub)));
        let ready = Group::new(move |said: Vec<Loaded>| {
            let (pool, hub) = of_ready.clone();
            async move { Ok(ready(&pool, Moment::of(&hub), &said).await?.into_iter().map(Ok).collect()) }
        });
        let ended = Group::new(move |said: Vec<Ended>| {
            let (pool, hub) = of_ended.clone();
            async move {
                let finishes: Vec<Finish<'_>> = said.iter().map(Ended::finish).collect();
                let done = finished_all(&pool, Moment::of(&hub), &finishes).await?;
                Ok(done.into_iter().map(Ok).collect())
            }
        });
        Self { ready, ended }
    }
}

impl Ended {
    fn finish(&self) -> Finish<'_> {
        Finish { worker: self.worker, run: self.run, outcome: &self.outcome }
    }
}

impl Conductor {
    /// One for this process.
    pub fn new(pool: PgPool, hub: Arc<Hub>, store: Store) -> Self {
        let words = Words::new(&pool, &hub);
        Self { pool, hub, store, adopting: Arc::default(), waking: Arc::default(), words }
    }

    /// What this process knows beside the rows.
    pub fn moment(&self) -> Moment<'_> {
        Moment::of(&self.hub)
    }

    /// Stores that a place's holder has loaded, together with what others say at this moment, and carries its attempt on.
    pub async fn ready(&self, loaded: Loaded) -> Result<Fenced<()>, DbError> {
        let job = loaded.run.job;
        match self.words.ready.bring(loaded).await? {
            Fenced::Stale => Ok(Fenced::Stale),
            Fenced::Done(advance) => Ok(Fenced::Done(self.follow(job, advance).await?)),
        }
    }

    /// Ends a place by its holder's word, together with what others say at this moment.
    pub async fn finished(&self, ended: Ended) -> Result<Fenced<Advance>, DbError> {
        self.words.ended.bring(ended).await
    }

    /// Looks at a job's attempt, carries it on as far as it can go, and tells whom it concerns.
    pub async fn advance(&self, job: JobId) -> Result<(), DbError> {
        let advance = advance(&self.pool, self.moment(), job).await?;
        self.follow(job, advance).await
    }

    /// A worker's stream has ended: the gangs that waited for its word may not have to any more.
    pub async fn stream_ended(&self, worker: WorkerId) -> Result<(), DbError> {
        for job in queue::jobs_that_wait_for(&self.pool, worker).await? {
            self.advance(job).await?;
        }
        Ok(())
    }

    /// Tells whom it concerns what came of looking at an attempt.
    pub async fn follow(&self, job: JobId, advance: Advance) -> Result<(), DbError> {
        match advance {
            Advance::Rests => {}
            Advance::Again(wait) => self.look_again(job, wait),
            Advance::Adopt => self.adopt(job),
            Advance::Opened(opened) => {
                info!(%job, fence = %opened.fence, members = opened.members.len(), "generation opened");
                self.hub.forget_waiting(job);
                let told = self.tell_begin(job, &opened).await;
                self.changed(job);
                told?;
            }
            Advance::Changed => self.changed(job),
        }
        Ok(())
    }

    fn changed(&self, job: JobId) {
        self.hub.job_changed(job);
        self.hub.want_dispatch();
        self.hub.want_scheduler();
    }

    /// Tells every member that is connected here to begin, without waiting for the dispatcher.
    async fn tell_begin(&self, job: JobId, opened: &Opened) -> Result<(), DbError> {
        // The first generation of all has none before it.
        let resume = match opened.fence.attempt == 1 && opened.fence.generation == 1 {
            true => Vec::new(),
            false => checkpoints::resumable(&self.pool, job, &opened.fence).await?,
        };
        let members = opened.members.iter().map(|(_, member)| member.clone()).collect();
        let begin = pb::Begin { job: job.name(), fence: Some((&opened.fence).into()), members, resume };
        for (worker, member) in &opened.members {
            let run = RunId { job, attempt: opened.fence.attempt, place: PlaceNo(member.place) };
            self.hub.begin(*worker, run, &opened.fence, begin.clone());
        }
        Ok(())
    }

    /// Looks at the attempt again after a while; once, however often it is asked for.
    fn look_again(&self, job: JobId, wait: Duration) {
        let due = Instant::now() + wait;
        if !self.is_sooner(job, due) {
            return;
        }
        let conductor = self.clone();
        let looking = async move {
            tokio::time::sleep_until(due).await;
            conductor.has_woken(job, due);
            if let Err(error) = within(conductor.advance(job)).await {
                warn!(%job, %error, "gang not looked at; the next poll does");
            }
        };
        // Boxed, since looking again may lead to looking again.
        let looking: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(looking);
        tokio::spawn(looking);
    }

    /// Notes when a job is to be looked at; false when that is to happen before anyway.
    fn is_sooner(&self, job: JobId, due: Instant) -> bool {
        let mut waking = lock(&self.waking);
        let sooner = waking.get(&job).is_none_or(|noted| due < *noted);
        if sooner {
            waking.insert(job, due);
        }
        sooner
    }

    fn has_woken(&self, job: JobId, due: Instant) {
        let mut waking = lock(&self.waking);
        if waking.get(&job) == Some(&due) {
            waking.remove(&job);
        }
    }

    /// Asks the store for manifests without a row, then begins, on a task of its own.
    fn adopt(&self, job: JobId) {
        if !lock(&self.adopting).insert(job) {
            return;
        }
        let conductor = self.clone();
        tokio::spawn(async move {
            conductor.adopt_manifests(job).await;
            let begun = async {
                let moment = Moment { adopted: true, ..conductor.moment() };
                let advance = advance(&conductor.pool, moment, job).await?;
                conductor.follow(job, advance).await
            };
            if let Err(error) = within::<_, DbError>(begun).await {
                warn!(%job, %error, "gang not begun; tried again");
            }
            lock(&conductor.adopting).remove(&job);
        });
    }

    async fn adopt_manifests(&self, job: JobId) {
        let adopting = async {
            let Some(attempt) = queue::live_attempt(&self.pool, job).await? else { return Ok(0) };
            checkpoints::adopt(&self.pool, &self.store, job, attempt).await
        };
        match tokio::time::timeout(ADOPT_LIMIT, adopting).await {
            Ok(Ok(0)) => {}
            Ok(Ok(adopted)) => info!(%job, adopted, "manifests without a row adopted"),
            Ok(Err(error)) => warn!(%job, %error, "manifests without a row were not looked for"),
            Err(_) => warn!(%job, limit = ?ADOPT_LIMIT, "manifests without a row were not found in time"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks, and what they guard would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
