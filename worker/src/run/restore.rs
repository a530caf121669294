//! Taking over a checkpoint: the newest that is whole, the same one on every member.

use lorafleet_lora::train::CheckpointFiles;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Checkpoint, CheckpointId, StoreError, read_checkpoint};
use tracing::{info, warn};

use super::{
    end::{End, Halt},
    generation::Training,
    member::Holds,
    unreported,
};

impl Training<'_, '_> {
    /// Nobody has a state: the base's own loss is told, or the start's, also when a checkpoint is taken over next; then
    /// the newest whole checkpoint is read.
    pub fn first_state(&mut self) -> Result<(), Halt> {
        self.member.before = self.evaluate()?;
        self.restore()?;
        self.member.holds = Holds::Recorded;
        if self.member.trainer.step() == 0
            && let Some(before) = self.member.before.clone()
        {
            self.report_evaluation_before(&before);
        }
        Ok(())
    }

    /// Takes over the first of the checkpoints (newest first) that is whole; from scratch when none is.
    fn restore(&mut self) -> Result<(), End> {
        for listed in &self.generation.resume {
            self.member.run.check()?;
            match self.read(listed)? {
                Ok((checkpoint, files)) => return self.take_over(listed, &checkpoint, &files),
                Err(why) => self.refuse(listed, &why),
            }
        }
        if !self.generation.resume.is_empty() {
            self.tell_here(
                "restarted",
                "no checkpoint is whole: training starts again from scratch, to the same result",
            );
        }
        Ok(())
    }

    /// The checkpoint's files; inside, why it is not whole; outside, that the store is away.
    fn read(&self, listed: &pb::Checkpoint) -> Result<Result<(Checkpoint, CheckpointFiles), String>, End> {
        let (job, id) = match CheckpointId::parse_resource_name(&listed.name) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let read = self.member.run.block_on(read_checkpoint(&self.member.run.store, &job, &id));
        let (checkpoint, files) = match read {
            Ok(read) => read,
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Refused { .. })) => {
                return Err(End::lost(format!("checkpoint {id} cannot be read: {error}")));
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        let found = checkpoint.manifest_sha256.to_string();
        if !listed.manifest_sha256.is_empty() && listed.manifest_sha256 != found {
            return Ok(Err(format!("its manifest has sha256 {found}, not {}", listed.manifest_sha256)));
        }
        // Nobody else has the bytes: they are taken, not copied.
        let files = files.into_iter().map(|(name, bytes)| (name.to_string(), bytes.into())).collect();
        Ok(Ok((checkpoint, files)))
    }

    fn take_over(
        &mut self,
        listed: &pb::Checkpoint,
        checkpoint: &Checkpoint,
        files: &CheckpointFiles,
    ) -> Result<(), End> {
        let failed = |why: String| End::Failed(format!("{} cannot be taken over: {why}", listed.name));
        self.member.trainer.restore(files).map_err(|error| failed(error.to_string()))?;
        let (step, total) = (self.member.trainer.step(), self.member.parts.total_steps);
        if step != checkpoint.id().step() || step > total {
            return Err(failed(format!("it holds step {step}; the job has {total} steps")));
        }
        let backlog = unreported::read(checkpoint.id(), files).map_err(|error| failed(error.to_string()))?;
        self.member.run.reporter.take_over(backlog);
        self.member.checkpoints.set_parent(Some(checkpoint.id().clone()));
        self.member.checkpointed = step;
        let (ours, theirs) = (&self.member.run.workshop.kind, &checkpoint.manifest.kind);
        if ours != theirs && self.generation.index == 0 {
            let message = format!(
                "the checkpoint was written by a worker of kind {theirs}, this one is {ours}: the adapter's last bits \
                 may differ from a run on one kind"
            );
            self.member.run.reporter.own_event("kind-changed", &message);
        }
        info!(step, checkpoint = listed.name, "resumed");
        self.tell_here("resumed", &format!("resumed after step {step}"));
        Ok(())
    }

    /// A checkpoint that is not whole is told about, and the one before it is tried.
    fn refuse(&self, listed: &pb::Checkpoint, why: &str) {
        warn!(checkpoint = listed.name, why, "checkpoint refused");
        let message = format!("the checkpoint of step {} is not whole and was refused: {why}", listed.step);
        let key = format!("checkpoint-refused/{}/{}", self.generation.fence.generation, listed.name);
        self.member.tell(&key, "checkpoint-refused", &message);
    }

    /// An event of this generation's beginning.
    fn tell_here(&self, kind: &str, message: &str) {
        let generation = self.generation.fence.generation;
        self.member.tell(&format!("{kind}/{generation}"), kind, message);
    }
}
