//! How a member that is behind gets the gang's state: whole from one that holds it, and adopted as a whole or not at all.

use std::time::Instant;

use lorafleet_failpoint::{defect, reach};
use lorafleet_lora::train::{CheckpointFiles, EvalSums};
use lorafleet_proto::v1 as pb;
use prost::Message;
use tracing::info;

use super::{
    end::{End, Halt},
    evaluate::Evaluation,
    exchange::AllHeld,
    generation::Training,
    member::Holds,
    report::Backlog,
};

/// What goes with the trainer's files, and comes before them.
#[derive(Clone, PartialEq, Message)]
struct Head {
    /// The last step's point, where its record is not complete.
    #[prost(message, optional, tag = "1")]
    unrecorded: Option<pb::MetricPoint>,
    #[prost(message, optional, tag = "2")]
    before: Option<Evaluated>,
    #[prost(message, optional, tag = "3")]
    evaluated: Option<Evaluated>,
    /// What the coordinator has not acknowledged.
    #[prost(message, repeated, tag = "4")]
    points: Vec<pb::MetricPoint>,
    #[prost(message, repeated, tag = "5")]
    events: Vec<pb::ReportEvent>,
    /// Names of the files that follow, one broadcast each.
    #[prost(string, repeated, tag = "6")]
    files: Vec<String>,
    /// The checkpoint that the attempt resumed from; empty where it began from scratch.
    #[prost(string, tag = "7")]
    parent: String,
}

/// An evaluation, and the step after which it was made.
#[derive(Clone, PartialEq, Message)]
struct Evaluated {
    #[prost(uint64, tag = "1")]
    step: u64,
    #[prost(sint64, tag = "2")]
    loss: i64,
    #[prost(sint64, tag = "3")]
    labelled_tokens: i64,
    #[prost(sint64, repeated, tag = "4")]
    confusion: Vec<i64>,
    #[prost(message, repeated, tag = "5")]
    scores: Vec<pb::Score>,
}

impl Evaluated {
    fn new(step: u64, evaluation: &Evaluation) -> Self {
        let Evaluation { sums, scores } = evaluation.clone();
        let EvalSums { loss, labelled_tokens, confusion } = sums;
        Self { step, loss, labelled_tokens, confusion, scores }
    }

    fn parts(self) -> (u64, Evaluation) {
        let Self { step, loss, labelled_tokens, confusion, scores } = self;
        (step, Evaluation { sums: EvalSums { loss, labelled_tokens, confusion }, scores })
    }
}

impl Training<'_, '_> {
    /// `source` gives its state to all; those that are behind adopt it.
    pub fn transfer(&mut self, source: u32, held: &AllHeld) -> Result<(), Halt> {
        let started = Instant::now();
        if self.collective.index() == source {
            let bytes = self.give(source)?;
            info!(bytes, took = ?started.elapsed(), "state given");
            return Ok(());
        }
        let theirs = held.of(source);
        let wants = self.member.position() < theirs.position;
        let mut head = Vec::new();
        self.collective.broadcast(source, &mut head)?;
        let head = Head::decode(head.as_slice()).map_err(|error| {
            End::lost(format!("member {source} gave a state that cannot be read: {error}"))
        })?;
        let mut files = CheckpointFiles::new();
        for name in &head.files {
            let mut bytes = Vec::new();
            self.collective.broadcast(source, &mut bytes)?;
            if wants {
                files.insert(name.clone(), bytes);
                self.receive_in_place(&files);
            }
        }
        if wants {
            self.adopt(source, head, &files, &theirs.sha256)?;
            let (step, took) = (self.member.trainer.step(), started.elapsed());
            info!(step, source, ?took, "state received");
        }
        Ok(())
    }

    fn give(&mut self, source: u32) -> Result<u64, Halt> {
        let member = &mut *self.member;
        let Backlog { points, events } = member.run.reporter.unacknowledged();
        let frozen = member.trainer.freeze();
        let files = frozen.files();
        let unrecorded = match &member.holds {
            Holds::Unrecorded(point) => Some((**point).clone()),
            Holds::Nothing | Holds::Recorded => None,
        };
        let head = Head {
            unrecorded,
            before: member.before.as_ref().map(|evaluation| Evaluated::new(0, evaluation)),
            evaluated: member.evaluated.as_ref().map(|(step, evaluation)| Evaluated::new(*step, evaluation)),
            points,
            events,
            files: files.keys().map(|name| (*name).to_owned()).collect(),
            parent: member.checkpoints.parent().map(ToString::to_string).unwrap_or_default(),
        };
        let mut bytes = head.encode_to_vec();
        let mut sent = bytes.len() as u64;
        self.collective.broadcast(source, &mut bytes)?;
        for (place, file) in files.values().enumerate() {
            if place == files.len() / 2 {
                reach("mid-broadcast", frozen.step())?;
            }
            bytes = file.to_vec();
            sent += bytes.len() as u64;
            self.collective.broadcast(source, &mut bytes)?;
        }
        Ok(sent)
    }

    fn adopt(
        &mut self,
        source: u32,
        head: Head,
        files: &CheckpointFiles,
        sha256: &[u8; 32],
    ) -> Result<(), Halt> {
        let member = &mut *self.member;
        let wrong =
            |why: String| End::lost(format!("the state that member {source} gave is not taken: {why}"));
        let parent = match head.parent.as_str() {
            "" => None,
            parent => Some(parent.parse().map_err(|error| wrong(format!("its parent: {error}")))?),
        };
        let same = member.trainer.receive(files, sha256).map_err(|error| wrong(error.to_string()))?;
        if !same && !defect("broadcast-in-place") {
            return Err(wrong("it has another hash than was said".into()).into());
        }
        member.checkpoints.set_parent(parent);
        member.holds = match head.unrecorded {
            Some(point) => Holds::Unrecorded(Box::new(point)),
            None => Holds::Recorded,
        };
        member.before = head.before.map(|before| before.parts().1);
        member.evaluated = head.evaluated.map(Evaluated::parts);
        member.run.reporter.take_over(Backlog { points: head.points, events: head.events });
        member.run.control.set_step(member.trainer.step());
        Ok(())
    }

    /// The planted defect of that name, which tests must find: each file is written over the current state as it comes.
    fn receive_in_place(&mut self, files: &CheckpointFiles) {
        if !defect("broadcast-in-place") {
            return;
        }
        let trainer = &mut self.member.trainer;
        let mut torn = trainer.snapshot().files;
        torn.extend(files.clone());
        if trainer.restore(&torn).is_ok() {
            self.member.holds = Holds::Recorded;
        }
    }
}
