//! What writing checkpoints beside training costs the steps, measured: as one JSON object.
//!
//! Checkpoints go by HTTP to [a server](sink) that takes so many bytes a second. A step's time is from one boundary to the
//! next, with whatever a checkpoint takes from the training thread.

mod sink;
mod usage;

use std::{
    fs::File,
    io::BufReader,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use lorafleet_lora::{Base, Trainer};
use lorafleet_spec::{
    base::Head,
    data::{Dataset, Example, Tokenizer},
    job::{Job, Precision, fill_defaults, parse_yaml},
    sampler::{Sampler, cut},
};
use lorafleet_store::{Digest, Draft, Fence, Store};
use lorafleet_worker::{
    background::Background,
    run::{Held, News, Waited, Work, Writing},
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use self::{
    sink::Sink,
    usage::{TRAINS, Usage},
};

/// Train with checkpoints and print what they cost.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the base.
    #[arg(long, default_value = "examples/base")]
    base: PathBuf,
    /// Chats to train on, JSON lines.
    #[arg(long, default_value = "examples/games/train.jsonl")]
    train: PathBuf,
    /// Be the server that checkpoints are sent to.
    #[arg(long)]
    sink: bool,
    /// Train every weight instead of an adapter of rank 16.
    #[arg(long)]
    full: bool,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Checkpoints that are measured.
    #[arg(long, default_value_t = 5)]
    checkpoints: u32,
    /// Steps before each checkpoint that none disturbs.
    #[arg(long, default_value_t = 20)]
    between: u32,
    /// Bytes a second that the server takes.
    #[arg(long, default_value_t = 100_000_000)]
    rate: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.sink {
        return sink::serve(args.rate);
    }
    let background = Background::start()?;
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("{TRAINS}{index}")).build()?;
    let report = pool.install(|| measure(&args, &background.handle()))?;
    println!("{report}");
    Ok(())
}

/// A trainer that goes from step to step over its data.
struct Training {
    trainer: Trainer,
    sampler: Sampler,
    examples: Vec<Example>,
    job: Job,
}

impl Training {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let base = Arc::new(Base::load_as(&args.base, Head::LanguageModel, Precision::F32)?);
        let tokenizer = Tokenizer::load(&args.base)?;
        let reader = BufReader::new(File::open(&args.train)?);
        let examples = Dataset::read(reader, &tokenizer, 256, base.shape().max_positions)?.examples;
        let adapter = if args.full { "{method: full}" } else { "{rank: 16, targets: all-linear}" };
        let lr = if args.full { 1e-5 } else { 1e-3 };
        let batch = args.batch;
        let mut spec = parse_yaml(&format!(
            "base: .\ndata: {{train: .}}\nadapter: {adapter}\nworkers: {{max: 1}}\n\
             train: {{steps: 1000000, global_batch: {batch}, max_length: 256, lr: {lr}, schedule: constant}}\n"
        ))
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        fill_defaults(&mut spec);
        let job = Job::try_from(&spec).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        let trainer = Trainer::new(base, &job, 1_000_000, 0)?;
        let sampler = Sampler::new("checkpoint-cost", 0, u32::try_from(examples.len())?, batch);
        Ok(Self { trainer, sampler, examples, job })
    }

    /// One step; the same examples each time, so that steps can be compared.
    fn step(&mut self) -> anyhow::Result<()> {
        let chosen: Vec<&Example> =
            self.sampler.step(1).iter().map(|&place| &self.examples[place as usize]).collect();
        let lengths: Vec<usize> = chosen.iter().map(|example| example.tokens.len()).collect();
        for places in cut(&lengths, self.job.train.micro_batches as usize, None) {
            let batch: Vec<&Example> = places.iter().map(|&place| chosen[place]).collect();
            self.trainer.micro_batch_at(&batch, &places)?;
        }
        self.trainer.finish_step()?;
        Ok(())
    }

    /// Seconds of one step.
    fn timed_step(&mut self) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.step()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Steps beside a checkpoint, to the end of that in which it became whole: their seconds; its size, and the seconds
    /// that it took.
    fn steps_beside(&mut self, store: &Store, runtime: &Handle) -> anyhow::Result<(Vec<f64>, (u64, f64))> {
        let mut start = Instant::now();
        let (told, news) = std::sync::mpsc::channel();
        let draft = draft(self)?;
        let work = Work {
            store: store.clone(),
            draft,
            held: Held::State(self.trainer.freeze().into()),
            more: [].into(),
        };
        let writing = Writing::start(work, runtime.clone(), move |news| {
            let size = |checkpoint: &lorafleet_store::Checkpoint| {
                checkpoint.manifest.files.values().map(|file| file.size_bytes).sum::<u64>()
            };
            drop(told.send(match news {
                News::Written(checkpoint, took) => Ok((size(checkpoint), took.as_secs_f64())),
                News::Waits(error) => Err(error.to_string()),
                News::Missed(why) => Err(why.to_owned()),
            }));
        })?;
        let mut steps = Vec::new();
        loop {
            self.step()?;
            // With what beginning to write took.
            let now = Instant::now();
            steps.push((now - std::mem::replace(&mut start, now)).as_secs_f64());
            if writing.wait(Duration::ZERO) == Waited::Done {
                return Ok((steps, news.recv()?.map_err(anyhow::Error::msg)?));
            }
        }
    }
}

fn measure(args: &Args, runtime: &Handle) -> anyhow::Result<Value> {
    let sink = Sink::start(args.rate)?;
    let (url, variables) = sink.store();
    let store = Store::open_with(&url, variables)?;
    let mut training = Training::new(args)?;
    training.trainer.make_room();
    for _ in 0..3 {
        training.step()?;
    }
    let mut found = Found::default();
    for _ in 0..args.checkpoints {
        let mut quiet = Vec::new();
        let start = Usage::of_training();
        for _ in 0..args.between {
            quiet.push(training.timed_step()?);
        }
        let alone = Usage::of_training() - start;
        let start = Moment::now(&sink);
        let (disturbed, (size, seconds)) = training.steps_beside(&store, runtime)?;
        let spent = start.until_now(&sink);
        found.bytes = size;
        found.uploads.push(seconds);
        found.excess.push(disturbed.iter().map(|seconds| seconds - median(&quiet)).sum());
        let steps = disturbed.len() as f64;
        found.training.push(spent.training.seconds - steps * alone.seconds / quiet.len().max(1) as f64);
        found.faults.push(spent.training.faults);
        found.upload.push(spent.rest.seconds);
        found.server.push(spent.server.seconds);
        found.alone.extend(quiet);
        found.beside.extend(disturbed);
    }
    Ok(found.report())
}

/// Processor time up to a moment.
struct Moment {
    training: Usage,
    whole: Usage,
    server: Usage,
}

/// Processor time between two moments.
struct Spent {
    training: Usage,
    /// Of this process's other threads: all that write the checkpoint.
    rest: Usage,
    server: Usage,
}

impl Moment {
    fn now(sink: &Sink) -> Self {
        Self {
            training: Usage::of_training(),
            whole: Usage::of_process(std::process::id()),
            server: Usage::of_process(sink.id()),
        }
    }

    fn until_now(&self, sink: &Sink) -> Spent {
        let now = Self::now(sink);
        let (training, whole) = (now.training - self.training, now.whole - self.whole);
        Spent { training, rest: whole - training, server: now.server - self.server }
    }
}

/// What was measured; of each checkpoint, or of each step.
#[derive(Default)]
struct Found {
    bytes: u64,
    /// Seconds of steps without and with a checkpoint on its way.
    alone: Vec<f64>,
    beside: Vec<f64>,
    /// Seconds that the steps beside a checkpoint took longer, together.
    excess: Vec<f64>,
    uploads: Vec<f64>,
    /// Processor seconds that the training threads spent on them beyond their usual steps.
    training: Vec<f64>,
    /// Pages that the training threads touched for the first time.
    faults: Vec<f64>,
    /// Processor seconds of the threads that wrote it.
    upload: Vec<f64>,
    /// Those of the server.
    server: Vec<f64>,
}

impl Found {
    fn report(&self) -> Value {
        let slowest = |steps: &[f64]| steps.iter().copied().fold(0.0, f64::max);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let usual = median(&self.alone);
        json!({
            "bytes": self.bytes,
            "step_s": usual,
            "step_beside_s": median(&self.beside),
            "slowest_alone": slowest(&self.alone) / usual,
            "slowest_beside": slowest(&self.beside) / usual,
            "steps_beside": self.beside.len(),
            "upload_s": median(&self.uploads),
            "excess_s": mean(&self.excess),
            "training_cpu_s": mean(&self.training),
            "training_faults": mean(&self.faults),
            "upload_cpu_s": mean(&self.upload),
            "server_cpu_s": mean(&self.server),
            "peak_bytes": peak_bytes(),
        })
    }
}

fn draft(training: &Training) -> anyhow::Result<Draft> {
    Ok(Draft {
        job: "checkpoint-cost".parse()?,
        step: training.trainer.step(),
        fence: Fence { attempt: 1, generation: 1, generation_id: "00000000000000ff".into() },
        parent: None,
        is_final: false,
        spec_sha256: Digest::of(b"checkpoint cost"),
        kind: "bench".into(),
        scale_bits: 0,
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The largest resident set so far, in bytes, where the system tells (Linux).
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
