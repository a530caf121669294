//! The training loop: one step after the other, each the same work whoever shares it.

use std::time::{Duration, Instant};

use lorafleet_failpoint::{defect, reach};
use lorafleet_lora::{exact::ReduceBuffer, train::StepReport};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{data::Example, sampler};
use tracing::{debug, info};

use super::{
    end::{End, Halt},
    exchange::{different, outliers},
    generation::{Course, Training},
    member::Holds,
    pace::Straggler,
    words::Told,
};
use crate::telemetry;

/// Members compare a hash of their state in every so many-th step.
const HASH_EVERY: u64 = 50;

/// What one member did for a step.
struct Share {
    /// Tokens of its micro-batches.
    tokens: u64,
    /// What went wrong in it.
    failure: Option<String>,
}

impl Training<'_, '_> {
    /// Steps until the last one is done, or the generation ends at a boundary.
    pub fn run_steps(&mut self) -> Result<Option<Course>, Halt> {
        let mut first = true;
        while !self.member.is_over() {
            self.check()?;
            let told = self.step(first)?;
            first = false;
            self.record()?;
            if self.member.is_over() {
                break;
            }
            if told.leavers.len() == self.generation.members.len() {
                return self.release().map(Some);
            }
            self.checkpoint();
            if told.part {
                return Ok(Some(self.part(&told)));
            }
        }
        Ok(None)
    }

    /// The whole gang leaves at this boundary; index 0 sees to it that a checkpoint holds it. The others wait for that:
    /// should index 0 die over it, they still have the state.
    fn release(&mut self) -> Result<Course, Halt> {
        let step = self.member.trainer.step();
        if self.collective.index() == 0 {
            self.member.checkpoints.write_last(self.member.trainer.freeze());
        }
        self.collective.all_reduce_i64(&mut [0])?;
        Ok(Course::Released { step })
    }

    /// The generation ends at this boundary; some may give their places back.
    fn part(&mut self, told: &Told) -> Course {
        if !told.leavers.contains(&self.collective.index()) {
            return Course::Parted;
        }
        self.member.checkpoints.settle();
        Course::Released { step: self.member.trainer.step() }
    }

    /// One step: my micro-batches, the exchange, the update. Returns what the members told each other.
    fn step(&mut self, first: bool) -> Result<Told, Halt> {
        let started = Instant::now();
        let step = self.member.trainer.step() + 1;
        let Share { tokens, failure } = self.compute(step, first)?;
        self.member.own_speed.add(tokens, started.elapsed());
        self.set_words(step, failure.is_some());

        let reducing = Instant::now();
        let before = self.collective.bytes_sent();
        match self.member.trainer.reduce_buffer() {
            ReduceBuffer::Exact(buffer) => self.collective.all_reduce_i64(buffer)?,
            ReduceBuffer::F32(buffer) => self.collective.all_reduce_f32(buffer)?,
        }
        let reduce = reducing.elapsed();
        self.member.bytes_per_step = self.collective.bytes_sent() - before;
        reach("between-reduction-and-update", step)?;

        let told = self.member.words.read(&self.member.trainer, self.generation.members.len());
        self.check_failures(&told, failure)?;
        check_hashes(step, &told)?;
        let report = self.member.trainer.finish_step()?;
        self.member.run.control.set_step(step);
        debug!(generation = self.generation.fence.generation, step, "step finished");
        self.member.holds = Holds::Unrecorded(Box::new(self.point(&report, started.elapsed(), reduce)));
        for straggler in self.pace.take(&told.speeds) {
            self.tell_straggler(step, straggler);
        }
        metrics::gauge!(telemetry::STRAGGLERS).set(self.pace.stragglers() as f64);
        Ok(told)
    }

    /// Adds up my share of the step; what went wrong in it is the job's fault, and every member's business.
    fn compute(&mut self, step: u64, first: bool) -> Result<Share, Halt> {
        let places = self.member.sampler.step(step);
        let examples = &self.member.parts.train.examples;
        let chosen: Vec<&Example> = places.iter().map(|&place| &examples[place as usize]).collect();
        let train = &self.member.parts.job.train;
        let micro_tokens = train.micro_tokens.map(|tokens| tokens as usize);
        let lengths: Vec<usize> = chosen.iter().map(|example| example.tokens.len()).collect();
        let batches = sampler::cut(&lengths, train.micro_batches as usize, micro_tokens);
        let cost = |batch: &Vec<usize>| batch.iter().map(|&place| lengths[place] as u64).sum::<u64>();
        let costs: Vec<u64> = batches.iter().map(cost).collect();
        let index = self.collective.index() as usize;
        let mut mine = sampler::share_by_speed(&costs, self.pace.speeds(), index);
        if first && self.generation.fence.generation > 1 && defect("deal-twice") {
            mine.extend(mine.first().copied());
        }
        let mut tokens = 0;
        for mine in mine {
            self.check()?;
            let places = &batches[mine];
            let batch: Vec<&Example> = places.iter().map(|&place| chosen[place]).collect();
            if let Err(error) = self.member.trainer.micro_batch_at(&batch, places) {
                self.member.trainer.abandon_step();
                return Ok(Share { tokens, failure: Some(error.to_string()) });
            }
            tokens += costs[mine];
        }
        metrics::counter!(telemetry::TOKENS).increment(tokens);
        Ok(Share { tokens, failure: None })
    }

    fn set_words(&mut self, step: u64, failed: bool) {
        let me = self.collective.index() as usize;
        let member = &mut *self.member;
        let (words, control) = (member.words, &member.run.control);
        let leaves = control.is_leaving();
        let trainer = &mut member.trainer;
        trainer.set_control(words.part(), (leaves || control.is_regrouping()).into());
        trainer.set_control(words.leave(me), leaves.into());
        trainer.set_control(words.failed(me), failed.into());
        trainer.set_control(words.speed(me), member.own_speed.word());
        if compares(step) {
            let hash = trainer.state_hash();
            trainer.set_control(words.hash(me), hash);
        }
    }

    /// A member that failed tells the others why, so that all say the same, and the job fails once and for all.
    fn check_failures(&mut self, told: &Told, mine: Option<String>) -> Result<(), Halt> {
        let Some(&member) = told.failed.first() else { return Ok(()) };
        let mut message = mine.unwrap_or_default().into_bytes();
        self.collective.broadcast(member, &mut message)?;
        Err(End::Failed(String::from_utf8_lossy(&message).into_owned()).into())
    }

    /// The step's point; the evaluation comes with its record.
    fn point(&mut self, report: &StepReport, took: Duration, reduce: Duration) -> pb::MetricPoint {
        let step = report.step;
        metrics::counter!(telemetry::STEPS).increment(1);
        metrics::histogram!(telemetry::STEP_SECONDS).record(took);
        metrics::histogram!(telemetry::ALL_REDUCE_SECONDS).record(reduce);
        metrics::counter!(telemetry::ALL_REDUCE_BYTES).increment(self.member.bytes_per_step);
        self.warn_of_long_steps(step, took);
        let member = &mut *self.member;
        member.speed.add(report.tokens, took);
        let total = member.parts.total_steps;
        let tokens_per_second = member.speed.tokens_per_second();
        debug!(step, loss = report.loss, lr = report.lr, tokens = report.tokens, ?took, ?reduce, "step");
        if step.is_multiple_of(HASH_EVERY) || step == total {
            info!(step, total, loss = report.loss, tokens_per_second = tokens_per_second.round(), "training");
        }
        pb::MetricPoint {
            step,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            tokens: report.tokens,
            tokens_per_second,
            step_seconds: took.as_secs_f64(),
            reduce_seconds: reduce.as_secs_f64(),
            bytes_sent: member.bytes_per_step,
            seconds_left: member.speed.seconds_per_step() * (total - step) as f64,
            attempt: self.generation.fence.attempt,
            generation: self.generation.fence.generation,
            ..Default::default()
        }
    }

    fn tell_straggler(&self, step: u64, straggler: Straggler) {
        let Straggler { member, factor } = straggler;
        let name = self.name(member);
        let message = format!(
            "{name} computes {factor:.1} times slower than the gang's median: it is dealt less, and a step still waits for \
             it. Look at what else runs there"
        );
        info!(step, worker = name, factor, "straggler");
        self.member.tell(&format!("straggler/{name}/{step}"), "straggler", &message);
    }

    /// A member whose step takes longer than the limit is taken for stuck, and put out.
    fn warn_of_long_steps(&mut self, step: u64, took: Duration) {
        let limit = self.member.run.workshop.tcp.read;
        if self.member.warned || took * 2 < limit {
            return;
        }
        self.member.warned = true;
        let message = format!(
            "step {step} took {:.0} s, more than half of the worker's --step-limit of {} s: raise it, or members that \
             compute are taken for stuck",
            took.as_secs_f64(),
            limit.as_secs()
        );
        self.member.run.reporter.own_event("long-step", &message);
    }
}

fn check_hashes(step: u64, told: &Told) -> Result<(), End> {
    if !compares(step) {
        return Ok(());
    }
    match outliers(&told.hashes) {
        Some(others) => {
            Err(different(&format!("before step {step}"), &others, &format!("{:06x?}", told.hashes)))
        }
        None => Ok(()),
    }
}

/// Whether members compare their states in this step.
fn compares(step: u64) -> bool {
    step.is_multiple_of(HASH_EVERY)
}
