//! The whole state ⇄ the files of a checkpoint.

use std::collections::BTreeMap;

use super::{TrainError, Trainer};
use crate::adapter::{Adapter, AdapterError, CONFIG_FILE, OPTIMIZER_FILE, WEIGHTS_FILE};
use crate::optim;

/// The files of a checkpoint that belong to the trainer, by name.
pub type CheckpointFiles = BTreeMap<String, Vec<u8>>;

/// A whole state as files: the same bytes for the same state.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Finished steps.
    pub step: u64,
    /// `adapter_config.json`, `adapter_model.safetensors`, `optimizer.safetensors`.
    pub files: CheckpointFiles,
}

impl Trainer {
    /// Takes over a checkpoint; what was accumulated of a step is dropped.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another adapter. The current state is then untouched.
    pub fn restore(&mut self, files: &CheckpointFiles) -> Result<(), TrainError> {
        let get = |name: &'static str| files.get(name).ok_or(AdapterError::MissingFile(name));
        let both = (get(CONFIG_FILE)?.as_slice(), get(WEIGHTS_FILE)?.as_slice());
        let adapter = match Adapter::restore(&self.config, &self.layout, both, self.base.shape()) {
            Err(AdapterError::Other) => return Err(TrainError::OtherAdapter),
            adapter => adapter?,
        };
        let (_, spare) = self.states.current_and_spare();
        spare.weights = adapter.weights;
        optim::file::read(self.optimizer.plan(), get(OPTIMIZER_FILE)?, spare)?;
        self.start = adapter.start;
        self.states.adopt();
        self.abandon_step();
        Ok(())
    }

    /// Starts from an adapter's weights instead of the initial ones, with fresh moments, at step 0.
    ///
    /// # Errors
    /// When the adapter is not laid out as the job's.
    pub fn start_from(&mut self, adapter: &Adapter) -> Result<(), TrainError> {
        if adapter.layout != self.layout {
            return Err(TrainError::OtherAdapter);
        }
        let (_, spare) = self.states.current_and_spare();
        spare.start(&adapter.weights);
        self.start = adapter.start.clone();
        self.states.adopt();
        self.abandon_step();
        Ok(())
    }

    /// The current state as files.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.states.current();
        let (config, weights) = self.adapter().files();
        let files = [
            (CONFIG_FILE, config),
            (WEIGHTS_FILE, weights),
            (OPTIMIZER_FILE, optim::file::write(self.optimizer.plan(), state, &[])),
        ];
        Snapshot { step: state.step, files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() }
    }

    /// 24 bits of a sha256 over the current state: members that hold the same state have the same hash.
    pub fn state_hash(&self) -> u32 {
        let [first, second, third, ..] = self.states.current().sha256();
        u32::from_le_bytes([first, second, third, 0])
    }
}
