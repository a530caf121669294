//! Writing checkpoints beside training: one at a time, on a thread of its own, missed ones told about.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lorafleet_lora::{
    exact::SCALE_BITS,
    train::{Frozen, Snapshot},
};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::job::Reduce;
use lorafleet_store::{Checkpoint, CheckpointId, Draft, FileName, StoreError, write_checkpoint};
use tracing::{info, warn};

use super::{Run, companions, end::End, prepare::Parts};
use crate::{agent::Backoff, telemetry};

/// How long training waits for a checkpoint under way when the next is due; then the next is left out.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the last checkpoint of a run is tried.
const LAST: Duration = Duration::from_secs(3600);

/// The checkpoints of one run, written by index 0.
pub(super) struct Checkpoints<'a> {
    run: &'a Run,
    draft: Draft,
    /// Files that every checkpoint has beside the trainer's: see [`super::companions`].
    more: BTreeMap<FileName, Bytes>,
    under_way: Option<UnderWay>,
    /// The latest whole one.
    latest: Arc<Mutex<Option<CheckpointId>>>,
}

struct UnderWay {
    step: u64,
    /// Closed when it is done, well or not.
    done: Receiver<()>,
}

impl<'a> Checkpoints<'a> {
    pub fn new(run: &'a Run, parts: &Parts) -> Result<Self, End> {
        let id = run.assign.job.strip_prefix("jobs/").unwrap_or_default();
        let job = id.parse().map_err(|error| End::lost(format!("{}: {error}", run.assign.job)))?;
        let exact = parts.job.train.reduce == Reduce::Exact;
        let draft = Draft {
            job,
            step: 0,
            fence: run.fence(),
            parent: None,
            is_final: false,
            spec_sha256: parts.spec_sha256,
            kind: run.workshop.kind.clone(),
            scale_bits: if exact { SCALE_BITS } else { 0 },
        };
        let more = companions::files(parts)?;
        Ok(Self { run, draft, more, under_way: None, latest: Arc::default() })
    }

    /// Training goes on from this one.
    pub fn resumed_from(&mut self, id: CheckpointId) {
        *lock(&self.latest) = Some(id);
    }

    /// Begins to write a checkpoint beside training. Waits when the one before is still under way, and leaves this one
    /// out when that takes too long: the store is slow or away, and training goes on.
    ///
    /// `best`: it is of the best evaluation so far, and stays until there is a better one.
    pub fn begin(&mut self, state: Frozen, best: bool) {
        if let Some(step) = self.wait(PATIENCE) {
            self.miss(state.step(), &format!("the one of step {step} is still being written"));
            return;
        }
        let (draft, more) = (self.draft(state.step(), false), self.more.clone());
        let (store, reporter) = (self.run.store.clone(), self.run.reporter.clone());
        let (runtime, latest) = (self.run.workshop.runtime.clone(), self.latest.clone());
        let (end, done) = mpsc::channel::<()>();
        let span = tracing::Span::current();
        let work = move || {
            let _span = span.enter();
            let started = Instant::now();
            // Here, so that training waits for a copy of the state only.
            let files = files(state.encode(), more);
            match runtime.block_on(write_checkpoint(&store, &draft, &files)) {
                Ok(checkpoint) => {
                    *lock(&latest) = Some(checkpoint.id().clone());
                    written(&checkpoint, started);
                    reporter.checkpoint(pb::Checkpoint { best, ..checkpoint.to_proto() });
                }
                Err(error) => {
                    missed(draft.step, &error.to_string());
                    reporter.own_event("checkpoint-missed", &miss_message(draft.step, &error.to_string()));
                }
            }
            drop(end);
        };
        match thread::Builder::new().name("checkpoint".into()).spawn(work) {
            Ok(_) => self.under_way = Some(UnderWay { step: self.draft_step(), done }),
            Err(error) => self.miss(self.draft_step(), &format!("no thread for it: {error}")),
        }
    }

    /// Writes the checkpoint that a polite leave stands on, and waits for it, as long as nobody says stop.
    pub fn write_last(&mut self, state: Frozen) {
        let step = state.step();
        match self.write(state, false, LAST) {
            Ok(checkpoint) => self.run.reporter.checkpoint(checkpoint.to_proto()),
            Err(end) => self.miss(step, &end.to_string()),
        }
    }

    /// Writes the final checkpoint and waits for it.
    ///
    /// # Errors
    /// It is not whole after this time, which an event has said; or the run was told to stop.
    pub fn write_final(&mut self, state: Frozen, limit: Duration) -> Result<Checkpoint, End> {
        self.write(state, true, limit)
    }

    /// Waits for the one under way, so that a member that leaves has reported it.
    pub fn settle(&mut self) {
        if let Some(step) = self.wait(PATIENCE) {
            warn!(step, "left while a checkpoint was being written");
        }
    }

    /// Tries until it is whole, the run is stopped, or time is up.
    fn write(&mut self, state: Frozen, is_final: bool, limit: Duration) -> Result<Checkpoint, End> {
        let deadline = Instant::now() + limit;
        // One at a time also here; what is under way ends by itself.
        while let Some(step) = self.wait(Duration::from_millis(200)) {
            self.run.check()?;
            if Instant::now() >= deadline {
                return Err(End::lost(format!("the checkpoint of step {step} is still being written")));
            }
        }
        let (draft, files) = (self.draft(state.step(), is_final), files(state.encode(), self.more.clone()));
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let started = Instant::now();
            match self.run.block_on(write_checkpoint(&self.run.store, &draft, &files)) {
                Ok(checkpoint) => {
                    *lock(&self.latest) = Some(checkpoint.id().clone());
                    written(&checkpoint, started);
                    return Ok(checkpoint);
                }
                Err(error) if is_hopeless(&error) || Instant::now() >= deadline => {
                    return Err(End::lost(format!("the checkpoint of step {}: {error}", draft.step)));
                }
                Err(error) => {
                    let message = format!("the end waits for the checkpoint of step {}: {error}", draft.step);
                    warn!(message);
                    self.run.reporter.own_event("checkpoint-waits", &message);
                }
            }
            if self.run.control.wait_stop(backoff.pause()) {
                return Err(End::Stopped);
            }
        }
    }

    /// Waits for the one under way; its step when it is still under way after that.
    fn wait(&mut self, patience: Duration) -> Option<u64> {
        let UnderWay { step, done } = self.under_way.as_ref()?;
        if done.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            return Some(*step);
        }
        self.under_way = None;
        None
    }

    fn draft(&mut self, step: u64, is_final: bool) -> Draft {
        // A restored state that is written again under this fence has itself as parent's step, which is allowed.
        let (fence, parent) = (self.run.fence(), lock(&self.latest).clone());
        self.draft = Draft { step, fence, is_final, parent, ..self.draft.clone() };
        self.draft.clone()
    }

    fn draft_step(&self) -> u64 {
        self.draft.step
    }

    fn miss(&self, step: u64, why: &str) {
        missed(step, why);
        self.run.reporter.own_event("checkpoint-missed", &miss_message(step, why));
    }
}

fn lock(latest: &Mutex<Option<CheckpointId>>) -> std::sync::MutexGuard<'_, Option<CheckpointId>> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

fn written(checkpoint: &Checkpoint, started: Instant) {
    let bytes: u64 = checkpoint.manifest.files.values().map(|file| file.size_bytes).sum();
    metrics::histogram!(telemetry::CHECKPOINT_SECONDS).record(started.elapsed());
    metrics::histogram!(telemetry::CHECKPOINT_BYTES).record(bytes as f64);
    info!(checkpoint = %checkpoint.id(), bytes, seconds = started.elapsed().as_secs_f64(), "checkpoint written");
}

fn missed(step: u64, why: &str) {
    metrics::counter!(telemetry::CHECKPOINTS_MISSED).increment(1);
    warn!(step, why, "checkpoint missed");
}

fn miss_message(step: u64, why: &str) -> String {
    format!("the checkpoint of step {step} was not written: {why}; training goes on")
}

/// Whether trying again cannot help.
fn is_hopeless(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict { .. } | StoreError::Manifest { .. } | StoreError::Id(_))
}

/// The trainer's files and those that stay the same, by name.
fn files(snapshot: Snapshot, more: BTreeMap<FileName, Bytes>) -> BTreeMap<FileName, Bytes> {
    let named = |(name, bytes): (String, Vec<u8>)| {
        let name = name.parse().expect("the trainer's file names are plain names");
        (name, Bytes::from(bytes))
    };
    more.into_iter().chain(snapshot.files.into_iter().map(named)).collect()
}
