//! The trainer: one step is the gradients of my micro-batches, an exchange that is the caller's, and an update.

mod checkpoint;
mod error;
mod evaluate;
mod model_file;
mod progress;
mod setup;
mod step;
mod transfer;

use std::sync::Arc;

use lorafleet_spec::job::{Job, Method, Reduce};

use crate::adapter::config::AdapterConfig;
use crate::adapter::{Adapter, init};
use crate::base::Base;
use crate::exact::{Accumulator, ReduceBuffer};
use crate::flops::FlopCounter;
use crate::model::Keep;
use crate::optim::Optimizer;
use crate::optim::schedule::LearningRate;
use crate::optim::state::States;
use crate::params::{AdapterView, Layout};
use progress::{Judge, Progress};

pub use checkpoint::{BEST_FILE, CheckpointFiles, Frozen, FrozenFile, Snapshot};
pub use error::TrainError;
pub use evaluate::{EvalPart, EvalSums, evaluate};
pub use model_file::{MODEL_CONFIG_FILE, MODEL_FILE};
pub use progress::Best;
pub use step::StepReport;

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
    layout: Arc<Layout>,
    /// What is subtracted of the base (PiSSA, OLoRA).
    start: Option<Arc<Vec<f32>>>,
    /// Probability that an input of an adapter is dropped.
    dropout: f32,
    seed: u64,
    states: States,
    accumulator: Accumulator,
    /// Gradients of one micro-batch, then the mean gradient of the step.
    gradients: Vec<f32>,
    /// Scratch of the gradient norm.
    partials: Vec<f64>,
    optimizer: Box<dyn Optimizer>,
    rate: LearningRate,
    /// Peak learning rate, for reports: LoRA+ has others beside it.
    peak: f64,
    clip: f64,
    total_steps: u64,
    keep: Keep,
    /// Full fine-tuning: the text of the model's configuration.
    model_config: Option<String>,
    judge: Judge,
    progress: Progress,
    /// The best evaluation's weights are the job's result.
    keeps_best: bool,
    /// Its weights; empty before the first, and where they are not kept.
    best_weights: Arc<Vec<f32>>,
    /// The step at which a state was last taken over; 0 if none was.
    restored_at: u64,
    flops: FlopCounter,
}

impl Trainer {
    /// A trainer at step 0 with the job's initial adapter.
    ///
    /// `total_steps` is the length of the job, which its schedule needs; `control_words` is how many words of the
    /// reduced buffer the caller wants for itself.
    ///
    /// # Errors
    /// When the job's adapter does not fit the base, or the base is held in another precision.
    pub fn new(
        base: Arc<Base>,
        job: &Job,
        total_steps: u64,
        control_words: usize,
    ) -> Result<Self, TrainError> {
        if base.precision() != job.train.precision {
            return Err(TrainError::Precision { base: base.precision(), job: job.train.precision });
        }
        let (config, layout) = AdapterConfig::of_job(job, base.shape())?;
        let layout = Arc::new(layout);
        let train = &job.train;
        let optimizer = setup::optimizer(train, &layout);
        let read = |name: &str| base.tensor(name);
        let initial = init::initial(&layout, job.adapter.init, train.seed, base.shape(), &read)?;
        let model_config = match job.adapter.method {
            Method::Full => Some(setup::model_config(&base, job)?),
            Method::Lora | Method::Dora => None,
        };
        let exact = train.reduce == Reduce::Exact;
        Ok(Self {
            base,
            config,
            states: States::new(initial.weights, optimizer.plan()),
            accumulator: Accumulator::new(layout.len(), control_words, exact, job.workers.max),
            gradients: vec![0.0; layout.len()],
            partials: Vec::new(),
            layout,
            start: initial.start.map(Arc::new),
            dropout: job.adapter.dropout as f32,
            seed: train.seed,
            optimizer,
            rate: setup::rate(train, total_steps),
            peak: train.lr,
            clip: train.clip,
            total_steps,
            keep: if train.recompute { Keep::BlockInputs } else { Keep::Everything },
            model_config,
            judge: Judge::new(&job.eval),
            progress: Progress::default(),
            keeps_best: job.checkpoint.best,
            best_weights: Arc::default(),
            restored_at: 0,
            flops: FlopCounter::default(),
        })
    }

    /// The last finished step; 0 before the first.
    pub fn step(&self) -> u64 {
        self.states.current().step
    }

    /// Where the trained tensors lie in the flat buffers.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The current weights as the model sees them.
    fn view(&self) -> AdapterView<'_> {
        let frozen_start = self.start.as_ref().map(|start| start.as_slice());
        AdapterView { frozen_start, ..AdapterView::new(&self.layout, &self.states.current().weights) }
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

    /// A copy of the current adapter.
    pub fn adapter(&self) -> Adapter {
        Adapter {
            config: self.config.clone(),
            layout: self.layout.clone(),
            weights: self.states.current().weights.clone(),
            start: self.start.clone(),
        }
    }

    /// Whether every weight of the base is trained.
    fn trains_all(&self) -> bool {
        self.model_config.is_some()
    }

    /// Parameters that are trained.
    pub fn trainable_parameters(&self) -> usize {
        self.layout.len()
    }

    /// Floating-point operations of the model's products, counted where they are spent.
    pub fn flops(&self) -> &FlopCounter {
        &self.flops
    }
}
