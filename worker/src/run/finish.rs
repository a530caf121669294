//! After the last step: the final evaluation is made, prompts are answered, the final checkpoint is written.

use lorafleet_lora::{
    adapter::{Adapter, WEIGHTS_FILE},
    generate::{GenerateOptions, generate},
    train::EvalSums,
};
use lorafleet_proto::v1 as pb;
use lorafleet_store::Checkpoint;
use prost::Message as _;

use super::{end::End, steps::Training};

impl Training<'_> {
    /// The job's result: made by index 0, told to all, so that any of them can report it.
    pub fn finish(&mut self, before: Option<EvalSums>) -> Result<pb::Succeeded, End> {
        let after = match self.evaluated {
            Some((step, sums)) if step == self.trainer.step() => Some(sums),
            // A checkpoint of the last step was taken over, and no step was left to do.
            _ => self.evaluate()?,
        };
        let mut bytes = Vec::new();
        if self.collective.index() == 0 {
            let answers = self.answers()?;
            let checkpoint = self.checkpoints.write_final(self.trainer.snapshot())?;
            let result = self.result(&checkpoint, before, after, answers);
            let succeeded = pb::Succeeded { checkpoint: Some(checkpoint.to_proto()), result: Some(result) };
            bytes = succeeded.encode_to_vec();
        }
        self.collective.broadcast(0, &mut bytes)?;
        pb::Succeeded::decode(bytes.as_slice())
            .map_err(|error| End::lost(format!("member 0 told a result that cannot be read: {error}")))
    }

    fn result(
        &self,
        checkpoint: &Checkpoint,
        before: Option<EvalSums>,
        after: Option<EvalSums>,
        answers: Vec<pb::PromptAnswer>,
    ) -> pb::JobResult {
        let trainable_parameters = self.trainer.trainable_parameters() as u64;
        let weights = checkpoint.manifest.files.iter().find(|(name, _)| name.as_str() == WEIGHTS_FILE);
        pb::JobResult {
            checkpoint: checkpoint.id().resource_name(&checkpoint.manifest.job),
            adapter_sha256: weights.map(|(_, file)| file.sha256.to_string()).unwrap_or_default(),
            trainable_parameters,
            total_parameters: self.prepared.base.shape().parameters() + trainable_parameters,
            eval_loss_before: before.and_then(|sums| sums.mean_loss()),
            eval_loss_after: after.and_then(|sums| sums.mean_loss()),
            eval_tokens: after.map_or(0, |sums| sums.labelled_tokens as u64),
            answers,
            bytes_sent_per_step: self.bytes_per_step,
            data: Some(self.prepared.train.summary.clone()),
            scores_before: Vec::new(),
            scores_after: Vec::new(),
            best_step: self.trainer.step(),
            stopped_early: false,
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
        let (base, tokenizer) = (&self.prepared.base, &self.prepared.tokenizer);
        let limit = self.prepared.job.eval.max_new_tokens as usize;
        let options = GenerateOptions::greedy(limit, tokenizer.stop_ids().to_vec());
        let failed = |error: String| End::Failed(format!("answering spec.eval.prompts: {error}"));
        let tokens = generate(base, adapter, prompt, &options).map_err(|error| failed(error.to_string()))?;
        tokenizer.decode(&tokens).map_err(|error| failed(error.to_string()))
    }
}
