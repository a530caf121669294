//! Before the gang begins: the spec is read, base and data are fetched and loaded, prompts are checked.

use std::sync::Arc;

use lorafleet_lora::{base::Base, train::Trainer};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    base::{BaseShape, Head},
    data::{DataError, DataFile, Dataset, Example, Labels, ReadOptions, Summary, Tokenizer},
    digest::data_digest,
    job::{Job, Source, Task},
    plan::Plan,
    targets,
};
use lorafleet_store::Digest;
use tracing::info;

use super::{
    Run,
    end::{End, missing},
    start,
    words::ControlWords,
};
use crate::{
    base_cache::{BaseFiles, LoadError},
    resources::memory_bytes,
};

/// A data set in memory.
pub(super) struct Data {
    pub digest: Digest,
    pub examples: Vec<Example>,
    /// What the labels are, where texts have one.
    pub labels: Option<Labels>,
    pub summary: pb::DataSummary,
}

/// All that a run needs but its peers.
pub(super) struct Prepared {
    pub parts: Parts,
    /// At step 0.
    pub trainer: Trainer,
}

/// What stays the same through the run.
pub(super) struct Parts {
    pub job: Job,
    pub spec_sha256: Digest,
    /// The base's files, with its tokenizer.
    pub files: BaseFiles,
    pub base: Arc<Base>,
    pub train: Data,
    pub eval: Option<Data>,
    /// Tokens of eval.prompts.
    pub prompts: Vec<Vec<u32>>,
    pub total_steps: u64,
    /// Parameters of base and adapter together; full fine-tuning adds none.
    pub total_parameters: u64,
    /// Estimated, on average.
    pub flops_per_token: f64,
}

impl Prepared {
    /// As the coordinator is told.
    pub fn ready(&self, assign: &pb::Assign) -> pb::Ready {
        let trainable_parameters = self.trainer.trainable_parameters() as u64;
        pb::Ready {
            job: assign.job.clone(),
            fence: assign.fence.clone(),
            base_sha256: self.parts.files.digest.to_string(),
            train_sha256: self.parts.train.digest.to_string(),
            total_steps: self.parts.total_steps,
            data: Some(self.parts.train.summary.clone()),
            trainable_parameters,
            total_parameters: self.parts.total_parameters,
            place: assign.place,
            eval_sha256: self.parts.eval.as_ref().map(|eval| eval.digest.to_string()).unwrap_or_default(),
            flops_per_token: self.parts.flops_per_token,
        }
    }
}

/// The job as it was assigned, and the digest of what it says.
pub(super) fn read_spec(run: &Run) -> Result<(Job, Digest), End> {
    let spec = run.assign.spec.as_ref().ok_or_else(|| End::Failed("the assignment has no spec".into()))?;
    let job = Job::try_from(spec).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(|error| format!("spec.{error}")).collect();
        End::Failed(format!("the spec is not valid: {}", errors.join("; ")))
    })?;
    let text =
        serde_json::to_vec(spec).map_err(|error| End::Failed(format!("the spec has no JSON: {error}")))?;
    Ok((job, Digest::of(&text)))
}

/// Loads everything that training needs.
pub(super) fn prepare(run: &Run, mut job: Job, spec_sha256: Digest) -> Result<Prepared, End> {
    run.check_loading()?;
    let files = base_files(run, &job)?;
    run.check_loading()?;
    let positions = positions(&job, &files)?;
    let (train, summary) = load_data(run, &job, &files.tokenizer, positions, "train", None)?;
    run.check_loading()?;
    let eval = match job.data.eval.as_slice() {
        [] => None,
        _ => Some(load_data(run, &job, &files.tokenizer, positions, "eval", train.labels.clone())?.0),
    };
    run.check_loading()?;
    // The head has as many outputs as the training data has labels.
    let head = match &train.labels {
        Some(labels) => Head::Classifier { labels: labels.outputs() },
        None => Head::LanguageModel,
    };
    if let Some(labels) = &train.labels {
        job.data.labels = labels.names().to_vec();
    }
    let base = run
        .workshop
        .cache
        .base(&files, head, job.train.precision)
        .map_err(|error| wrong_base(&job, &error))?;
    info!(base = %files.digest, ?head, "base loaded");
    run.check_loading()?;
    let prompts = encode_prompts(&job, &files.tokenizer, positions)?;
    let total_steps = job.train.total_steps(train.summary.examples);
    let words = ControlWords::new(job.workers.max).count();
    let plan = plan(&job, base.shape(), &summary)?;
    check_memory(&plan, memory_bytes())?;
    let mut trainer = Trainer::new(base.clone(), &job, total_steps, words)?;
    if let Some(start) = &job.adapter.start {
        let adapter = start::find(run, start)?.load(&base)?;
        trainer.start_from(&adapter).map_err(|error| End::Failed(format!("spec.adapter.start: {error}")))?;
    }
    let parts = Parts {
        job,
        spec_sha256,
        files,
        base,
        train,
        eval,
        prompts,
        total_steps,
        total_parameters: plan.total_parameters,
        flops_per_token: plan.flops_per_token(),
    };
    Ok(Prepared { parts, trainer })
}

/// What the job costs.
fn plan(job: &Job, shape: &BaseShape, data: &Summary) -> Result<Plan, End> {
    let targets = targets::resolve(&job.adapter, shape).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(|error| format!("spec.{error}")).collect();
        End::Failed(errors.join("; "))
    })?;
    Ok(Plan::new(job, shape, &targets, data))
}

/// A worker that is too small says so before it trains. `available` 0: nobody knows how much it has.
fn check_memory(plan: &Plan, available: u64) -> Result<(), End> {
    let memory = &plan.memory;
    if available == 0 || memory.total() <= available {
        return Ok(());
    }
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    Err(End::Failed(format!(
        "this worker has {} MB of memory, and the job needs about {} MB: {} for the base, {} for {} trained parameters, {} \
         for activations. Set train.recompute or lower train.micro_tokens (activations), choose train.optimizer \
         adamw_8bit or a smaller adapter (trained parameters), or use a larger worker",
        mb(available),
        mb(memory.total()),
        mb(memory.base),
        mb(memory.adapter),
        plan.trainable_parameters,
        mb(memory.activations)
    )))
}

/// The base's files and tokenizer.
pub(super) fn base_files(run: &Run, job: &Job) -> Result<BaseFiles, End> {
    let digest = digest(&job.base, "base")?;
    let files = run.block_on(run.workshop.cache.base_files(&run.store, &digest));
    files.map_err(|error| match error {
        LoadError::Store(error) => missing("the base", &error),
        error => wrong_base(job, &error),
    })
}

pub(super) fn wrong_base(job: &Job, error: &dyn std::error::Error) -> End {
    End::Failed(format!("the base {:?}: {error}", job.base.source))
}

/// How long a sequence may be; known before it is known how many labels the head has.
pub(super) fn positions(job: &Job, files: &BaseFiles) -> Result<usize, End> {
    let head = match job.task {
        Task::CausalLm => Head::LanguageModel,
        Task::Classification => Head::Classifier { labels: job.data.labels.len().max(1) },
    };
    let shape = BaseShape::read(&files.dir, head).map_err(|error| wrong_base(job, &error))?;
    Ok(shape.max_positions)
}

/// Fetches and reads one data set; `labels` are those of the training data, or of the adapter.
pub(super) fn load_data(
    run: &Run,
    job: &Job,
    tokenizer: &Tokenizer,
    positions: usize,
    what: &str,
    labels: Option<Labels>,
) -> Result<(Data, Summary), End> {
    let field = format!("data.{what}");
    let sources = if what == "train" { &job.data.train } else { &job.data.eval };
    let (mut files, mut digests) = (Vec::new(), Vec::new());
    for source in sources {
        let digest = digest(source, &field)?;
        let fetched = run.block_on(run.workshop.cache.dataset(&run.store, &digest));
        let path = fetched.map_err(|error| missing(&field, &error))?;
        files.push(DataFile { name: source.source.clone(), path });
        digests.push(digest.to_string());
        run.check_loading()?;
    }
    let failed = |error: DataError| match error {
        DataError::Io { .. } => End::lost(format!("{field}: {error}")),
        error => End::Failed(format!("{field}: {error}")),
    };
    let max_length = job.train.max_length as usize;
    let mut options = ReadOptions::of(job.task, &job.data, max_length, positions).map_err(failed)?;
    options.labels = labels.or(options.labels);
    let read = Dataset::load(&files, tokenizer, &options, 1);
    let Dataset { examples, labels, summary } =
        read.map_err(|mut errors| failed(errors.pop().unwrap_or(DataError::Empty)))?;
    let (format, container) = (summary.format.name(), &summary.container);
    info!(data = what, examples = summary.examples, tokens = summary.tokens, format, %container, "data read");
    let digest = data_digest(&digests).parse().map_err(|_| End::lost(format!("{field} has no digest")))?;
    Ok((Data { digest, examples, labels, summary: (&summary).into() }, summary))
}

pub(super) fn digest(source: &Source, field: &str) -> Result<Digest, End> {
    let missing =
        || End::Failed(format!("spec.{field}.sha256: is not set; {:?} was never uploaded", source.source));
    source.sha256.as_deref().ok_or_else(missing)?.parse().map_err(|_| missing())
}

/// Prompts that could not be answered at the end are found before the beginning.
fn encode_prompts(job: &Job, tokenizer: &Tokenizer, positions: usize) -> Result<Vec<Vec<u32>>, End> {
    let encode = |(place, prompt): (usize, &String)| {
        let at = format!("spec.eval.prompts[{place}]");
        let tokens = tokenizer.encode_prompt(prompt);
        let tokens = tokens.map_err(|error| End::Failed(format!("{at}: {error}")))?;
        if tokens.is_empty() || tokens.len() >= positions {
            let message = format!(
                "{at}: has {} tokens; the base has {positions} positions, and at least one is needed to answer",
                tokens.len()
            );
            return Err(End::Failed(message));
        }
        Ok(tokens)
    };
    job.eval.prompts.iter().enumerate().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use lorafleet_spec::plan::Memory;

    use super::*;

    #[test]
    fn a_worker_that_is_too_small_says_what_to_do() {
        let memory = Memory { base: 4_000_000, adapter: 2_000_000, activations: 3_000_000 };
        let plan = Plan {
            base_parameters: 1_000_000,
            trainable_parameters: 1000,
            whole_parameters: 0,
            total_parameters: 1_001_000,
            total_steps: 1,
            tokens_per_step: 1.0,
            flops_per_step: 1.0,
            reduced_bytes: 8000,
            memory,
        };
        assert!(check_memory(&plan, 9_000_000).is_ok());
        assert!(check_memory(&plan, 0).is_ok(), "nobody knows");
        let message = check_memory(&plan, 8_000_000).unwrap_err().to_string();
        assert!(message.contains("has 8 MB of memory, and the job needs about 9 MB"), "{message}");
        assert!(message.contains("train.recompute") && message.contains("adamw_8bit"), "{message}");
    }
}
