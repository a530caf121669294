//! Taking over a checkpoint: the newest that is whole, the same one on every member.

use lorafleet_lora::train::CheckpointFiles;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Checkpoint, CheckpointId, StoreError, read_checkpoint};
use tracing::{info, warn};

use super::{end::End, steps::Training};

impl Training<'_> {
    /// Takes over the first of the checkpoints (newest first) that is whole; from scratch when none is. The gang then
    /// compares what it took over, and whether somebody wants to leave right away.
    pub fn restore(&mut self, resume: &[pb::Checkpoint]) -> Result<(), End> {
        for listed in resume {
            self.run.check()?;
            match self.read(listed)? {
                Ok((checkpoint, files)) => {
                    self.take_over(listed, &checkpoint, &files)?;
                    break;
                }
                Err(why) => self.refuse(listed, &why),
            }
        }
        if !resume.is_empty() && self.trainer.step() == 0 {
            self.tell(
                "restarted",
                "no checkpoint is whole: training starts again from scratch, to the same result",
            );
        }
        self.agree()
    }

    /// The checkpoint's files; inside, why it is not whole; outside, that the store is away.
    fn read(&self, listed: &pb::Checkpoint) -> Result<Result<(Checkpoint, CheckpointFiles), String>, End> {
        let (job, id) = match CheckpointId::parse_resource_name(&listed.name) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let read = self.run.block_on(read_checkpoint(&self.run.store, &job, &id));
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
        let files = files.into_iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        Ok(Ok((checkpoint, files)))
    }

    fn take_over(
        &mut self,
        listed: &pb::Checkpoint,
        checkpoint: &Checkpoint,
        files: &CheckpointFiles,
    ) -> Result<(), End> {
        let failed = |why: String| End::Failed(format!("{} cannot be taken over: {why}", listed.name));
        self.trainer.restore(files).map_err(|error| failed(error.to_string()))?;
        let (step, total) = (self.trainer.step(), self.prepared.total_steps);
        if step != checkpoint.id().step() || step > total {
            return Err(failed(format!("it holds step {step}; the job has {total} steps")));
        }
        self.checkpoints.resumed_from(checkpoint.id().clone());
        let (ours, theirs) = (&self.run.workshop.kind, &checkpoint.manifest.kind);
        if ours != theirs {
            let message = format!(
                "the checkpoint was written by a worker of kind {theirs}, this one is {ours}: the adapter's last bits \
                 may differ from a run on one kind"
            );
            self.tell("kind-changed", &message);
        }
        info!(step, checkpoint = listed.name, "resumed");
        self.tell("resumed", &format!("resumed after step {step}"));
        Ok(())
    }

    /// A checkpoint that is not whole is told about, and the one before it is tried.
    fn refuse(&self, listed: &pb::Checkpoint, why: &str) {
        warn!(checkpoint = listed.name, why, "checkpoint refused");
        let message = format!("the checkpoint of step {} is not whole and was refused: {why}", listed.step);
        self.tell("checkpoint-refused", &message);
    }

    /// Every member took over the same state; or the gang leaves at once, where a member is on its way out.
    fn agree(&mut self) -> Result<(), End> {
        let (me, members) = (self.collective.index() as usize, self.collective.world_size() as usize);
        let mut buffer = vec![0i64; 1 + 2 * members];
        buffer[0] = self.run.control.is_leaving().into();
        buffer[1 + me] = self.trainer.step() as i64;
        buffer[1 + members + me] = self.trainer.state_hash().into();
        self.collective.all_reduce_i64(&mut buffer)?;
        let (steps, hashes) = buffer[1..].split_at(members);
        if steps.iter().any(|step| *step != steps[0]) || hashes.iter().any(|hash| *hash != hashes[0]) {
            // A file that one member could not read, or read differently: not the job's fault.
            return Err(End::lost(format!(
                "members took over different states: their steps are {steps:?}, their hashes {hashes:06x?}"
            )));
        }
        if buffer[0] > 0 {
            return Err(End::Released { step: self.trainer.step() });
        }
        Ok(())
    }

    /// An event that the gang has once.
    pub fn tell(&self, kind: &str, message: &str) {
        self.run.reporter.event(&format!("{kind}/{}", self.trainer.step()), kind, message);
    }
}
