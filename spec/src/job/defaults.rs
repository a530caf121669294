//! The defaults of a job: what a practitioner would choose.

use lorafleet_proto::v1 as pb;

/// Every default value, in one place.
pub struct Defaults;

impl Defaults {
    /// Name of a job without one.
    pub const NAME: &'static str = "job";
    /// LoRA rank.
    pub const RANK: u32 = 16;
    /// LoRA alpha.
    pub const ALPHA: f64 = 32.0;
    /// Target layers.
    pub const TARGETS: &'static str = "all-linear";
    /// Passes over the data.
    pub const EPOCHS: f64 = 3.0;
    /// Examples a step.
    pub const GLOBAL_BATCH: u32 = 16;
    /// Micro-batches a step at most.
    pub const MICRO_BATCHES: u32 = 8;
    /// Tokens an example.
    pub const MAX_LENGTH: u32 = 512;
    /// Peak learning rate.
    pub const LR: f64 = 1e-3;
    /// Warm-up, a fraction of the steps.
    pub const WARMUP: f64 = 0.03;
    /// Gradient norm.
    pub const CLIP: f64 = 1.0;
    /// First moment decay.
    pub const BETA1: f64 = 0.9;
    /// Second moment decay.
    pub const BETA2: f64 = 0.999;
    /// AdamW's epsilon.
    pub const EPS: f64 = 1e-8;
    /// SGD's momentum.
    pub const MOMENTUM: f64 = 0.9;
    /// WSD's decay, a fraction of the steps.
    pub const DECAY: f64 = 0.1;
    /// Steps between evaluations.
    pub const EVAL_EVERY: u64 = 50;
    /// Tokens of an answer.
    pub const MAX_NEW_TOKENS: u32 = 128;
    /// Steps between checkpoints.
    pub const CHECKPOINT_EVERY: u64 = 50;
    /// Checkpoints kept.
    pub const KEEP: u32 = 3;
    /// Workers at most, as far as there are micro-batches for them.
    pub const MAX_WORKERS: u32 = 4;
    /// Tries beyond the first after failures that may heal.
    pub const RETRIES: u32 = 3;
}

/// Fills in every default.
///
/// A message that is absent takes all of its defaults. In a message that is present, 0, empty or UNSPECIFIED counts as
/// not given in a field where it would mean nothing (`lr`, `max_length`, …), and as itself where it means something
/// (`warmup`, `clip`, `seed`, `eval.every`, `checkpoint.every`). The one exception is `adapter.rank`: rank 0 is an error,
/// never 16.
pub fn fill_defaults(spec: &mut pb::JobSpec) {
    if spec.display_name.is_empty() {
        spec.display_name = Defaults::NAME.to_owned();
    }
    set_if_zero(&mut spec.action, pb::Action::Train as i32);
    set_if_zero(&mut spec.task, pb::Task::CausalLm as i32);
    fill_adapter(
        spec.adapter.get_or_insert_with(|| pb::AdapterSpec { rank: Defaults::RANK, ..Default::default() }),
    );
    let train = spec.train.get_or_insert_with(new_train);
    fill_train(train);
    let micro_batches = train.micro_batches;
    if let Some(data) = &mut spec.data {
        set_if_zero(&mut data.loss_on, pb::LossOn::Completions as i32);
    }
    let eval = spec.eval.get_or_insert_with(new_eval);
    set_if_zero(&mut eval.max_new_tokens, Defaults::MAX_NEW_TOKENS);
    set_if_zero(&mut eval.metric, pb::Metric::Loss as i32);
    let checkpoint = spec.checkpoint.get_or_insert_with(new_checkpoint);
    set_if_zero(&mut checkpoint.keep, Defaults::KEEP);
    let workers = spec.workers.get_or_insert_with(Default::default);
    set_if_zero(&mut workers.min, 1);
    if spec.action != pb::Action::Train as i32 {
        set_if_zero(&mut workers.max, 1);
    }
    set_if_zero(&mut workers.max, Defaults::MAX_WORKERS.min(micro_batches).max(workers.min));
    spec.queue.get_or_insert_with(new_queue);
}

/// Training defaults whose zero means something, so that they hold only where the whole message is absent.
pub(super) fn new_train() -> pb::TrainSpec {
    pb::TrainSpec {
        warmup: Defaults::WARMUP,
        clip: Defaults::CLIP,
        momentum: Defaults::MOMENTUM,
        ..Default::default()
    }
}

/// Evaluation defaults whose zero means something.
pub(super) fn new_eval() -> pb::EvalSpec {
    pb::EvalSpec { every: Defaults::EVAL_EVERY, ..Default::default() }
}

/// Checkpoint defaults whose zero means something.
pub(super) fn new_checkpoint() -> pb::CheckpointSpec {
    pb::CheckpointSpec { every: Defaults::CHECKPOINT_EVERY, ..Default::default() }
}

/// Queueing defaults whose zero means something.
pub(super) fn new_queue() -> pb::QueueSpec {
    pb::QueueSpec { retries: Defaults::RETRIES, ..Default::default() }
}

fn fill_adapter(adapter: &mut pb::AdapterSpec) {
    set_if_zero(&mut adapter.method, pb::AdapterMethod::Lora as i32);
    set_if_zero(&mut adapter.init, pb::AdapterInit::Kaiming as i32);
    if adapter.method == pb::AdapterMethod::Full as i32 {
        // Means nothing there, and need not be given.
        set_if_zero(&mut adapter.rank, Defaults::RANK);
    }
    set_if_zero(&mut adapter.alpha, Defaults::ALPHA);
    if adapter.targets.is_empty() {
        adapter.targets = vec![Defaults::TARGETS.to_owned()];
    }
}

fn fill_train(train: &mut pb::TrainSpec) {
    train.length.get_or_insert(pb::train_spec::Length::Epochs(Defaults::EPOCHS));
    set_if_zero(&mut train.global_batch, Defaults::GLOBAL_BATCH);
    set_if_zero(&mut train.micro_batches, Defaults::MICRO_BATCHES.min(train.global_batch));
    set_if_zero(&mut train.max_length, Defaults::MAX_LENGTH);
    set_if_zero(&mut train.lr, Defaults::LR);
    set_if_zero(&mut train.beta1, Defaults::BETA1);
    set_if_zero(&mut train.beta2, Defaults::BETA2);
    set_if_zero(&mut train.eps, Defaults::EPS);
    set_if_zero(&mut train.optimizer, pb::OptimizerKind::Adamw as i32);
    set_if_zero(&mut train.loraplus_lr_ratio, 1.0);
    set_if_zero(&mut train.decay, Defaults::DECAY);
    set_if_zero(&mut train.schedule, pb::Schedule::Cosine as i32);
    set_if_zero(&mut train.precision, pb::Precision::F32 as i32);
    set_if_zero(&mut train.reduce, pb::Reduce::Exact as i32);
}

fn set_if_zero<T: Default + PartialEq>(field: &mut T, value: T) {
    if *field == T::default() {
        *field = value;
    }
}
