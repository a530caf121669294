//! The life of a place: loading, then one generation after the other, until the job or the place is over.

use std::time::Instant;

use lorafleet_failpoint::reach;
use lorafleet_proto::v1 as pb;
use tracing::{info, warn};

use super::{
    Run,
    control::Interrupt,
    discord::Discord,
    end::{End, Halt},
    generation::{Course, Generation, Training},
    member::{Holds, Member},
    prepare,
};
use crate::collective::{Abort, CollectiveError, solo::Solo, tcp};

impl Run {
    /// From loading to the end.
    pub(super) fn live(&self) -> Result<pb::Succeeded, End> {
        let prepared = prepare::prepare(self)?;
        let ready = prepared.ready(&self.assign);
        let mut member = Member::new(self, prepared)?;
        self.reporter.ready(ready);
        let (mut after, mut discord) = (0, Discord::default());
        loop {
            let waiting = Instant::now();
            let begin = match self.control.wait_begin(after, self.workshop.alone_limit) {
                Ok(begin) => begin,
                Err(Interrupt::Stop) => return Err(End::Stopped),
                Err(Interrupt::Leave) => return Err(End::Released { step: 0 }),
                Err(Interrupt::Alone) => return Err(self.give_up(&mut member)),
            };
            let generation = Generation::of(begin, &self.assign)?;
            after = generation.fence.generation;
            let (members, index, waited) = (generation.members.len(), generation.index, waiting.elapsed());
            info!(generation = after, index, members, ?waited, "generation begins");
            match self.stay(&mut member, &generation) {
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
    fn stay(&self, member: &mut Member, generation: &Generation) -> Result<Course, Halt> {
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
        let course = Training::new(member, generation, &mut *collective).course();
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
                member.trainer.abandon_step();
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

    /// Paused, and without the coordinator for too long: what is held becomes a checkpoint.
    fn give_up(&self, member: &mut Member) -> End {
        let message = format!(
            "waited for the gang's next generation, without a line to the coordinator for {} s",
            self.workshop.alone_limit.as_secs()
        );
        warn!(message, step = member.trainer.step(), "giving up");
        // A checkpoint is of a step whose record is complete; evaluations come out the same on one member.
        let (generation, abort) = (Generation::alone(self.fence(), self.assign.place), Abort::new());
        let mut solo = Solo::new(abort);
        if let Err(halt) = Training::new(member, &generation, &mut solo).record() {
            return End::lost(format!("{message}; and then: {halt}"));
        }
        if member.holds == Holds::Recorded && member.trainer.step() > 0 {
            member.checkpoints.write_last(member.trainer.freeze());
        }
        End::lost(message)
    }
}
