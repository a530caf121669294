//! The training loop: one step after the other, each the same work whoever shares it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use lorafleet_lora::{
    exact::ReduceBuffer,
    train::{StepReport, Trainer},
};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{data::Example, sampler};
use tracing::{debug, info};

use super::{
    Run,
    checkpoints::Checkpoints,
    end::End,
    evaluate::Evaluation,
    prepare::{Data, Parts, Prepared},
};
use crate::{collective::Collective, telemetry};

/// Members compare a hash of their state in every so many-th step.
const HASH_EVERY: u64 = 50;
/// Speed is the mean over so many steps.
const SPEED_STEPS: usize = 20;

/// The words of the reduced buffer that members exchange with the gradients.
#[derive(Clone, Copy)]
pub(super) struct ControlWords {
    world_size: usize,
}

impl ControlWords {
    pub fn new(world_size: u32) -> Self {
        Self { world_size: world_size as usize }
    }

    pub fn count(self) -> usize {
        1 + 2 * self.world_size
    }

    /// Members that want to leave after this step.
    fn leave(self) -> usize {
        0
    }

    /// 1 when that member could not compute its share.
    fn failed(self, member: usize) -> usize {
        1 + member
    }

    /// That member's state hash, on steps that compare.
    fn hash(self, member: usize) -> usize {
        1 + self.world_size + member
    }
}

/// A member of a gang that trains.
pub(super) struct Training<'a> {
    pub run: &'a Run,
    pub prepared: Parts,
    pub trainer: Trainer,
    pub collective: &'a mut dyn Collective,
    pub checkpoints: Checkpoints<'a>,
    sampler: sampler::Sampler,
    words: ControlWords,
    speed: Speed,
    /// Payload bytes of the last step's all-reduce.
    pub bytes_per_step: u64,
    /// The latest evaluation, and after which step it was made.
    pub evaluated: Option<(u64, Evaluation)>,
}

impl<'a> Training<'a> {
    /// At step 0, with the job's initial adapter.
    pub fn new(run: &'a Run, prepared: Prepared, collective: &'a mut dyn Collective) -> Result<Self, End> {
        let Prepared { parts, trainer } = prepared;
        let too_many = || End::Failed("data.train has more examples than a sampler can name".into());
        let examples = u32::try_from(parts.train.examples.len()).map_err(|_| too_many())?;
        let train = &parts.job.train;
        let digest = parts.train.digest.to_string();
        let sampler = sampler::Sampler::new(&digest, train.seed, examples, train.global_batch);
        let words = ControlWords::new(parts.job.workers.max);
        let checkpoints = Checkpoints::new(run, &parts)?;
        let speed = Speed::default();
        Ok(Self {
            run,
            prepared: parts,
            trainer,
            collective,
            checkpoints,
            sampler,
            words,
            speed,
            bytes_per_step: 0,
            evaluated: None,
        })
    }

    /// Steps until the last one is done.
    pub fn run_steps(&mut self) -> Result<(), End> {
        self.run.control.set_step(self.trainer.step());
        while !self.is_over() {
            self.run.check()?;
            let leaving = self.step()?;
            // The result is a checkpoint of its own.
            if self.is_over() {
                break;
            }
            if leaving {
                return Err(self.release());
            }
            self.checkpoint();
        }
        Ok(())
    }

    /// Whether the last step is done, or evaluations have not got better for too long. Every member says the same.
    fn is_over(&self) -> bool {
        self.trainer.step() >= self.prepared.total_steps || self.trainer.is_exhausted()
    }

    /// Begins to write a checkpoint where one is due: by the steps, or since the evaluation was the best so far.
    fn checkpoint(&mut self) {
        let (step, rule) = (self.trainer.step(), self.prepared.job.checkpoint);
        let best = rule.best && self.trainer.best().is_some_and(|best| best.step == step);
        let due = rule.every > 0 && step.is_multiple_of(rule.every);
        if (due || best) && self.collective.index() == 0 {
            self.checkpoints.begin(self.trainer.freeze(), best);
        }
    }

    /// Leaves at this boundary, as the whole gang does; index 0 sees to it that a checkpoint holds it.
    pub fn release(&mut self) -> End {
        let step = self.trainer.step();
        if self.collective.index() == 0 && step > 0 {
            self.checkpoints.write_last(self.trainer.freeze());
        }
        End::Released { step }
    }

    /// One step: my micro-batches, the exchange, the update, the report. True when the gang leaves after it.
    fn step(&mut self) -> Result<bool, End> {
        let started = Instant::now();
        let step = self.trainer.step() + 1;
        let failure = self.compute(step)?;
        self.set_words(step, failure.is_some());

        let reducing = Instant::now();
        let before = self.collective.bytes_sent();
        match self.trainer.reduce_buffer() {
            ReduceBuffer::Exact(buffer) => self.collective.all_reduce_i64(buffer)?,
            ReduceBuffer::F32(buffer) => self.collective.all_reduce_f32(buffer)?,
        }
        let reduce = reducing.elapsed();
        self.bytes_per_step = self.collective.bytes_sent() - before;

        self.check_failures(failure)?;
        self.check_hashes(step)?;
        let leaving = self.trainer.control(self.words.leave()) > 0;
        let report = self.trainer.finish_step()?;
        self.run.control.set_step(step);
        self.report(&report, started.elapsed(), reduce)?;
        Ok(leaving)
    }

    /// Adds up my share of the step; what went wrong in it is the job's fault, and every member's business.
    fn compute(&mut self, step: u64) -> Result<Option<String>, End> {
        let places = self.sampler.step(step);
        let Data { examples, .. } = &self.prepared.train;
        let chosen: Vec<&Example> = places.iter().map(|&place| &examples[place as usize]).collect();
        let train = &self.prepared.job.train;
        let micro_tokens = train.micro_tokens.map(|tokens| tokens as usize);
        let lengths: Vec<usize> = chosen.iter().map(|example| example.tokens.len()).collect();
        let batches = sampler::cut(&lengths, train.micro_batches as usize, micro_tokens);
        let (index, world_size) = (self.collective.index() as usize, self.collective.world_size() as usize);
        let mut tokens = 0;
        for mine in sampler::share(batches.len(), index, world_size) {
            self.run.check()?;
            let places = &batches[mine];
            let batch: Vec<&Example> = places.iter().map(|&place| chosen[place]).collect();
            if let Err(error) = self.trainer.micro_batch_at(&batch, places) {
                self.trainer.abandon_step();
                return Ok(Some(error.to_string()));
            }
            tokens += batch.iter().map(|example| example.tokens.len() as u64).sum::<u64>();
        }
        metrics::counter!(telemetry::TOKENS).increment(tokens);
        Ok(None)
    }

    fn set_words(&mut self, step: u64, failed: bool) {
        let (words, me) = (self.words, self.collective.index() as usize);
        self.trainer.set_control(words.leave(), self.run.control.is_leaving().into());
        self.trainer.set_control(words.failed(me), failed.into());
        if compares(step) {
            let hash = self.trainer.state_hash();
            self.trainer.set_control(words.hash(me), hash);
        }
    }

    /// A member that failed tells the others why, so that all say the same, and the job fails once and for all.
    fn check_failures(&mut self, mine: Option<String>) -> Result<(), End> {
        let failed = |&member: &u32| self.trainer.control(self.words.failed(member as usize)) > 0;
        let Some(member) = (0..self.collective.world_size()).find(failed) else { return Ok(()) };
        let mut message = mine.unwrap_or_default().into_bytes();
        self.collective.broadcast(member, &mut message)?;
        Err(End::Failed(String::from_utf8_lossy(&message).into_owned()))
    }

    fn check_hashes(&self, step: u64) -> Result<(), End> {
        if !compares(step) {
            return Ok(());
        }
        let members = 0..self.collective.world_size() as usize;
        let hashes: Vec<u64> = members.map(|member| self.trainer.control(self.words.hash(member))).collect();
        let Some(others) = outliers(&hashes) else { return Ok(()) };
        Err(End::Failed(format!(
            "before step {step} the members hold different states: {others}; their hashes are {hashes:06x?}. The \
             workers are of different kinds, or one of them computes wrongly (memory?): run the job on one kind, and \
             test the machine that is named"
        )))
    }

    /// Makes the step's point, with an evaluation where one is due.
    fn report(&mut self, report: &StepReport, seconds: Duration, reduce: Duration) -> Result<(), End> {
        let step = report.step;
        metrics::counter!(telemetry::STEPS).increment(1);
        metrics::histogram!(telemetry::STEP_SECONDS).record(seconds);
        metrics::histogram!(telemetry::ALL_REDUCE_SECONDS).record(reduce);
        metrics::counter!(telemetry::ALL_REDUCE_BYTES).increment(self.bytes_per_step);
        self.speed.add(report.tokens, seconds);
        let every = self.prepared.job.eval.every;
        let total = self.prepared.total_steps;
        // The one after the last step is made with the result.
        let due = every > 0 && step.is_multiple_of(every) || step == total;
        let evaluation = if due { self.evaluate()? } else { None };
        if let Some(evaluation) = &evaluation {
            self.evaluated = Some((step, evaluation.clone()));
            self.report_evaluation(step, evaluation);
            self.judge(evaluation.figure(self.prepared.job.eval.metric));
        }
        debug!(step, loss = report.loss, lr = report.lr, tokens = report.tokens, ?seconds, ?reduce, "step");
        if step.is_multiple_of(HASH_EVERY) || step == total {
            let tokens_per_second = self.speed.tokens_per_second().round();
            info!(step, total, loss = report.loss, tokens_per_second, "training");
        }
        let fence = self.run.fence();
        self.run.reporter.point(pb::MetricPoint {
            step,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            tokens: report.tokens,
            tokens_per_second: self.speed.tokens_per_second(),
            step_seconds: seconds.as_secs_f64(),
            reduce_seconds: reduce.as_secs_f64(),
            bytes_sent: self.bytes_per_step,
            seconds_left: self.speed.seconds_per_step() * (total - step) as f64,
            eval_loss: evaluation.as_ref().and_then(|evaluation| evaluation.sums.mean_loss()),
            attempt: fence.attempt,
            generation: fence.generation,
            eval_scores: evaluation.map_or(Vec::new(), |evaluation| evaluation.scores),
        });
        Ok(())
    }

    /// Takes note of an evaluation; the last one that the job's patience allows is told about.
    fn judge(&mut self, figure: f64) {
        self.trainer.judge(figure);
        let (step, total) = (self.trainer.step(), self.prepared.total_steps);
        if !self.trainer.is_exhausted() || step >= total {
            return;
        }
        let eval = &self.prepared.job.eval;
        let best = self.trainer.best().map_or("never defined".to_owned(), |best| {
            format!("best at step {}, with {:.4}", best.step, best.figure)
        });
        let message = format!(
            "training ends after step {step} of {total}: the evaluation's {} was {best}, and has not got better in {} \
             evaluations (eval.patience)",
            eval.metric.name(),
            eval.patience
        );
        self.tell("stopped-early", &message);
    }
}

/// Whether members compare their states in this step.
fn compares(step: u64) -> bool {
    step.is_multiple_of(HASH_EVERY)
}

/// Who differs from the most common hash; nobody when all agree.
fn outliers(hashes: &[u64]) -> Option<String> {
    let count = |hash: u64| hashes.iter().filter(|&&other| other == hash).count();
    let most = hashes.iter().map(|&hash| count(hash)).max()?;
    if most == hashes.len() {
        return None;
    }
    let mut common: Vec<u64> = hashes.iter().copied().filter(|&hash| count(hash) == most).collect();
    common.sort_unstable();
    common.dedup();
    let [majority] = common.as_slice() else {
        return Some("no majority tells which one is right".to_owned());
    };
    let others = hashes.iter().enumerate().filter(|(_, hash)| *hash != majority);
    let others: Vec<String> = others.map(|(member, _)| format!("member {member}")).collect();
    Some(format!("{} differs from the others", others.join(" and ")))
}

/// Mean speed over the last steps.
#[derive(Default)]
struct Speed(VecDeque<(u64, f64)>);

impl Speed {
    fn add(&mut self, tokens: u64, seconds: Duration) {
        if self.0.len() == SPEED_STEPS {
            self.0.pop_front();
        }
        self.0.push_back((tokens, seconds.as_secs_f64()));
    }

    fn seconds(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }

    fn tokens_per_second(&self) -> f64 {
        let tokens: u64 = self.0.iter().map(|(tokens, _)| tokens).sum();
        tokens as f64 / self.seconds().max(1e-9)
    }

    fn seconds_per_step(&self) -> f64 {
        self.seconds() / self.0.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_differs_is_named() {
        assert_eq!(outliers(&[7]), None);
        assert_eq!(outliers(&[7, 7, 7]), None);
        assert_eq!(outliers(&[7, 8, 7]).unwrap(), "member 1 differs from the others");
        assert!(outliers(&[7, 8]).unwrap().contains("no majority"));
        assert!(outliers(&[7, 7, 8, 8]).unwrap().contains("no majority"));
    }

    #[test]
    fn words_do_not_overlap() {
        let words = ControlWords::new(3);
        let mut all = vec![words.leave()];
        all.extend((0..3).flat_map(|member| [words.failed(member), words.hash(member)]));
        all.sort_unstable();
        assert_eq!(all, (0..words.count()).collect::<Vec<_>>());
    }

    #[test]
    fn speed_is_the_mean_of_the_last_steps() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds_per_step(), 0.0);
        speed.add(1_000_000, Duration::from_secs(1));
        (0..SPEED_STEPS).for_each(|_| speed.add(100, Duration::from_secs(2)));
        assert_eq!((speed.tokens_per_second(), speed.seconds_per_step()), (50.0, 2.0));
    }
}
