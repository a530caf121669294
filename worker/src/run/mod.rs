//! One attempt at a job on this worker, from its assignment to its end.
//!
//! [`prepare`] loads base and data; then, once the coordinator says begin, the member joins its gang, takes over the
//! newest whole checkpoint ([`restore`]), trains ([`steps`]) and finishes. Runs on a thread of its own, inside a rayon
//! pool; whatever waits for the network blocks this thread and no other.

mod checkpoints;
mod companions;
mod control;
mod end;
mod evaluate;
mod finish;
mod prepare;
mod report;
mod restore;
mod start;
mod steps;
mod writing;

use std::{sync::Arc, time::Duration};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use pb::finished::Outcome;
use tokio::runtime::Handle;
use tracing::{info, warn};

use self::{control::Interrupt, end::End, prepare::Prepared, steps::Training};
pub use self::{
    control::RunControl,
    end::{missing, outcome_name},
    report::Reporter,
    writing::{News, Waited, Work, Writing},
};
use crate::{
    base_cache::Cache,
    collective::{Collective, Peer, tcp},
};

/// Without a word to begin for this long the place is given up; the coordinator says so itself long before.
const BEGIN: Duration = Duration::from_secs(4 * 3600);

/// What a worker process has for all its runs.
pub struct Workshop {
    /// Files and the last base.
    pub cache: Cache,
    /// Where peers call.
    pub listener: tcp::Listener,
    /// The gang's deadlines.
    pub tcp: tcp::TcpOptions,
    /// Where training computes.
    pub pool: rayon::ThreadPool,
    /// Goes into manifests: same kind, same bits.
    pub kind: String,
    /// Runs the store's I/O.
    pub runtime: Handle,
}

/// One attempt on this worker.
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
    /// Trains to the end, whichever it is. Blocks; call it from a thread of its own.
    pub fn execute(&self) -> Outcome {
        // The pool's threads do not know the span of this one.
        let span = tracing::Span::current();
        let outcome = match self.workshop.pool.install(|| span.in_scope(|| self.attempt())) {
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
            End::Failed(message) => warn!(message, "the job failed"),
            other => warn!(reason = %other, "the run ended"),
        }
        if told { End::Stopped } else { end }
    }

    fn attempt(&self) -> Result<pb::Succeeded, End> {
        let prepared = prepare::prepare(self)?;
        self.reporter.ready(prepared.ready(&self.assign));
        let begin = self.wait_begin()?;
        let mut collective = self.join(&begin)?;
        let result = self.train(prepared, &begin, &mut *collective);
        match &result {
            // At a boundary that all members agree on: nobody needs anything from anybody.
            Ok(_) | Err(End::Released { .. }) => collective.leave(),
            // Peers that wait in an operation learn why; after a failure of the collective itself this does nothing.
            Err(end) => collective.abort_handle().abort(&end.to_string()),
        }
        result
    }

    fn wait_begin(&self) -> Result<pb::Begin, End> {
        // A gang is left at a boundary that all agree on; one that trains alone may go at once.
        let alone = self.assign.world_size == 1;
        self.control.wait_begin(BEGIN, alone).map_err(|interrupt| match interrupt {
            Interrupt::Stop => End::Stopped,
            Interrupt::Drain => End::Released { step: 0 },
            Interrupt::Deadline => {
                End::lost(format!("ready, but told to begin by nobody for {} hours", BEGIN.as_secs() / 3600))
            }
        })
    }

    fn join(&self, begin: &pb::Begin) -> Result<Box<dyn Collective>, End> {
        let mut members = begin.members.clone();
        members.sort_by_key(|member| member.index);
        if members.len() != self.assign.world_size as usize {
            return Err(End::lost(format!(
                "told to begin with {} members, assigned to a gang of {}",
                members.len(),
                self.assign.world_size
            )));
        }
        let peer =
            |member: pb::Member| Peer { index: member.index, worker: member.worker, address: member.address };
        let gang = tcp::Gang {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone().unwrap_or_default(),
            index: self.assign.index,
            members: members.into_iter().map(peer).collect(),
        };
        let abort = self.control.abort_handle();
        Ok(tcp::join(&self.workshop.listener, gang, &self.workshop.tcp, &abort)?)
    }

    fn train(
        &self,
        prepared: Prepared,
        begin: &pb::Begin,
        collective: &mut dyn Collective,
    ) -> Result<pb::Succeeded, End> {
        let mut training = Training::new(self, prepared, collective)?;
        // With the initial weights: the base's own loss, or the start's, also when a checkpoint is taken over next.
        let before = training.evaluate()?;
        training.restore(&begin.resume)?;
        if let Some(before) = &before
            && training.trainer.step() == 0
        {
            training.report_evaluation_before(before);
        }
        training.run_steps()?;
        training.finish(before)
    }

    /// Waits for the store.
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.workshop.runtime.block_on(work)
    }

    /// Whether the run was told to stop.
    fn check(&self) -> Result<(), End> {
        if self.control.stopped().is_some() { Err(End::Stopped) } else { Ok(()) }
    }

    fn fence(&self) -> pb::Fence {
        self.assign.fence.clone().unwrap_or_default()
    }
}
