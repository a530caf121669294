//! After the last step: the final evaluation is made, prompts are answered, the final checkpoint is written.

use lorafleet_lora::{
    adapter::{Adapter, WEIGHTS_FILE},
    generate::{GenerateOptions, generate},
    train::MODEL_FILE,
};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::job::Method;
use lorafleet_store::Checkpoint;
use prost::Message as _;

use super::{end::End, evaluate::Evaluation, steps::Training};

impl Training<'_> {
    /// The job's result: made by index 0, told to all, so that any of them can report it.
    pub fn finish(&mut self, before: Option<Evaluation>) -> Result<pb::Succeeded, End> {
        let last = self.trainer.step();
        let of_step = self.trainer.adopt_best();
        if of_step < last {
            self.tell(
                "best",
                &format!("the result is that of step {of_step}, whose evaluation was the best"),
            );
        }
        let after = match &self.evaluated {
            Some((step, evaluation)) if *step == of_step => Some(evaluation.clone()),
            // It is another step's; or a checkpoint of the last step was taken over, and no step was left to do.
            _ => self.evaluate()?,
        };
        let mut bytes = Vec::new();
        if self.collective.index() == 0 {
            let answers = self.answers()?;
            let checkpoint = self.checkpoints.write_final(self.trainer.freeze())?;
            let about = self.result(&checkpoint);
            let result = pb::JobResult { best_step: of_step, answers, ..about };
            let result = with_evaluations(result, before, after);
            let succeeded = pb::Succeeded { checkpoint: Some(checkpoint.to_proto()), result: Some(result) };
            bytes = succeeded.encode_to_vec();
        }
        self.collective.broadcast(0, &mut bytes)?;
        pb::Succeeded::decode(bytes.as_slice())
            .map_err(|error| End::lost(format!("member 0 told a result that cannot be read: {error}")))
    }

    /// What can be said without evaluations and answers.
    fn result(&self, checkpoint: &Checkpoint) -> pb::JobResult {
        let trainable_parameters = self.trainer.trainable_parameters() as u64;
        let full = self.prepared.job.adapter.method == Method::Full;
        let wanted = if full { MODEL_FILE } else { WEIGHTS_FILE };
        let weights = checkpoint.manifest.files.iter().find(|(name, _)| name.as_str() == wanted);
        pb::JobResult {
            checkpoint: checkpoint.id().resource_name(&checkpoint.manifest.job),
            adapter_sha256: weights.map(|(_, file)| file.sha256.to_string()).unwrap_or_default(),
            trainable_parameters,
            total_parameters: self.prepared.total_parameters,
            bytes_sent_per_step: self.bytes_per_step,
            data: Some(self.prepared.train.summary.clone()),
            stopped_early: self.trainer.step() < self.prepared.total_steps,
            ..Default::default()
        }
    }

    /// Every prompt, answered greedily by the base and by the adapter.
    fn answers(&self) -> Result<Vec<pb::PromptAnswer>, End> {
        let adapter = self.trainer.adapter();
        let prompts = self.prepared.job.eval.prompts.iter().zip(&self.prepared.prompts);
        prompts
            .map(|(prompt, tokens)| {
                Ok(pb::PromptAnswer {
                    prompt: prompt.clone(),
                    base: self.answer(tokens, None)?,
                    adapter: self.answer(tokens, Some(&adapter))?,
                })
            })
            .collect()
    }

    fn answer(&self, prompt: &[u32], adapter: Option<&Adapter>) -> Result<String, End> {
        self.run.check()?;
        let (base, tokenizer) = (&self.prepared.base, &self.prepared.files.tokenizer);
        let limit = self.prepared.job.eval.max_new_tokens as usize;
        let options = GenerateOptions::greedy(limit, tokenizer.stop_ids().to_vec());
        let failed = |error: String| End::Failed(format!("answering spec.eval.prompts: {error}"));
        let tokens = generate(base, adapter, prompt, &options).map_err(|error| failed(error.to_string()))?;
        tokenizer.decode(&tokens).map_err(|error| failed(error.to_string()))
    }
}

fn with_evaluations(
    result: pb::JobResult,
    before: Option<Evaluation>,
    after: Option<Evaluation>,
) -> pb::JobResult {
    let loss = |evaluation: &Option<Evaluation>| evaluation.as_ref().and_then(|e| e.sums.mean_loss());
    pb::JobResult {
        eval_loss_before: loss(&before),
        eval_loss_after: loss(&after),
        eval_tokens: after.as_ref().map_or(0, |evaluation| evaluation.sums.labelled_tokens as u64),
        scores_before: before.map_or(Vec::new(), |evaluation| evaluation.scores),
        scores_after: after.map_or(Vec::new(), |evaluation| evaluation.scores),
        ..result
    }
}
