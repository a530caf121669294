//! A job that evaluates an adapter: what training measures at its end, on one worker, from the start each time.

use std::sync::Arc;

use lorafleet_lora::{
    adapter::Adapter,
    base::Base,
    flops::FlopCounter,
    train::{TrainError, evaluate},
};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    base::Head,
    data::Labels,
    job::{Job, Task},
};
use lorafleet_store::Digest;
use tracing::info;

use super::{
    Run,
    end::{End, Halt},
    evaluate::{Evaluation, Pass},
    generation::{Course, Generation},
    life::Work,
    prepare::{self, Data},
    start::{self, Found},
};
use crate::collective::{Abort, Collective};

/// An evaluation that has loaded what it is about.
pub(super) struct Evaluating<'a> {
    run: &'a Run,
    job: Job,
    base_sha256: Digest,
    base: Arc<Base>,
    found: Found,
    adapter: Adapter,
    data: Data,
}

impl<'a> Evaluating<'a> {
    /// Loads adapter, base and data.
    pub fn prepare(run: &'a Run, mut job: Job) -> Result<Self, End> {
        run.check_loading()?;
        let files = prepare::base_files(run, &job)?;
        run.check_loading()?;
        let start = job.adapter.start.clone();
        let start = start.ok_or_else(|| End::Failed("spec.adapter: names no adapter to evaluate".into()))?;
        let found = start::find(run, &start)?;
        let labels = labels(&mut job, &found)?;
        run.check_loading()?;
        let positions = prepare::positions(&job, &files)?;
        let (data, _) = prepare::load_data(run, &job, &files.tokenizer, positions, "eval", labels.clone())?;
        run.check_loading()?;
        let head = labels.map_or(Head::LanguageModel, |labels| Head::Classifier { labels: labels.outputs() });
        let base = run.workshop.cache.base(&files, head, job.train.precision);
        let base = base.map_err(|error| prepare::wrong_base(&job, &error))?;
        info!(base = %files.digest, ?head, "base loaded");
        let adapter = found.load(&base)?;
        Ok(Self { run, job, base_sha256: files.digest, base, found, adapter, data })
    }

    /// As the coordinator is told.
    pub fn ready(&self) -> pb::Ready {
        pb::Ready {
            job: self.run.assign.job.clone(),
            fence: self.run.assign.fence.clone(),
            base_sha256: self.base_sha256.to_string(),
            data: Some(self.data.summary.clone()),
            place: self.run.assign.place,
            eval_sha256: self.data.digest.to_string(),
            ..Default::default()
        }
    }

    /// The evaluation; or why it ends before.
    fn evaluate(&self, abort: &Abort) -> Result<Result<Evaluation, Course>, Halt> {
        let mut pass = Pass::new(&self.data, &self.job.train);
        let (view, flops) = (self.adapter.view(), FlopCounter::default());
        for batch in 0..pass.costs().len() {
            if let Some(course) = Course::before_the_end(self.run, abort)? {
                return Ok(Err(course));
            }
            let part = evaluate(&self.base, &view, &flops, &pass.batch(batch)).map_err(failed)?;
            pass.add(batch, &part);
        }
        Ok(Ok(pass.evaluation(&pass.buffer())))
    }

    /// What was measured, as a point before the first step and as the job's result.
    fn succeeded(&self, evaluation: Evaluation) -> Result<pb::Succeeded, End> {
        let loss = evaluation.sums.mean_loss();
        let message = match loss {
            Some(loss) => format!("{}: {}", self.found.name, evaluation.describe(loss)),
            None => {
                format!("{}: nothing in data.eval bears a label within train.max_length", self.found.name)
            }
        };
        self.run.reporter.event("evaluated/0", "evaluated", &message);
        self.run.reporter.point(evaluation.point(self.run.fence()));
        let result = pb::JobResult {
            adapter_sha256: self.found.weights_sha256()?.to_string(),
            eval_loss_after: loss,
            eval_tokens: evaluation.sums.labelled_tokens as u64,
            scores_after: evaluation.scores,
            data: Some(self.data.summary.clone()),
            ..Default::default()
        };
        Ok(pb::Succeeded { checkpoint: None, result: Some(result), message })
    }
}

impl Work for Evaluating<'_> {
    fn course(&mut self, _: &Generation, collective: &mut dyn Collective) -> Result<Course, Halt> {
        Ok(match self.evaluate(&collective.abort_handle())? {
            Ok(evaluation) => Course::Succeeded(Box::new(self.succeeded(evaluation)?)),
            Err(course) => course,
        })
    }

    fn abandon(&mut self) {}

    fn keep(&mut self) -> Result<(), Halt> {
        Ok(())
    }
}

/// What is predicted: the spec's labels, or those that the adapter was trained on; nothing of a language model.
fn labels(job: &mut Job, found: &Found) -> Result<Option<Labels>, End> {
    if job.task == Task::CausalLm {
        return Ok(None);
    }
    if job.data.labels.is_empty() {
        job.data.labels = found.labels()?;
    }
    if job.data.labels.is_empty() {
        return Ok(Some(Labels::Scores));
    }
    let labels = Labels::classes(job.data.labels.clone());
    labels.map(Some).map_err(|error| End::Failed(format!("spec.data.labels: {error}")))
}

fn failed(error: TrainError) -> End {
    match error {
        TrainError::Loss { loss, .. } => {
            End::Failed(format!("the loss over data.eval is {loss}: the adapter's weights are out of range"))
        }
        error => End::Failed(error.to_string()),
    }
}
