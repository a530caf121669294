//! The whole state as members of a gang give it to each other: one hash over all of it, adopted only when it is that.

use sha2::{Digest, Sha256};

use super::checkpoint::{CheckpointFiles, Rest};
use super::progress::Progress;
use super::{TrainError, Trainer};
use crate::optim::file::Scalar;
use crate::optim::state::{State, hash_floats};

impl Trainer {
    /// A hash over the whole state: weights, moments, step, the best weights, how evaluations went, and what is subtracted
    /// of the base. The same for the same bits, whoever holds them.
    pub fn state_sha256(&self) -> [u8; 32] {
        let start = self.start.as_ref().map(|start| start.as_slice());
        whole_sha256(self.states.current(), &self.progress, &self.best_weights, start)
    }

    /// Takes over another member's snapshot, if it is the state that has this hash; false, and nothing changed, if it is
    /// another.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another job's. The current state is then untouched.
    pub fn receive(&mut self, files: &CheckpointFiles, sha256: &[u8; 32]) -> Result<bool, TrainError> {
        let rest = self.load(files)?;
        let Rest { start, progress, best_weights } = &rest;
        let start = start.as_ref().map(|start| start.as_slice());
        let (_, spare) = self.states.current_and_spare();
        let same = whole_sha256(spare, progress, best_weights, start) == *sha256;
        if same {
            self.take(rest);
        }
        Ok(same)
    }
}

fn whole_sha256(state: &State, progress: &Progress, best: &[f32], start: Option<&[f32]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(state.sha256());
    for (name, value) in progress.scalars() {
        hash.update(name.as_bytes());
        match value {
            Scalar::Integer(value) => hash.update(value.to_le_bytes()),
            Scalar::Real(value) => hash.update(value.to_le_bytes()),
        }
    }
    for part in [Some(best), start] {
        hash.update((part.map_or(u64::MAX, |part| part.len() as u64)).to_le_bytes());
        hash_floats(&mut hash, part.unwrap_or_default());
    }
    hash.finalize().into()
}
