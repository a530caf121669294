//! Before the gang begins: the spec is read, base and data are fetched and loaded, prompts are checked.

use std::sync::Arc;

use lorafleet_lora::{base::Base, train::Trainer};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    data::{DataError, DataFile, Dataset, Example, Labels, ReadOptions, Tokenizer},
    digest::data_digest,
    job::{Job, Source},
};
use lorafleet_store::Digest;
use tracing::info;

use super::{
    Run,
    end::{End, missing},
    steps::ControlWords,
};
use crate::base_cache::{LoadError, LoadedBase};

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
    pub base: Arc<Base>,
    pub tokenizer: Arc<Tokenizer>,
    pub base_sha256: Digest,
    pub train: Data,
    pub eval: Option<Data>,
    /// Tokens of eval.prompts.
    pub prompts: Vec<Vec<u32>>,
    pub total_steps: u64,
}

impl Prepared {
    /// As the coordinator is told.
    pub fn ready(&self, assign: &pb::Assign) -> pb::Ready {
        let trainable_parameters = self.trainer.trainable_parameters() as u64;
        pb::Ready {
            job: assign.job.clone(),
            fence: assign.fence.clone(),
            base_sha256: self.parts.base_sha256.to_string(),
            train_sha256: self.parts.train.digest.to_string(),
            total_steps: self.parts.total_steps,
            data: Some(self.parts.train.summary.clone()),
            trainable_parameters,
            total_parameters: self.parts.base.shape().parameters() + trainable_parameters,
        }
    }
}

/// Loads everything.
pub(super) fn prepare(run: &Run) -> Result<Prepared, End> {
    let spec = run.assign.spec.as_ref().ok_or_else(|| End::Failed("the assignment has no spec".into()))?;
    let job = Job::try_from(spec).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(|error| format!("spec.{error}")).collect();
        End::Failed(format!("the spec is not valid: {}", errors.join("; ")))
    })?;
    let text =
        serde_json::to_vec(spec).map_err(|error| End::Failed(format!("the spec has no JSON: {error}")))?;
    run.check()?;
    let loaded = load_base(run, &job)?;
    run.check()?;
    let prompts = encode_prompts(&job, &loaded)?;
    let train = load_data(run, &job, &loaded, "train", None)?;
    run.check()?;
    let eval = match job.data.eval.as_slice() {
        [] => None,
        _ => Some(load_data(run, &job, &loaded, "eval", train.labels.clone())?),
    };
    run.check()?;
    let total_steps = job.train.total_steps(train.summary.examples);
    let words = ControlWords::new(run.assign.world_size).count();
    let trainer = Trainer::new(loaded.base.clone(), &job, total_steps, words)?;
    let parts = Parts {
        job,
        spec_sha256: Digest::of(&text),
        base: loaded.base,
        tokenizer: loaded.tokenizer,
        base_sha256: loaded.digest,
        train,
        eval,
        prompts,
        total_steps,
    };
    Ok(Prepared { parts, trainer })
}

fn load_base(run: &Run, job: &Job) -> Result<LoadedBase, End> {
    let digest = digest(&job.base, "base")?;
    let loaded = run.block_on(run.workshop.cache.base(&run.store, &digest, job.train.precision));
    let loaded = loaded.map_err(|error| match error {
        LoadError::Store(error) => missing("the base", &error),
        error => End::Failed(format!("the base {:?}: {error}", job.base.source)),
    })?;
    info!(base = %digest, "base loaded");
    Ok(loaded)
}

/// Fetches and reads one data set; `labels` are those of the training data.
fn load_data(
    run: &Run,
    job: &Job,
    base: &LoadedBase,
    what: &str,
    labels: Option<Labels>,
) -> Result<Data, End> {
    let field = format!("data.{what}");
    let sources = if what == "train" { &job.data.train } else { &job.data.eval };
    let (mut files, mut digests) = (Vec::new(), Vec::new());
    for source in sources {
        let digest = digest(source, &field)?;
        let fetched = run.block_on(run.workshop.cache.dataset(&run.store, &digest));
        let path = fetched.map_err(|error| missing(&field, &error))?;
        files.push(DataFile { name: source.source.clone(), path });
        digests.push(digest.to_string());
        run.check()?;
    }
    let failed = |error: DataError| match error {
        DataError::Io { .. } => End::lost(format!("{field}: {error}")),
        error => End::Failed(format!("{field}: {error}")),
    };
    let (max_length, positions) = (job.train.max_length as usize, base.base.shape().max_positions);
    let mut options = ReadOptions::of(job.task, &job.data, max_length, positions).map_err(failed)?;
    options.labels = labels.or(options.labels);
    let read = Dataset::load(&files, &base.tokenizer, &options, 1);
    let Dataset { examples, labels, summary } =
        read.map_err(|mut errors| failed(errors.pop().unwrap_or(DataError::Empty)))?;
    let (format, container) = (summary.format.name(), &summary.container);
    info!(data = what, examples = summary.examples, tokens = summary.tokens, format, %container, "data read");
    let digest = data_digest(&digests).parse().map_err(|_| End::lost(format!("{field} has no digest")))?;
    Ok(Data { digest, examples, labels, summary: (&summary).into() })
}

fn digest(source: &Source, field: &str) -> Result<Digest, End> {
    let missing =
        || End::Failed(format!("spec.{field}.sha256: is not set; {:?} was never uploaded", source.source));
    source.sha256.as_deref().ok_or_else(missing)?.parse().map_err(|_| missing())
}

/// Prompts that could not be answered at the end are found before the beginning.
fn encode_prompts(job: &Job, base: &LoadedBase) -> Result<Vec<Vec<u32>>, End> {
    let positions = base.base.shape().max_positions;
    let encode = |(place, prompt): (usize, &String)| {
        let at = format!("spec.eval.prompts[{place}]");
        let tokens = base.tokenizer.encode_prompt(prompt);
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
