//! Writing checkpoints beside training: one at a time, on a thread of its own, missed ones told about.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lorafleet_lora::train::Frozen;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Checkpoint, CheckpointId, Digest, Draft, FileName};
use tracing::{info, warn};

use super::{
    Run,
    end::End,
    folder::Folder,
    unreported,
    writing::{self, Held, News, Waited, Work, Writing},
};
use crate::telemetry;

/// How long training waits for a checkpoint on its way when the next is due; then the next is left out.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that is given up may take to let go of its state.
const LET_GO: Duration = Duration::from_secs(2);
/// How long the last checkpoint of a run is tried.
const LAST: Duration = Duration::from_secs(3600);
/// How long a member that leaves waits for its checkpoint.
const SETTLE: Duration = Duration::from_secs(3);
/// A run that is told to stop while it waits for the store notices within this time.
const LOOK: Duration = Duration::from_millis(100);

/// What all checkpoints of a run have in common.
pub(super) struct Of {
    pub spec_sha256: Digest,
    /// Of exact sums; 0: there are none.
    pub scale_bits: u32,
    /// Files that every checkpoint has beside the trainer's: see [`super::companions`].
    pub more: BTreeMap<FileName, Bytes>,
}

/// The checkpoints of one run, written by index 0.
pub(super) struct Checkpoints<'a> {
    run: &'a Run,
    draft: Draft,
    more: BTreeMap<FileName, Bytes>,
    under_way: Option<Writing>,
}

impl<'a> Checkpoints<'a> {
    pub fn new(run: &'a Run, of: Of) -> Result<Self, End> {
        let id = run.assign.job.strip_prefix("jobs/").unwrap_or_default();
        let job = id.parse().map_err(|error| End::lost(format!("{}: {error}", run.assign.job)))?;
        let draft = Draft {
            job,
            step: 0,
            fence: run.fence(),
            parent: None,
            is_final: false,
            spec_sha256: of.spec_sha256,
            kind: run.workshop.kind.clone(),
            scale_bits: of.scale_bits,
        };
        Ok(Self { run, draft, more: of.more, under_way: None })
    }

    /// Training went on from this one (none: it began from scratch), on every member: it is the parent of all that are written from now on, whoever
    /// writes them.
    pub fn set_parent(&mut self, id: Option<CheckpointId>) {
        self.draft.parent = id;
    }

    /// The checkpoint that training resumed from.
    pub fn parent(&self) -> Option<&CheckpointId> {
        self.draft.parent.as_ref()
    }

    /// Begins to write a checkpoint beside training. While the one before is on its way, training waits; that is where
    /// two are due at once. When that takes too long, this one is left out. While the store is away nobody waits: this one
    /// takes the place of the one before.
    ///
    /// `best`: it is of the best evaluation so far, and stays until there is a better one.
    pub fn begin(&mut self, state: Frozen, best: bool) {
        let step = state.step();
        if let Waited::Working = self.make_way(PATIENCE, step) {
            self.miss(step, "the one before it is still on its way");
            return;
        }
        let work = self.work(Held::State(state.into()), step, false);
        let reporter = self.run.reporter.clone();
        let tell = move |news: News<'_>| match news {
            News::Written(checkpoint, took) => {
                written(checkpoint, took);
                if let Err(error) = lorafleet_failpoint::reach("checkpoint-before-row", step) {
                    warn!(%error, "checkpoint not reported");
                    return;
                }
                reporter.checkpoint(pb::Checkpoint { best, ..checkpoint.to_proto() });
            }
            News::Waits(error) => {
                let message =
                    format!("the checkpoint of step {step} waits for the store: {error}; training goes on");
                warn!(message);
                reporter.own_event("checkpoint-waits", &message);
            }
            News::Missed(why) => {
                missed(step, why);
                reporter.own_event("checkpoint-missed", &miss_message(step, why));
            }
        };
        match Writing::start(work, self.run.workshop.background.clone(), tell) {
            Ok(writing) => self.under_way = Some(writing),
            Err(error) => self.miss(step, &format!("no thread for it: {error}")),
        }
    }

    /// Writes the checkpoint that a polite leave stands on, and waits for it, as long as nobody says stop.
    pub fn write_last(&mut self, state: Frozen) {
        let step = state.step();
        match self.write(Held::State(state.into()), step, false, LAST) {
            Ok(checkpoint) => self.run.reporter.checkpoint(checkpoint.to_proto()),
            Err(end) => self.miss(step, &end.to_string()),
        }
    }

    /// Writes the final checkpoint and waits for it.
    ///
    /// # Errors
    /// It is not whole after this time, which an event has said; a newer generation begins; or the run was told to stop.
    pub fn write_final(&mut self, state: Frozen, limit: Duration) -> Result<Checkpoint, End> {
        let step = state.step();
        self.write(Held::State(state.into()), step, true, limit)
    }

    /// Writes a model that no step of this job has made, as the final checkpoint, and waits for it.
    ///
    /// # Errors
    /// As those of [`Checkpoints::write_final`].
    pub fn write_model(&mut self, folder: &Arc<Folder>, limit: Duration) -> Result<Checkpoint, End> {
        self.write(Held::Model(folder.clone()), 0, true, limit)
    }

    /// Waits for the one under way, so that a member that leaves has reported it; not for long, since the gang waits for
    /// its end.
    pub fn settle(&mut self) {
        match self.under_way.as_ref().map_or(Waited::Done, |writing| writing.wait(SETTLE)) {
            Waited::Done => self.under_way = None,
            how => warn!(?how, "left while a checkpoint was on its way"),
        }
    }

    /// Tries until it is whole, the run is stopped, or time is up.
    fn write(&mut self, held: Held, step: u64, is_final: bool, limit: Duration) -> Result<Checkpoint, End> {
        let deadline = Instant::now() + limit;
        let lost =
            |step: u64, why: &str| End::lost(format!("the checkpoint of step {step} was not written: {why}"));
        // One at a time also here; what is on its way ends by itself.
        while self.make_way(2 * LOOK, step) == Waited::Working {
            self.run.check()?;
            if Instant::now() >= deadline {
                return Err(lost(step, "the one before it is still on its way"));
            }
        }
        let work = self.work(held, step, is_final);
        let mut pauses = writing::backoff();
        loop {
            let started = Instant::now();
            let tried = self.run.block_on(async {
                tokio::select! {
                    tried = tokio::time::timeout_at(deadline.into(), work.write()) => Some(tried),
                    () = self.interrupted(is_final) => None,
                }
            });
            let error = match tried {
                None => return Err(self.interruption(work.draft.step)),
                Some(Ok(Ok(checkpoint))) => {
                    written(&checkpoint, started.elapsed());
                    return Ok(checkpoint);
                }
                Some(Ok(Err(error))) if writing::is_hopeless(&error) => {
                    return Err(lost(work.draft.step, &error.to_string()));
                }
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(_)) => "the store is too slow".to_owned(),
            };
            let message = format!("the end waits for the checkpoint of step {}: {error}", work.draft.step);
            warn!(message);
            self.run.reporter.own_event("checkpoint-waits", &message);
            if Instant::now() >= deadline {
                return Err(lost(work.draft.step, &error));
            }
            if self.run.control.wait_end(pauses.pause(), is_final) {
                return Err(self.interruption(work.draft.step));
            }
        }
    }

    /// Makes way for the checkpoint of `next`: waits for the one under way, and gives it up when the store does not take
    /// it.
    fn make_way(&mut self, patience: Duration, next: u64) -> Waited {
        let Some(writing) = self.under_way.take() else { return Waited::Done };
        let waited = writing.wait(patience);
        match waited {
            Waited::Done => {}
            Waited::Working => self.under_way = Some(writing),
            Waited::Failing => {
                let step = writing.step();
                if !writing.give_up(LET_GO) {
                    self.miss(step, &format!("the store did not take it before that of step {next} was due"));
                }
            }
        }
        waited
    }

    /// Ends when the run is told to stop; while the result is written also when a newer generation begins: it is the next
    /// one's to write, and its members wait for this one.
    async fn interrupted(&self, is_final: bool) {
        while self.run.check().is_ok() && !(is_final && self.run.control.is_superseded()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn interruption(&self, step: u64) -> End {
        match self.run.check() {
            Err(end) => end,
            Ok(()) => {
                End::lost(format!("the result of step {step} was not written: a newer generation begins"))
            }
        }
    }

    fn work(&self, held: Held, step: u64, is_final: bool) -> Work {
        // Of the generation that the member is in; one on its way keeps its own.
        let fence = self.run.fence();
        let draft = Draft { step, fence, is_final, ..self.draft.clone() };
        let mut more = self.more.clone();
        if let Held::State(_) = held {
            more.extend(unreported::file(self.run.reporter.unacknowledged()));
        }
        Work { store: self.run.store.clone(), draft, held, more }
    }

    fn miss(&self, step: u64, why: &str) {
        missed(step, why);
        self.run.reporter.own_event("checkpoint-missed", &miss_message(step, why));
    }
}

fn written(checkpoint: &Checkpoint, took: Duration) {
    let bytes: u64 = checkpoint.manifest.files.values().map(|file| file.size_bytes).sum();
    metrics::histogram!(telemetry::CHECKPOINT_SECONDS).record(took);
    metrics::histogram!(telemetry::CHECKPOINT_BYTES).record(bytes as f64);
    info!(checkpoint = %checkpoint.id(), bytes, seconds = took.as_secs_f64(), "checkpoint written");
}

fn missed(step: u64, why: &str) {
    metrics::counter!(telemetry::CHECKPOINTS_MISSED).increment(1);
    warn!(step, why, "checkpoint missed");
}

fn miss_message(step: u64, why: &str) -> String {
    format!("the checkpoint of step {step} was not written: {why}; training goes on")
}
