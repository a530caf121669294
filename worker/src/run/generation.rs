//! One generation as a member sees it: who is in it, and the course from its beginning to its end.

use lorafleet_proto::v1 as pb;

use super::{
    Run,
    end::{End, Halt},
    member::Member,
    pace::Pace,
};
use crate::collective::{Abort, Collective, Peer, tcp};

/// Who is in a generation.
pub(super) struct Generation {
    pub fence: pb::Fence,
    /// This member's.
    pub index: u32,
    /// By index.
    pub members: Vec<pb::Member>,
    /// Whole checkpoints, newest first.
    pub resume: Vec<pb::Checkpoint>,
}

impl Generation {
    /// As the coordinator opened it.
    pub fn of(begin: pb::Begin, assign: &pb::Assign) -> Result<Self, End> {
        let pb::Begin { fence, mut members, resume, .. } = begin;
        members.sort_by_key(|member| member.index);
        let own = members.iter().find(|member| member.place == assign.place);
        let Some(index) = own.map(|member| member.index) else {
            let places: Vec<u32> = members.iter().map(|member| member.place).collect();
            return Err(End::lost(format!(
                "told to begin with the places {places:?}, without its own, {}",
                assign.place
            )));
        };
        Ok(Self { fence: fence.unwrap_or_default(), index, members, resume })
    }

    /// Of a member that is alone, after it was in the generation of this fence.
    pub fn alone(fence: pb::Fence, place: u32) -> Self {
        let member = pb::Member { place, ..Default::default() };
        Self { fence, index: 0, members: vec![member], resume: Vec::new() }
    }

    /// As the collective wants it.
    pub fn gang(&self, run: &Run) -> tcp::Gang {
        let peer =
            |member: pb::Member| Peer { index: member.index, worker: member.worker, address: member.address };
        tcp::Gang {
            job: run.assign.job.clone(),
            fence: self.fence.clone(),
            index: self.index,
            members: self.members.iter().cloned().map(peer).collect(),
        }
    }
}

/// How a generation ends that did not break.
pub(super) enum Course {
    /// The job is done, and its result is whole in the store.
    Succeeded(Box<pb::Succeeded>),
    /// At a step boundary, to wait for the next generation.
    Parted,
    /// At a step boundary, with the place given back.
    Released { step: u64 },
}

impl Course {
    /// Where work that takes no steps may end before it is done; it begins anew elsewhere, or in the next generation.
    ///
    /// # Errors
    /// The run was told to stop, or the generation is over.
    pub fn before_the_end(run: &Run, abort: &Abort) -> Result<Option<Self>, Halt> {
        run.check()?;
        if let Some(failure) = abort.failure() {
            return Err(failure.into());
        }
        Ok(match () {
            () if run.control.is_leaving() => Some(Self::Released { step: 0 }),
            () if run.control.is_regrouping() => Some(Self::Parted),
            () => None,
        })
    }
}

/// A member within a generation.
pub(super) struct Training<'m, 'a> {
    pub member: &'m mut Member<'a>,
    pub generation: &'m Generation,
    pub collective: &'m mut dyn Collective,
    pub pace: Pace,
    abort: Abort,
}

impl<'m, 'a> Training<'m, 'a> {
    pub fn new(
        member: &'m mut Member<'a>,
        generation: &'m Generation,
        collective: &'m mut dyn Collective,
    ) -> Self {
        let abort = collective.abort_handle();
        let pace = Pace::new(generation.members.len());
        Self { member, generation, collective, pace, abort }
    }

    /// Trains until the job is done or the generation ends.
    pub fn course(&mut self) -> Result<Course, Halt> {
        self.check_size()?;
        self.enter()?;
        match self.run_steps()? {
            Some(course) => Ok(course),
            None => self.finish(),
        }
    }

    /// One state on every member, whoever had it; what was left undone of its last step is done.
    fn enter(&mut self) -> Result<(), Halt> {
        let mut held = self.exchange()?;
        if held.nobody_has_a_state() {
            self.first_state()?;
            held = self.exchange()?;
        }
        if let Some(source) = held.source() {
            self.transfer(source, &held)?;
            held = self.exchange()?;
        }
        held.agree()?;
        self.member.run.control.set_step(self.member.trainer.step());
        self.record()?;
        let rule = self.member.parts.job.checkpoint;
        if self.generation.index == 0 && (rule.every > 0 || rule.best) {
            self.member.trainer.make_room();
        }
        self.checkpoint();
        Ok(())
    }

    /// Whether the run was told to stop, or the collective has broken meanwhile.
    pub fn check(&self) -> Result<(), Halt> {
        self.member.run.check()?;
        self.abort.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn check_size(&self) -> Result<(), Halt> {
        let (members, most) = (self.generation.members.len(), self.member.words.most());
        if members > most {
            let message = format!("told to begin with {members} members; the job's workers.max is {most}");
            return Err(End::lost(message).into());
        }
        Ok(())
    }

    /// A member as people know it.
    pub fn name(&self, index: u32) -> String {
        let member = self.generation.members.get(index as usize);
        member.map_or_else(|| format!("member {index}"), |member| member.worker.clone())
    }
}
