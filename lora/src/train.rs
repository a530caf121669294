//! The trainer: one step is the gradients of my micro-batches, an exchange that is the caller's, and an update.

use std::collections::BTreeMap;
use std::sync::Arc;

use lorafleet_spec::data::Example;
use lorafleet_spec::job::{Job, Reduce};
use sha2::{Digest, Sha256};

use crate::adapter::config::AdapterConfig;
use crate::adapter::{Adapter, AdapterError, CONFIG_FILE, OPTIMIZER_FILE, WEIGHTS_FILE, file, init};
use crate::base::Base;
use crate::exact::{Accumulator, AddError, ReduceBuffer, Totals, to_fixed};
use crate::flops::FlopCounter;
use crate::model::{ModelError, PackedBatch};
use crate::optim::adamw::AdamW;
use crate::optim::clip;
use crate::optim::schedule::LearningRate;
use crate::params::{Layout, States};

/// The files of a checkpoint that belong to the trainer, by name.
pub type CheckpointFiles = BTreeMap<String, Vec<u8>>;

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The adapter does not fit the base, or a checkpoint does not fit the job.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model refused a batch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The checkpoint is of another adapter.
    #[error("the checkpoint's {CONFIG_FILE} describes another adapter than the job: start the job anew")]
    OtherAdapter,
    /// The loss left the range of numbers.
    #[error(
        "step {step}: the loss is {loss}; training diverged. Lower train.lr, lengthen train.warmup or set train.clip"
    )]
    Loss {
        /// The step that was being computed.
        step: u64,
        /// Sum of the micro-batch's losses.
        loss: f64,
    },
    /// A gradient left the range of numbers.
    #[error(
        "step {step}: the gradient of {parameter} is {value}, out of range (±{limit:e}); training diverged. \
         Lower train.lr, lengthen train.warmup or set train.clip"
    )]
    Gradient {
        /// The step that was being computed.
        step: u64,
        /// Module and matrix.
        parameter: String,
        /// The gradient, summed over the micro-batch's tokens.
        value: f32,
        /// The largest sum that one member may hold.
        limit: f64,
    },
    /// The update would make a weight NaN or infinite.
    #[error("step {step}: the update makes a weight NaN or infinite. Lower train.lr, or raise train.eps")]
    Update {
        /// The step that was being computed.
        step: u64,
    },
    /// None of a step's tokens bears a label.
    #[error(
        "step {step}: none of its {tokens} tokens bears a label. Raise train.max_length (the answers may be cut off) \
         or train.global_batch"
    )]
    NoLabels {
        /// The step that was being computed.
        step: u64,
        /// Tokens of the step over all members.
        tokens: u64,
    },
    /// All steps of the job are done.
    #[error("all {total_steps} steps are done")]
    Done {
        /// Steps of the job.
        total_steps: u64,
    },
}

/// What one finished step was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss of the labelled tokens, in nats.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// L2 norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, over all members.
    pub tokens: u64,
    /// Tokens that bore a label, over all members.
    pub labelled_tokens: u64,
}

/// Sums of an evaluation; adding them is exact, so the parts may be computed by anyone in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvalSums {
    /// Sum of the losses, in units of 2^-36 nats.
    pub loss: i64,
    /// Tokens that bear a label.
    pub labelled_tokens: i64,
}

impl EvalSums {
    /// Adds the sums of another part.
    pub fn add(&mut self, other: EvalSums) {
        self.loss += other.loss;
        self.labelled_tokens += other.labelled_tokens;
    }

    /// Mean loss in nats; nothing without a label.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.labelled_tokens > 0).then(|| crate::exact::from_fixed(self.loss) / self.labelled_tokens as f64)
    }
}

/// A whole state as files: the same bytes for the same state.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Finished steps.
    pub step: u64,
    /// `adapter_config.json`, `adapter_model.safetensors`, `optimizer.safetensors`.
    pub files: CheckpointFiles,
}

/// One member's part in training one adapter on a frozen base.
///
/// A step: [`Trainer::micro_batch`] for each of this member's micro-batches; all-reduce [`Trainer::reduce_buffer`] by
/// summing over the members; [`Trainer::finish_step`]. The current state changes only in `finish_step` and `restore`, and
/// only as a whole; after a failed exchange, [`Trainer::abandon_step`] and the step can be computed again.
///
/// Its results have the same bits for any number of rayon threads, and with exact sums for any number of members.
pub struct Trainer {
    base: Arc<Base>,
    config: AdapterConfig,
    states: States,
    accumulator: Accumulator,
    /// Gradients of one micro-batch, then the mean gradient of the step.
    gradients: Vec<f32>,
    /// Scratch of the gradient norm.
    partials: Vec<f64>,
    adamw: AdamW,
    rate: LearningRate,
    clip: f64,
    total_steps: u64,
    flops: FlopCounter,
}

impl Trainer {
    /// A trainer at step 0 with the job's initial adapter.
    ///
    /// `total_steps` is the length of the job, which its schedule needs; `control_words` is how many words of the
    /// reduced buffer the caller wants for itself.
    ///
    /// # Errors
    /// When the job's adapter does not fit the base.
    pub fn new(
        base: Arc<Base>,
        job: &Job,
        total_steps: u64,
        control_words: usize,
    ) -> Result<Self, TrainError> {
        let base_model = Some(job.base.source.clone()).filter(|source| !source.is_empty());
        let config = AdapterConfig { base_model, adapter: job.adapter.clone() };
        let layout = Arc::new(config.layout(base.shape())?);
        let train = &job.train;
        let mut states = States::new(layout.clone());
        let (_, first) = states.current_and_spare();
        first.weights = init::initial_weights(&layout, train.seed);
        states.adopt();
        Ok(Self {
            base,
            config,
            states,
            accumulator: Accumulator::new(
                layout.len(),
                control_words,
                train.reduce == Reduce::Exact,
                job.workers.max,
            ),
            gradients: vec![0.0; layout.len()],
            partials: Vec::new(),
            adamw: AdamW {
                beta1: train.beta1,
                beta2: train.beta2,
                eps: train.eps,
                weight_decay: train.weight_decay,
            },
            rate: LearningRate::new(train.lr, train.schedule, train.warmup_steps(total_steps), total_steps),
            clip: train.clip,
            total_steps,
            flops: FlopCounter::default(),
        })
    }

    /// Takes over a checkpoint; what was accumulated of a step is dropped.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of another adapter. The current state is then untouched.
    pub fn restore(&mut self, files: &CheckpointFiles) -> Result<(), TrainError> {
        let get = |name: &'static str| files.get(name).ok_or(AdapterError::MissingFile(name));
        let config = AdapterConfig::parse(get(CONFIG_FILE)?)?;
        if config.layout(self.base.shape())? != **self.layout() {
            return Err(TrainError::OtherAdapter);
        }
        let layout = self.layout().clone();
        let (_, spare) = self.states.current_and_spare();
        spare.weights = file::read_weights(&layout, get(WEIGHTS_FILE)?)?;
        file::read_optimizer(&layout, get(OPTIMIZER_FILE)?, spare)?;
        self.states.adopt();
        self.abandon_step();
        Ok(())
    }

    /// Starts from an adapter's weights instead of the initial ones, with fresh moments, at step 0.
    ///
    /// # Errors
    /// When the adapter is not laid out as the job's.
    pub fn start_from(&mut self, adapter: &Adapter) -> Result<(), TrainError> {
        if adapter.layout != *self.layout() {
            return Err(TrainError::OtherAdapter);
        }
        let (_, spare) = self.states.current_and_spare();
        spare.step = 0;
        spare.weights.copy_from_slice(&adapter.weights);
        spare.first.fill(0.0);
        spare.second.fill(0.0);
        self.states.adopt();
        self.abandon_step();
        Ok(())
    }

    /// The last finished step; 0 before the first.
    pub fn step(&self) -> u64 {
        self.states.current().step
    }

    /// Where the adapter's matrices lie in the flat buffers.
    pub fn layout(&self) -> &Arc<Layout> {
        self.states.layout()
    }

    /// Adds the gradients, loss and token counts of one micro-batch of the next step.
    ///
    /// # Errors
    /// When the model refuses the examples, or a value is not finite or out of range: the job has diverged.
    pub fn micro_batch(&mut self, examples: &[&Example]) -> Result<(), TrainError> {
        let step = self.next_step()?;
        let batch = PackedBatch::new(examples)?;
        let view = self.states.view();
        let sum = self.base.decoder().loss_and_gradients(&batch, &view, &mut self.gradients, &self.flops)?;
        let totals = Totals {
            loss: sum.loss,
            labelled_tokens: sum.labelled_tokens as u64,
            tokens: batch.tokens() as u64,
        };
        self.accumulator.add(&self.gradients, totals).map_err(|error| self.diverged(step, error))
    }

    /// The gradients of the last micro-batch, summed over its labelled tokens, laid out as the adapter.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    fn next_step(&self) -> Result<u64, TrainError> {
        let step = self.step() + 1;
        if step > self.total_steps {
            Err(TrainError::Done { total_steps: self.total_steps })
        } else {
            Ok(step)
        }
    }

    fn diverged(&self, step: u64, error: AddError) -> TrainError {
        match error {
            AddError::Loss(loss) => TrainError::Loss { step, loss },
            AddError::NotFinite { index, value } => TrainError::Gradient {
                step,
                parameter: self.parameter(index),
                value,
                limit: f64::from(f32::MAX),
            },
            AddError::OutOfRange { index, value, limit } => {
                TrainError::Gradient { step, parameter: self.parameter(index), value, limit }
            }
        }
    }

    /// Name of the tensor that holds a value of the flat buffers.
    fn parameter(&self, index: usize) -> String {
        self.layout().name_at(index).unwrap_or_default()
    }

    /// Sets a word that the members exchange with the gradients; it must stay below 2^24.
    ///
    /// The words are zero when a step begins.
    pub fn set_control(&mut self, index: usize, word: u32) {
        self.accumulator.set_control(index, word);
    }

    /// A control word: the sum over members, between the all-reduce and [`Trainer::finish_step`].
    pub fn control(&self, index: usize) -> u64 {
        self.accumulator.control(index)
    }

    /// What the members all-reduce by summing: gradients, loss, token counts, control words.
    pub fn reduce_buffer(&mut self) -> ReduceBuffer<'_> {
        self.accumulator.buffer()
    }

    /// Drops what was accumulated of the next step, after an exchange that failed.
    pub fn abandon_step(&mut self) {
        self.accumulator.clear();
    }

    /// Makes the update from the reduced sums: writes the spare state, then makes it the current one.
    ///
    /// # Errors
    /// When the sums or the new weights are not finite, or there was no label. The current state is then untouched.
    pub fn finish_step(&mut self) -> Result<StepReport, TrainError> {
        let step = self.next_step()?;
        let totals = self.accumulator.totals();
        if totals.labelled_tokens == 0 {
            return Err(TrainError::NoLabels { step, tokens: totals.tokens });
        }
        if !totals.loss.is_finite() {
            return Err(TrainError::Loss { step, loss: totals.loss });
        }
        let labelled = totals.labelled_tokens as f64;
        let squares = self.accumulator.mean_into(labelled, &mut self.gradients, &mut self.partials);
        let grad_norm = squares.sqrt();
        if !grad_norm.is_finite() {
            let index = self.gradients.iter().position(|g| !g.is_finite()).unwrap_or_default();
            return Err(self.diverged(step, AddError::NotFinite { index, value: self.gradients[index] }));
        }
        let lr = self.rate.at(step);
        let clip = clip::coefficient(grad_norm, self.clip);
        let (current, spare) = self.states.current_and_spare();
        if !self.adamw.step(lr, clip, &self.gradients, current, spare) {
            return Err(TrainError::Update { step });
        }
        self.states.adopt();
        self.accumulator.clear();
        let (tokens, labelled_tokens) = (totals.tokens, totals.labelled_tokens);
        Ok(StepReport { step, loss: totals.loss / labelled, lr, grad_norm, tokens, labelled_tokens })
    }

    /// Loss of examples under the current adapter, as exact sums.
    ///
    /// The examples go through the model as one batch, and a loss's last bits may depend on its company there: cut the
    /// evaluation set by the spec, never by the number of members.
    ///
    /// # Errors
    /// When the model refuses the examples, or the loss is not finite.
    pub fn evaluate(&self, examples: &[&Example]) -> Result<EvalSums, TrainError> {
        let batch = PackedBatch::new(examples)?;
        let sum = self.base.decoder().loss(&batch, Some(&self.states.view()), &self.flops)?;
        let loss = to_fixed(sum.loss).ok_or(TrainError::Loss { step: self.step(), loss: sum.loss })?;
        Ok(EvalSums { loss, labelled_tokens: sum.labelled_tokens as i64 })
    }

    /// A copy of the current adapter.
    pub fn adapter(&self) -> Adapter {
        Adapter {
            config: self.config.clone(),
            layout: self.layout().clone(),
            weights: self.states.current().weights.clone(),
        }
    }

    /// The current state as files.
    pub fn snapshot(&self) -> Snapshot {
        let (layout, state) = (self.layout(), self.states.current());
        let files = [
            (CONFIG_FILE, self.config.to_json(layout).into_bytes()),
            (WEIGHTS_FILE, file::write_weights(layout, &state.weights)),
            (OPTIMIZER_FILE, file::write_optimizer(layout, state)),
        ];
        Snapshot { step: state.step, files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() }
    }

    /// 24 bits of a sha256 over the current state: members that hold the same state have the same hash.
    pub fn state_hash(&self) -> u32 {
        let state = self.states.current();
        let mut hash = Sha256::new();
        hash.update(state.step.to_le_bytes());
        let mut block = Vec::with_capacity(4 * HASH_BLOCK);
        for buffer in [&state.weights, &state.first, &state.second] {
            for values in buffer.chunks(HASH_BLOCK) {
                block.clear();
                block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                hash.update(&block);
            }
        }
        let digest = hash.finalize();
        u32::from_le_bytes([digest[0], digest[1], digest[2], 0])
    }

    /// Parameters that are trained.
    pub fn trainable_parameters(&self) -> usize {
        self.layout().len()
    }

    /// Floating-point operations of the model's products, counted where they are spent.
    pub fn flops(&self) -> &FlopCounter {
        &self.flops
    }
}

/// Values that are turned into bytes at a time, for hashing.
const HASH_BLOCK: usize = 4096;
