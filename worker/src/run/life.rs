//! The life of a place: loading, then one generation after the other, until the job or the place is over.

use std::time::Instant;

use lorafleet_failpoint::reach;
use lorafleet_proto::v1 as pb;
use lorafleet_spec::job::Action;
use tracing::{info, warn};

use super::{
    Run,
    control::Interrupt,
    discord::Discord,
    end::{End, Halt},
    evaluating::Evaluating,
    generation::{Course, Generation, Training},
    member::{Holds, Member},
    merging::Merging,
    prepare,
};
use crate::collective::{Abort, Collective, CollectiveError, solo::Solo, tcp};

/// What a place does in each of its generations.
pub(super) trait Work {
    /// One generation, from its joining to its end.
    fn course(&mut self, generation: &Generation, collective: &mut dyn Collective) -> Result<Course, Halt>;

    /// The generation broke: what was begun in it and is not whole is dropped.
    fn abandon(&mut self);

    /// The place is given up between two generations: what it holds is kept, where that can be.
    fn keep(&mut self) -> Result<(), Halt>;
}

impl Work for Member<'_> {
    fn course(&mut self, generation: &Generation, collective: &mut dyn Collective) -> Result<Course, Halt> {
        Training::new(self, generation, collective).course()
    }

    fn abandon(&mut self) {
        self.trainer.abandon_step();
    }

    /// As a checkpoint. It is of a step whose record is complete; evaluations come out the same on one member.
    fn keep(&mut self) -> Result<(), Halt> {
        let generation = Generation::alone(self.run.fence(), self.run.assign.place);
        let mut solo = Solo::new(Abort::new());
        Training::new(self, &generation, &mut solo).record()?;
        if self.holds == Holds::Recorded && self.trainer.step() > 0 {
            self.checkpoints.write_last(self.trainer.freeze());
        }
        Ok(())
    }
}

impl Run {
    /// From loading to the end.
    pub(super) fn live(&self) -> Result<pb::Succeeded, End> {
        let (job, spec_sha256) = prepare::read_spec(self)?;
        match job.action {
            Action::Train => {
                let prepared = prepare::prepare(self, job, spec_sha256)?;
                let ready = prepared.ready(&self.assign);
                let mut member = Member::new(self, prepared)?;
                self.reporter.ready(ready);
                self.generations(&mut member)
            }
            Action::Evaluate => {
                let mut evaluating = Evaluating::prepare(self, job)?;
                self.reporter.ready(evaluating.ready());
                self.generations(&mut evaluating)
            }
            Action::Merge => {
                let mut merging = Merging::prepare(self, &job, spec_sha256)?;
                self.reporter.ready(merging.ready());
                self.generations(&mut merging)
            }
        }
    }

    /// One generation after the other.
    fn generations(&self, work: &mut dyn Work) -> Result<pb::Succeeded, End> {
        let (mut after, mut discord) = (0, Discord::default());
        loop {
            let waiting = Instant::now();
            let begin = match self.control.wait_begin(after, self.workshop.alone_limit) {
                Ok(begin) => begin,
                Err(Interrupt::Stop) => return Err(End::Stopped),
                Err(Interrupt::Leave) => return Err(End::Released { step: 0 }),
                Err(Interrupt::Alone) => return Err(self.give_up(work)),
            };
            let generation = Generation::of(begin, &self.assign)?;
            after = generation.fence.generation;
            let (members, index, waited) = (generation.members.len(), generation.index, waiting.elapsed());
            info!(generation = after, index, members, ?waited, "generation begins");
            match self.stay(work, &generation) {
                Ok(Course::Succeeded(succeeded)) => return Ok(*succeeded),
                Ok(Course::Released { step }) => return Err(End::Released { step }),
                Ok(Course::Parted) => info!(step = self.control.step(), "parted at a step boundary"),
                Err(Halt::Broken(error)) => {
                    metrics::counter!(crate::telemetry::BREAKAGES).increment(1);
                    warn!(step = self.control.step(), %error, "the collective broke");
                    if discord.add(self.control.step(), &error) {
                        return Err(End::lost(format!(
                            "again and again the members do not do the same together; are they of one version? {error}"
                        )));
                    }
                }
                Err(Halt::Ended(end)) => return Err(end),
            }
        }
    }

    /// One generation, from joining to leaving.
    fn stay(&self, work: &mut dyn Work, generation: &Generation) -> Result<Course, Halt> {
        reach("begin-before-join", self.control.step())?;
        let fence = &generation.fence;
        let abort = self.control.arm(fence.clone());
        self.reporter.begun(fence, generation.index);
        self.tell_of_breakage(&abort, fence);
        let gang = generation.gang(self);
        let mut collective = match tcp::join(&self.workshop.listener, gang, &self.workshop.tcp, &abort) {
            Ok(collective) => collective,
            Err(error) => return Err(self.halt(&abort, fence, error.into())),
        };
        self.control.joined(fence);
        let course = work.course(generation, &mut *collective);
        match course {
            // A breakage that was told first stands, and the result is made again: the gang was told to go on.
            Ok(Course::Succeeded(_)) if !self.control.claim_end(fence) => {
                let reason = "it ended before the result was told".to_owned();
                Err(Halt::Broken(abort.failure().unwrap_or(CollectiveError::Aborted { reason })))
            }
            Ok(course) => {
                // At a boundary that all members agree on: nobody needs anything from anybody.
                collective.leave();
                if matches!(course, Course::Parted) && self.control.claim_end(fence) {
                    self.reporter.parted(pb::Parted { polite: true, ..self.parted(fence) });
                }
                Ok(course)
            }
            Err(halt) => {
                work.abandon();
                Err(self.halt(&abort, fence, halt))
            }
        }
    }

    /// The coordinator learns of a breakage at once, also while this thread is busy with a micro-batch.
    fn tell_of_breakage(&self, abort: &Abort, fence: &pb::Fence) {
        let (control, reporter) = (self.control.clone(), self.reporter.clone());
        let parted = self.parted(fence);
        abort.on_failure(move |error| {
            let broken = matches!(Halt::from(error.clone()), Halt::Broken(_));
            let fence = parted.fence.clone().unwrap_or_default();
            if !broken || !control.claim_end(&fence) {
                return;
            }
            let step = control.step();
            if let Err(injected) = reach("parted-before-report", step) {
                warn!(%injected, "nothing is reported");
                return;
            }
            let (suspicions, message) = (error.suspicions(), error.to_string());
            reporter.parted(pb::Parted { step, suspicions, message, ..parted });
        });
    }

    fn parted(&self, fence: &pb::Fence) -> pb::Parted {
        pb::Parted {
            job: self.assign.job.clone(),
            fence: Some(fence.clone()),
            place: self.assign.place,
            step: self.control.step(),
            ..Default::default()
        }
    }

    /// Peers that wait in an operation learn why; after a failure of the collective itself this changes nothing.
    fn halt(&self, abort: &Abort, fence: &pb::Fence, halt: Halt) -> Halt {
        match &halt {
            Halt::Broken(error) => drop(abort.fail(error.clone())),
            Halt::Ended(end) => {
                // The place's end says it all.
                self.control.claim_end(fence);
                abort.abort(&end.to_string());
            }
        }
        halt
    }

    /// Paused, and without the coordinator for too long.
    fn give_up(&self, work: &mut dyn Work) -> End {
        let message = format!(
            "waited for the gang's next generation, without a line to the coordinator for {} s",
            self.workshop.alone_limit.as_secs()
        );
        warn!(message, step = self.control.step(), "giving up");
        match work.keep() {
            Ok(()) => End::lost(message),
            Err(halt) => End::lost(format!("{message}; and then: {halt}")),
        }
    }
}
