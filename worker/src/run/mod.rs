//! One place of a gang on this worker, from its assignment to its end.
//!
//! [`prepare`] loads base and data, once. Then the member [lives](life) through generations: in each it joins its peers,
//! agrees with them on one state ([`exchange`], [`transfer`], [`restore`]), trains ([`steps`]) and, once the last step
//! is done, makes the result ([`finish`]). When the collective breaks it keeps its state and waits for the next. A job
//! may also only [evaluate](evaluating) an adapter, or [merge](merging) it: other [work](life::Work) in the same life.
//! Runs on a thread of its own, inside a rayon pool; whatever waits for the network blocks this thread and no other.

mod boundary;
mod checkpoints;
mod companions;
mod control;
mod discord;
mod end;
mod evaluate;
mod evaluating;
mod exchange;
mod finish;
mod folder;
mod generation;
mod life;
mod member;
mod merging;
mod pace;
mod prepare;
mod report;
mod restore;
mod speed;
mod start;
mod steps;
mod transfer;
mod unreported;
mod words;
mod writing;

use std::{sync::Arc, time::Duration};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use pb::finished::Outcome;
use tokio::runtime::Handle;
use tracing::{info, warn};

use self::end::End;
pub use self::{
    control::RunControl,
    end::{missing, outcome_name},
    folder::Folder,
    report::{Backlog, Reporter},
    writing::{Held, News, Waited, Work, Writing},
};
use crate::{base_cache::Cache, collective::tcp};

/// What a worker process has for all its runs.
pub struct Workshop {
    /// Files and the last base.
    pub cache: Cache,
    /// Where peers call.
    pub listener: tcp::Listener,
    /// The gang's deadlines.
    pub tcp: tcp::TcpOptions,
    /// How long a member waits for a generation without the coordinator.
    pub alone_limit: Duration,
    /// Where training computes.
    pub pool: rayon::ThreadPool,
    /// Goes into manifests: same kind, same bits.
    pub kind: String,
    /// Runs the store's I/O.
    pub runtime: Handle,
    /// Runs that of what is written beside training: see [`crate::background`].
    pub background: Handle,
}

/// One place on this worker.
pub struct Run {
    /// What all runs share.
    pub workshop: Arc<Workshop>,
    /// The object store.
    pub store: Store,
    /// What the coordinator assigned.
    pub assign: pb::Assign,
    /// The line from the agent.
    pub control: Arc<RunControl>,
    /// The line to it.
    pub reporter: Arc<dyn Reporter>,
}

impl Run {
    /// Does what is assigned to the end, whichever it is. Blocks; call it from a thread of its own.
    pub fn execute(&self) -> Outcome {
        // The pool's threads do not know the span of this one.
        let span = tracing::Span::current();
        let outcome = match self.workshop.pool.install(|| span.in_scope(|| self.live())) {
            Ok(succeeded) => Outcome::Succeeded(succeeded),
            Err(end) => self.judge(end).outcome(),
        };
        let name = outcome_name(&outcome);
        metrics::counter!(crate::telemetry::RUNS, "outcome" => name).increment(1);
        outcome
    }

    /// What happened after a stop is the stop's doing.
    fn judge(&self, end: End) -> End {
        let told = self.control.stopped().is_some();
        match &end {
            End::Released { step } => info!(step, "released"),
            _ if told => info!("stopped"),
            End::Failed(message) | End::MayHeal(message) => warn!(message, "the job failed"),
            other => warn!(reason = %other, "the run ended"),
        }
        if told { End::Stopped } else { end }
    }

    /// Waits for the store.
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.workshop.runtime.block_on(work)
    }

    /// Whether the run was told to stop.
    fn check(&self) -> Result<(), End> {
        if self.control.stopped().is_some() { Err(End::Stopped) } else { Ok(()) }
    }

    /// Whether it was told to stop, or to give its place back, while it has nothing that could be lost.
    fn check_loading(&self) -> Result<(), End> {
        self.check()?;
        if self.control.is_leaving() { Err(End::Released { step: 0 }) } else { Ok(()) }
    }

    /// Of the generation that it is in, or was in last.
    fn fence(&self) -> pb::Fence {
        self.control.fence()
    }
}
