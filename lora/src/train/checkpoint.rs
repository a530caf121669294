//! The whole state ⇄ the files of a checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model_file::{self, MODEL_CONFIG_FILE, MODEL_FILE};
use super::progress::Progress;
use super::{TrainError, Trainer};
use crate::adapter::config::AdapterConfig;
use crate::adapter::{
    self, Adapter, AdapterError, CONFIG_FILE, OPTIMIZER_FILE, WEIGHTS_FILE, WeightsFile, file,
};
use crate::optim;
use crate::optim::file::Scalar;
use crate::optim::state::{State, StatePlan};
use crate::params::Layout;
use crate::tensor_file::TensorFile;

/// Name of the file that holds the weights of the best evaluation, where they are not the current ones.
pub const BEST_FILE: &str = "best.safetensors";

/// The files of a checkpoint that belong to the trainer, by name.
pub type CheckpointFiles = BTreeMap<String, Vec<u8>>;

/// A whole state as files: the same bytes for the same state.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Finished steps.
    pub step: u64,
    /// `adapter_config.json` and `adapter_model.safetensors`, or after full fine-tuning `config.json` and
    /// `model.safetensors`; `optimizer.safetensors`; `best.safetensors` where the best weights are kept.
    pub files: CheckpointFiles,
}

/// The whole state as it was, to be written beside training; it is shared with the trainer, not copied.
#[derive(Clone, Debug)]
pub struct Frozen {
    config: AdapterConfig,
    layout: Arc<Layout>,
    start: Option<Arc<Vec<f32>>>,
    /// Full fine-tuning: the text of the model's configuration.
    model_config: Option<String>,
    plan: StatePlan,
    state: Arc<State>,
    scalars: Vec<(&'static str, Scalar)>,
    best: Option<Arc<Vec<f32>>>,
}

/// One file of a [`Frozen`] state, made while it is read.
pub enum FrozenFile<'a> {
    /// A small one.
    Bytes(Vec<u8>),
    /// Tensors, piece by piece.
    Tensors(TensorFile<'a>),
}

impl FrozenFile<'_> {
    /// The whole file.
    pub fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Tensors(file) => file.to_vec(),
        }
    }
}

impl Frozen {
    /// Finished steps.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// The files of the state by name, to be read piece by piece: the same bytes for the same state.
    pub fn files(&self) -> BTreeMap<&'static str, FrozenFile<'_>> {
        let weights = &self.state.weights;
        let mut files = BTreeMap::new();
        match &self.model_config {
            Some(config) => {
                files.insert(MODEL_CONFIG_FILE, FrozenFile::Bytes(config.clone().into_bytes()));
                files.insert(MODEL_FILE, FrozenFile::Tensors(model_file::write(&self.layout, weights)));
            }
            None => {
                let start = self.start.as_deref();
                let (config, weights) = adapter::written(&self.config, &self.layout, weights, start);
                files.insert(CONFIG_FILE, FrozenFile::Bytes(config));
                let weights = match weights {
                    WeightsFile::Plain(file) => FrozenFile::Tensors(file),
                    WeightsFile::Made(bytes) => FrozenFile::Bytes(bytes),
                };
                files.insert(WEIGHTS_FILE, weights);
            }
        }
        let optimizer = optim::file::write(&self.plan, &self.state, &self.scalars);
        files.insert(OPTIMIZER_FILE, FrozenFile::Tensors(optimizer));
        if let Some(best) = &self.best {
            files.insert(BEST_FILE, FrozenFile::Tensors(file::write_weights(&self.layout, best)));
        }
        files
    }

    /// The state as whole files, all in memory.
    pub fn encode(&self) -> Snapshot {
        let files = self.files().iter().map(|(name, file)| ((*name).to_owned(), file.to_vec())).collect();
        Snapshot { step: self.step(), files }
    }
}

/// What of a whole state lies beside the two flat ones.
pub(super) struct Rest {
    pub start: Option<Arc<Vec<f32>>>,
    pub progress: Progress,
    pub best_weights: Arc<Vec<f32>>,
}

impl Trainer {
    /// Takes over a checkpoint; what was accumulated of a step is dropped.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another job's. The current state is then untouched.
    pub fn restore(&mut self, files: &CheckpointFiles) -> Result<(), TrainError> {
        let rest = self.load(files)?;
        self.take(rest);
        Ok(())
    }

    /// Reads files into the spare state; what does not lie in it is returned.
    pub(super) fn load(&mut self, files: &CheckpointFiles) -> Result<Rest, TrainError> {
        let get = |name: &'static str| files.get(name).ok_or(AdapterError::MissingFile(name));
        let (weights, start) = if self.trains_all() {
            get(MODEL_CONFIG_FILE)?;
            (model_file::read(&self.layout, get(MODEL_FILE)?)?, None)
        } else {
            let both = (get(CONFIG_FILE)?.as_slice(), get(WEIGHTS_FILE)?.as_slice());
            match Adapter::restore(&self.config, &self.layout, both, self.base.shape()) {
                Err(AdapterError::Other) => return Err(TrainError::OtherAdapter),
                adapter => adapter.map(|adapter| (adapter.weights, adapter.start))?,
            }
        };
        let best = files.get(BEST_FILE).map(|bytes| file::read_weights(&self.layout, bytes)).transpose()?;
        let (_, spare) = self.states.current_and_spare();
        let scalars = optim::file::read(self.optimizer.plan(), get(OPTIMIZER_FILE)?, spare)?;
        let progress = Progress::from_scalars(scalars).map_err(|name| AdapterError::Tensors {
            file: OPTIMIZER_FILE,
            problems: format!("{name} is not expected"),
        })?;
        spare.weights = weights;
        // Without a file of their own, the best weights are the current ones.
        let best_weights = Arc::new(match (best, progress.best) {
            (Some(best), _) => best,
            (None, Some(_)) if self.keeps_best => spare.weights.clone(),
            (None, _) => Vec::new(),
        });
        Ok(Rest { start, progress, best_weights })
    }

    /// Makes what [`Trainer::load`] read the current state.
    pub(super) fn take(&mut self, rest: Rest) {
        let Rest { start, progress, best_weights } = rest;
        self.start = start;
        self.progress = progress;
        self.best_weights = best_weights;
        self.states.adopt();
        self.restored_at = self.step();
        self.abandon_step();
    }

    /// Starts from an adapter's weights instead of the initial ones, with fresh moments, at step 0.
    ///
    /// # Errors
    /// When the adapter is not laid out as the job's: which module differs, and how.
    pub fn start_from(&mut self, adapter: &Adapter) -> Result<(), TrainError> {
        if adapter.layout != self.layout {
            return Err(TrainError::Start(difference(&adapter.layout, &self.layout)));
        }
        let (_, spare) = self.states.current_and_spare();
        spare.start(&adapter.weights);
        self.start = adapter.start.clone();
        self.progress = Progress::default();
        self.config.adapter.init = adapter.config.adapter.init;
        self.states.adopt();
        self.abandon_step();
        Ok(())
    }

    /// Makes the memory that [`Trainer::freeze`] leads to now, so that it costs no step anything later.
    pub fn make_room(&mut self) {
        self.states.make_room();
    }

    /// The current state as it is, which can be written while training goes on. Costs no copy; once it was held for longer
    /// than a step, there is a third state in memory.
    pub fn freeze(&self) -> Frozen {
        let step = self.step();
        let elsewhere = self.progress.best.is_some_and(|best| best.step != step);
        let best = (elsewhere && !self.best_weights.is_empty() && !self.is_best_current())
            .then(|| self.best_weights.clone());
        Frozen {
            config: self.config.clone(),
            layout: self.layout.clone(),
            start: self.start.clone(),
            model_config: self.model_config.clone(),
            plan: self.optimizer.plan().clone(),
            state: self.states.share(),
            scalars: self.progress.scalars(),
            best,
        }
    }

    /// The current state as files.
    pub fn snapshot(&self) -> Snapshot {
        self.freeze().encode()
    }

    /// 24 bits of a sha256 over the current state: members that hold the same state have the same hash.
    pub fn state_hash(&self) -> u32 {
        let [first, second, third, ..] = self.states.current().sha256();
        u32::from_le_bytes([first, second, third, 0])
    }

    /// Whether the current weights are the best evaluation's, since they were adopted.
    fn is_best_current(&self) -> bool {
        *self.best_weights == self.states.current().weights
    }
}

/// The first difference between two layouts, in words.
fn difference(found: &Layout, wanted: &Layout) -> String {
    for module in wanted.modules() {
        let name = &module.module;
        let Some(other) = found.find(name) else { return format!("it has no {name}") };
        if other.rank != module.rank {
            return format!("its rank of {name} is {}, the job's {}", other.rank, module.rank);
        }
        if other.scale != module.scale {
            return format!(
                "its scale (alpha over rank) of {name} is {}, the job's {}",
                other.scale, module.scale
            );
        }
        if other.magnitude.is_some() != module.magnitude.is_some() {
            return format!("only one of them has a magnitude (DoRA) of {name}");
        }
    }
    if let Some(module) = found.modules().iter().find(|module| wanted.find(&module.module).is_none()) {
        return format!("it adapts {}, the job does not", module.module);
    }
    let whole = |layout: &Layout| layout.whole().iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    format!("it trains whole tensors {:?}, the job {:?}", whole(found), whole(wanted))
}
