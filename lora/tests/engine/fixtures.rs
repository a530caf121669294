//! What the engine's tests share: the example base and data, jobs, and a gang simulated in one process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lorafleet_lora::{Base, ReduceBuffer, StepReport, Trainer};
use lorafleet_spec::base::Head;
use lorafleet_spec::data::{Dataset, Example, Tokenizer};
use lorafleet_spec::job::{Job, Precision, fill_defaults, parse_yaml};
use lorafleet_spec::sampler::{Sampler, cut, share};

/// A file or folder of the workspace.
pub fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The example base, loaded once.
pub fn base() -> Arc<Base> {
    static BASE: OnceLock<Arc<Base>> = OnceLock::new();
    BASE.get_or_init(|| Arc::new(Base::load(&workspace("examples/base")).unwrap())).clone()
}

/// The example base in bf16, loaded once.
pub fn base_in_bf16() -> Arc<Base> {
    static BASE: OnceLock<Arc<Base>> = OnceLock::new();
    let load = || Base::load_as(&workspace("examples/base"), Head::LanguageModel, Precision::Bf16).unwrap();
    BASE.get_or_init(|| Arc::new(load())).clone()
}

/// The examples in the first `lines` lines of one of the example's data sets, cut at `max_length` tokens.
pub fn examples(file: &str, lines: usize, max_length: usize) -> Vec<Example> {
    let tokenizer = Tokenizer::load(&workspace("examples/base")).unwrap();
    let text = std::fs::read_to_string(workspace("examples/games").join(file)).unwrap();
    let text: String = text.split_inclusive('\n').take(lines).collect();
    Dataset::read(text.as_bytes(), &tokenizer, max_length, 512).unwrap().examples
}

/// A valid job with these lines in its `train` section and every default elsewhere.
pub fn job(train: &str, adapter: &str) -> Job {
    let yaml = format!(
        "name: test\nbase: ./base\ndata: {{train: train.jsonl}}\nadapter: {{{adapter}}}\ntrain: {{{train}}}\nworkers: {{max: 3}}\n"
    );
    let mut spec = parse_yaml(&yaml).unwrap();
    fill_defaults(&mut spec);
    Job::try_from(&spec).unwrap()
}

/// The files of a checkpoint.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Members of a gang in one process: each a trainer of its own, their buffers summed as an all-reduce would.
pub struct Gang {
    pub members: Vec<Trainer>,
    sampler: Sampler,
    micro_batches: usize,
}

impl Gang {
    pub fn new(base: &Arc<Base>, job: &Job, examples: usize, total_steps: u64, world_size: usize) -> Self {
        let member = |_| Trainer::new(base.clone(), job, total_steps, 1).unwrap();
        Self {
            members: (0..world_size).map(member).collect(),
            sampler: Sampler::new("00", job.train.seed, examples as u32, job.train.global_batch),
            micro_batches: job.train.micro_batches as usize,
        }
    }

    pub fn step(&mut self, data: &[Example]) -> StepReport {
        let chosen = self.sampler.step(self.members[0].step() + 1);
        let step: Vec<&Example> = chosen.iter().map(|&i| &data[i as usize]).collect();
        let lengths: Vec<usize> = step.iter().map(|example| example.tokens.len()).collect();
        let batches = cut(&lengths, self.micro_batches, None);
        let world_size = self.members.len();
        for (index, member) in self.members.iter_mut().enumerate() {
            for batch in share(batches.len(), index, world_size) {
                let places = &batches[batch];
                let batch: Vec<&Example> = places.iter().map(|&place| step[place]).collect();
                member.micro_batch_at(&batch, places).unwrap();
            }
            member.set_control(0, index as u32 + 1);
        }
        self.all_reduce();
        let reports: Vec<StepReport> = self
            .members
            .iter_mut()
            .map(|member| {
                assert_eq!(member.control(0), (world_size * (world_size + 1) / 2) as u64);
                member.finish_step().unwrap()
            })
            .collect();
        assert!(reports.iter().all(|report| *report == reports[0]), "every member makes the same update");
        let hash = self.members[0].state_hash();
        assert!(
            self.members.iter().all(|member| member.state_hash() == hash),
            "every member holds the same state"
        );
        reports[0]
    }

    fn all_reduce(&mut self) {
        let mut exact: Vec<i64> = Vec::new();
        let mut floats: Vec<f32> = Vec::new();
        for member in &mut self.members {
            match member.reduce_buffer() {
                ReduceBuffer::Exact(values) => {
                    exact.resize(values.len(), 0);
                    exact.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
                }
                ReduceBuffer::F32(values) => {
                    floats.resize(values.len(), 0.0);
                    floats.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
                }
            }
        }
        for member in &mut self.members {
            match member.reduce_buffer() {
                ReduceBuffer::Exact(values) => values.copy_from_slice(&exact),
                ReduceBuffer::F32(values) => values.copy_from_slice(&floats),
            }
        }
    }

    pub fn files(&self) -> Files {
        self.members[0].snapshot().files
    }
}
