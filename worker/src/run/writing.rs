//! One checkpoint on its way to the store: a thread of low priority that makes, hashes and uploads it, until it is whole.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lorafleet_lora::train::{Frozen, FrozenFile};
use lorafleet_store::{Checkpoint, Contents, Draft, FileName, Retry, Store, StoreError, write_checkpoint};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::folder::{Files, Folder};
use crate::{agent::Backoff, background::be_nice};

/// Within one try the store is asked again only for so long: how it stands is known soon, and tries have no end.
const RETRY: Retry = Retry {
    attempts: 3,
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(2),
    attempt_limit: Duration::from_secs(60),
    total_limit: Duration::from_secs(10),
};
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is to be written.
pub struct Work {
    /// Where to.
    pub store: Store,
    /// What it is.
    pub draft: Draft,
    /// What it holds.
    pub held: Held,
    /// Files beside those.
    pub more: BTreeMap<FileName, Bytes>,
}

/// What a checkpoint holds.
pub enum Held {
    /// The state of training.
    State(Box<Frozen>),
    /// A model on this machine.
    Model(Arc<Folder>),
}

/// How a checkpoint fares, told on its thread.
#[derive(Debug)]
pub enum News<'a> {
    /// It is whole.
    Written(&'a Checkpoint, Duration),
    /// The store did not take it the first time; it is tried again.
    Waits(&'a StoreError),
    /// Trying again is of no use: it will not be written.
    Missed(&'a str),
}

/// A checkpoint that is being written beside training.
pub struct Writing {
    step: u64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    given_up: CancellationToken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Working,
    /// The last try failed.
    Failing,
    /// It has ended, well or not.
    Done { whole: bool },
}

/// How a [`Writing`] stands after a wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It has ended.
    Done,
    /// The store does not take it: waiting longer is of no use.
    Failing,
    /// It is still under way.
    Working,
}

impl Work {
    /// Tries once.
    ///
    /// # Errors
    /// Those of [`write_checkpoint`].
    pub async fn write(&self) -> Result<Checkpoint, StoreError> {
        let mut files = Files::new();
        for (name, bytes) in &self.more {
            files.insert(name.clone(), Box::new(bytes.clone()));
        }
        match &self.held {
            Held::Model(folder) => files.extend(folder.contents()?),
            Held::State(state) => {
                for (name, file) in state.files() {
                    let name = name.parse().expect("the trainer's file names are plain names");
                    let contents: Box<dyn Contents + '_> = match file {
                        FrozenFile::Bytes(bytes) => Box::new(Bytes::from(bytes)),
                        FrozenFile::Tensors(file) => Box::new(Tensors(file)),
                    };
                    files.insert(name, contents);
                }
            }
        }
        let store = self.store.clone().with_retry(RETRY);
        write_checkpoint(&store, &self.draft, &files).await
    }
}

struct Tensors<'a>(lorafleet_lora::TensorFile<'a>);

impl Contents for Tensors<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_> {
        Box::new(self.0.pieces().map(Bytes::from))
    }
}

/// Whether trying again cannot help.
pub(super) fn is_hopeless(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict { .. } | StoreError::Manifest { .. } | StoreError::Id(_))
}

/// The pauses between tries.
pub(super) fn backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

impl Writing {
    /// Begins; the I/O is the runtime's, which should be that of [`crate::background`]. `tell` is called from the writing
    /// thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        work: Work,
        runtime: Handle,
        tell: impl FnMut(News<'_>) + Send + 'static,
    ) -> io::Result<Writing> {
        let (step, shared) = (work.draft.step, Arc::<Shared>::default());
        let span = tracing::Span::current();
        let theirs = shared.clone();
        let body = move || {
            let _span = span.enter();
            be_nice();
            let whole = theirs.write(&work, &runtime, tell);
            // The state goes first: whoever waits for the end may count on its memory.
            drop(work);
            theirs.set(State::Done { whole });
        };
        thread::Builder::new().name("checkpoint".into()).spawn(body)?;
        Ok(Writing { step, shared })
    }

    /// The step that it holds.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Waits at most this long, and no longer once the store does not take it.
    pub fn wait(&self, patience: Duration) -> Waited {
        let working = |state: &mut State| *state == State::Working;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), patience, working);
        match *waited.unwrap_or_else(PoisonError::into_inner).0 {
            State::Working => Waited::Working,
            State::Failing => Waited::Failing,
            State::Done { .. } => Waited::Done,
        }
    }

    /// Gives it up, and waits until its thread has let go of the state, but not for long. Nothing more is told then; true
    /// when it was whole after all.
    pub fn give_up(self, patience: Duration) -> bool {
        self.shared.given_up.cancel();
        let ends = |state: &mut State| !matches!(state, State::Done { .. });
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), patience, ends);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == State::Done { whole: true }
    }
}

impl Drop for Writing {
    /// Nobody waits for it any more: the run is over.
    fn drop(&mut self) {
        self.shared.given_up.cancel();
    }
}

impl Shared {
    /// Tries until it is whole, hopeless, or given up; true when it is whole.
    fn write(&self, work: &Work, runtime: &Handle, mut tell: impl FnMut(News<'_>)) -> bool {
        let mut pauses = backoff();
        let mut first = true;
        loop {
            let started = Instant::now();
            match runtime.block_on(self.given_up.run_until_cancelled(work.write())) {
                None => return false,
                Some(Ok(checkpoint)) => {
                    tell(News::Written(&checkpoint, started.elapsed()));
                    return true;
                }
                Some(Err(error)) if is_hopeless(&error) => {
                    tell(News::Missed(&error.to_string()));
                    return false;
                }
                Some(Err(error)) if std::mem::take(&mut first) => tell(News::Waits(&error)),
                Some(Err(error)) => debug!(step = work.draft.step, %error, "checkpoint not written yet"),
            }
            self.set(State::Failing);
            let pause = async { tokio::time::sleep(pauses.pause()).await };
            if runtime.block_on(self.given_up.run_until_cancelled(pause)).is_none() {
                return false;
            }
        }
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
