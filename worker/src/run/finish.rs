//! After the last step: the final evaluation is made, prompts are answered, the final checkpoint is written.

use std::time::{Duration, Instant};

use lorafleet_lora::{
    adapter::{Adapter, WEIGHTS_FILE},
    generate::{GenerateOptions, generate},
    train::MODEL_FILE,
};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::job::Method;
use lorafleet_store::Checkpoint;
use prost::Message as _;

use super::{
    end::{End, Halt},
    evaluate::Evaluation,
    generation::{Course, Training},
};

/// How long one member tries to write the result before the next one does.
const ROUND: Duration = Duration::from_secs(60);
/// Between a round that failed at once and the next.
const PAUSE: Duration = Duration::from_secs(5);

/// What the writer of a round tells the others.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    /// The result, once it is whole in the store.
    #[prost(message, optional, tag = "1")]
    succeeded: Option<pb::Succeeded>,
    /// Why it is not.
    #[prost(string, tag = "2")]
    why: String,
}

impl Training<'_, '_> {
    /// The job's result: made by one member after the other until one has written it, told to all, so that any of them
    /// can report it.
    pub fn finish(&mut self) -> Result<Course, Halt> {
        let last = self.member.trainer.step();
        // They are adopted when the last step is recorded; this only says of which step they are.
        let of_step = self.member.trainer.adopt_best();
        if of_step < last {
            let message = format!("the result is that of step {of_step}, whose evaluation was the best");
            self.member.tell("best", "best", &message);
        }
        let after = match &self.member.evaluated {
            Some((step, evaluation)) if *step == of_step => Some(evaluation.clone()),
            // It is another step's; or a checkpoint of the last step was taken over, and no step was left to do. It is not
            // kept: who has it, and who has not, must not differ in the next generation.
            _ => self.evaluate()?,
        };
        let mut answers = None;
        for round in 0u32.. {
            if round > 0
                && let Some(course) = self.between_rounds()?
            {
                return Ok(course);
            }
            let writer = round % self.collective.world_size();
            let mut bytes = Vec::new();
            if self.collective.index() == writer {
                bytes = self.write_result(of_step, after.as_ref(), &mut answers)?.encode_to_vec();
            }
            self.collective.broadcast(writer, &mut bytes)?;
            let told = Told::decode(bytes.as_slice()).map_err(|error| {
                End::lost(format!("member {writer} told a result that cannot be read: {error}"))
            })?;
            if let Some(succeeded) = told.succeeded {
                return Ok(Course::Succeeded(Box::new(succeeded)));
            }
            let message = format!(
                "the end of the job waits for its result to be written; {} could not: {}",
                self.name(writer),
                told.why
            );
            let key = format!("checkpoint-waits/{}/{round}", self.generation.fence.generation);
            self.member.tell(&key, "checkpoint-waits", &message);
        }
        Err(End::lost("the result could not be written").into())
    }

    /// While the result waits for the store, members may come and go.
    fn between_rounds(&mut self) -> Result<Option<Course>, Halt> {
        let (me, members) = (self.collective.index() as usize, self.collective.world_size() as usize);
        let control = &self.member.run.control;
        let mut buffer = vec![0i64; 1 + members];
        buffer[1 + me] = control.is_leaving().into();
        buffer[0] = buffer[1 + me] | i64::from(control.is_regrouping());
        self.collective.all_reduce_i64(&mut buffer)?;
        let leaves = |member: usize| buffer[1 + member] > 0;
        Ok(match () {
            // The last ones stay until it is written, or the process is ended.
            () if buffer[0] == 0 || (0..members).all(leaves) => None,
            () if leaves(me) => Some(Course::Released { step: self.member.trainer.step() }),
            () => Some(Course::Parted),
        })
    }

    /// Tries to write the final checkpoint for one round.
    fn write_result(
        &mut self,
        of_step: u64,
        after: Option<&Evaluation>,
        answers: &mut Option<Vec<pb::PromptAnswer>>,
    ) -> Result<Told, Halt> {
        let answered = match answers.take() {
            Some(answered) => answered,
            None => self.answers()?,
        };
        let started = Instant::now();
        let state = self.member.trainer.freeze();
        // The others wait, and must not take the writer for stuck.
        let round = ROUND.min(self.member.run.workshop.tcp.read / 2);
        let checkpoint = match self.member.checkpoints.write_final(state, round) {
            Ok(checkpoint) => checkpoint,
            Err(End::Lost(why)) => {
                *answers = Some(answered);
                let pause = if started.elapsed() < PAUSE { PAUSE } else { Duration::ZERO };
                self.member.run.control.wait_end(pause, true);
                self.check()?;
                return Ok(Told { succeeded: None, why });
            }
            Err(end) => return Err(end.into()),
        };
        let about = self.result(&checkpoint);
        let result = pb::JobResult { best_step: of_step, answers: answered, ..about };
        let result = with_evaluations(result, self.member.before.clone(), after.cloned());
        let checkpoint = Some(checkpoint.to_proto());
        let succeeded = pb::Succeeded { checkpoint, result: Some(result), message: String::new() };
        Ok(Told { succeeded: Some(succeeded), why: String::new() })
    }

    /// What can be said without evaluations and answers.
    fn result(&self, checkpoint: &Checkpoint) -> pb::JobResult {
        let trainable_parameters = self.member.trainer.trainable_parameters() as u64;
        let full = self.member.parts.job.adapter.method == Method::Full;
        let wanted = if full { MODEL_FILE } else { WEIGHTS_FILE };
        let weights = checkpoint.manifest.files.iter().find(|(name, _)| name.as_str() == wanted);
        pb::JobResult {
            checkpoint: checkpoint.id().resource_name(&checkpoint.manifest.job),
            adapter_sha256: weights.map(|(_, file)| file.sha256.to_string()).unwrap_or_default(),
            trainable_parameters,
            total_parameters: self.member.parts.total_parameters,
            bytes_sent_per_step: self.member.bytes_per_step,
            data: Some(self.member.parts.train.summary.clone()),
            stopped_early: self.member.trainer.step() < self.member.parts.total_steps,
            ..Default::default()
        }
    }

    /// Every prompt, answered greedily by the base and by the adapter.
    fn answers(&self) -> Result<Vec<pb::PromptAnswer>, Halt> {
        let adapter = self.member.trainer.adapter();
        let prompts = self.member.parts.job.eval.prompts.iter().zip(&self.member.parts.prompts);
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

    fn answer(&self, prompt: &[u32], adapter: Option<&Adapter>) -> Result<String, Halt> {
        self.check()?;
        let (base, tokenizer) = (&self.member.parts.base, &self.member.parts.files.tokenizer);
        let limit = self.member.parts.job.eval.max_new_tokens as usize;
        let options = GenerateOptions::greedy(limit, tokenizer.stop_ids().to_vec());
        let failed = |error: String| End::Failed(format!("answering spec.eval.prompts: {error}"));
        let tokens = generate(base, adapter, prompt, &options).map_err(|error| failed(error.to_string()))?;
        Ok(tokenizer.decode(&tokens).map_err(|error| failed(error.to_string()))?)
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
