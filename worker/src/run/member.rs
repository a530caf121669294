//! What a member holds through all generations of its place: base and data, the whole state, and what goes with it.

use lorafleet_lora::{exact::SCALE_BITS, train::Trainer};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{job::Reduce, sampler::Sampler};

use super::{
    Run,
    checkpoints::{Checkpoints, Of},
    companions,
    end::End,
    evaluate::Evaluation,
    pace::OwnSpeed,
    prepare::{Parts, Prepared},
    speed::Speed,
    words::ControlWords,
};

/// A member, whichever generation it is in, and between two.
pub(super) struct Member<'a> {
    pub run: &'a Run,
    pub parts: Parts,
    pub trainer: Trainer,
    pub holds: Holds,
    /// The evaluation with the initial weights.
    pub before: Option<Evaluation>,
    /// The latest evaluation, and after which step it was made.
    pub evaluated: Option<(u64, Evaluation)>,
    pub checkpoints: Checkpoints<'a>,
    /// The last step whose checkpoint was begun or read here.
    pub checkpointed: u64,
    pub sampler: Sampler,
    pub words: ControlWords,
    pub speed: Speed,
    pub own_speed: OwnSpeed,
    /// Payload bytes of the last step's all-reduce.
    pub bytes_per_step: u64,
    /// A step was warned of because it took long.
    pub warned: bool,
}

/// How much of a state a member holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Holds {
    /// None: it has just loaded.
    Nothing,
    /// A whole one, whose last step has no record yet: the evaluation that is due, its verdict, its point.
    Unrecorded(Box<pb::MetricPoint>),
    /// A whole one, and all that belongs to its last step is done.
    Recorded,
}

impl<'a> Member<'a> {
    /// At step 0, with the job's initial adapter.
    pub fn new(run: &'a Run, prepared: Prepared) -> Result<Self, End> {
        let Prepared { parts, trainer } = prepared;
        let too_many = || End::Failed("data.train has more examples than a sampler can name".into());
        let examples = u32::try_from(parts.train.examples.len()).map_err(|_| too_many())?;
        let train = &parts.job.train;
        let digest = parts.train.digest.to_string();
        let sampler = Sampler::new(&digest, train.seed, examples, train.global_batch);
        let words = ControlWords::new(parts.job.workers.max);
        let scale_bits = if train.reduce == Reduce::Exact { SCALE_BITS } else { 0 };
        let of = Of { spec_sha256: parts.spec_sha256, scale_bits, more: companions::files(&parts)? };
        let checkpoints = Checkpoints::new(run, of)?;
        Ok(Self {
            run,
            parts,
            trainer,
            holds: Holds::Nothing,
            before: None,
            evaluated: None,
            checkpoints,
            checkpointed: 0,
            sampler,
            words,
            speed: Speed::default(),
            own_speed: OwnSpeed::default(),
            bytes_per_step: 0,
            warned: false,
        })
    }

    /// How far it is: 0 without a state, else one more than twice its step, and one more once the step is recorded.
    pub fn position(&self) -> u64 {
        match self.holds {
            Holds::Nothing => 0,
            Holds::Unrecorded(_) => 1 + 2 * self.trainer.step(),
            Holds::Recorded => 2 + 2 * self.trainer.step(),
        }
    }

    /// Whether the last step is done, or evaluations have not got better for too long. Every member that is as far says
    /// the same.
    pub fn is_over(&self) -> bool {
        self.trainer.step() >= self.parts.total_steps || self.trainer.is_exhausted()
    }

    /// An event that the gang has once: every member that is as far reports it.
    pub fn tell(&self, key: &str, kind: &str, message: &str) {
        self.run.reporter.event(key, kind, message);
    }
}
