//! One fine-tuning run, measured: speed, memory, operations, and loss before and after, as one JSON object.
//!
//! The flags and fields are those of common PEFT training scripts, so that the two can be set side by side. Speed is
//! that of the second half of the steps; tokens are real tokens, there is no padding.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use lorafleet_lora::{Base, EvalSums, MeasuredShape, Trainer, product_rate};
use lorafleet_spec::base::Head;
use lorafleet_spec::data::{Dataset, Example, Tokenizer};
use lorafleet_spec::digest::sha256_hex;
use lorafleet_spec::job::{Job, Precision, fill_defaults, parse_yaml};
use lorafleet_spec::sampler::{Sampler, cut};
use serde_json::{Value, json};

/// Numbers of the base's products.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Fine-tune on chats and print what it took as JSON.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the base.
    #[arg(long)]
    base: PathBuf,
    /// Chats to train on, JSON lines.
    #[arg(long)]
    train: PathBuf,
    /// Chats to evaluate on, before and after.
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Numbers of the base's products.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Train every weight instead of an adapter.
    #[arg(long)]
    full: bool,
    /// Also measure what the machine's products reach for the model's own shapes.
    #[arg(long)]
    product_rate: bool,
    #[arg(long, default_value_t = 16)]
    rank: u32,
    #[arg(long, default_value_t = 32.0)]
    alpha: f64,
    /// all-linear, or names with commas between.
    #[arg(long, default_value = "all-linear")]
    targets: String,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 1)]
    micro_batches: u32,
    /// Tokens of an example at most.
    #[arg(long, default_value_t = 256)]
    seq_len: u32,
    #[arg(long, default_value_t = 42)]
    steps: u64,
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// constant, linear or cosine.
    #[arg(long, default_value = "linear")]
    schedule: String,
    /// Steps of warm-up.
    #[arg(long, default_value_t = 0)]
    warmup: u64,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Runs, with the seeds 0, 1, …
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Folder for the first run's adapter, in PEFT's format.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Threads; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

struct Data {
    train: Vec<Example>,
    train_sha256: String,
    eval: Vec<Example>,
}

/// What one run was.
struct Run {
    losses: Vec<f64>,
    seconds: Vec<f64>,
    /// Those of them without the optimizer.
    compute: Vec<f64>,
    tokens: Vec<u64>,
    flops: u64,
    trainable: usize,
    eval_before: Option<f64>,
    eval_after: Option<f64>,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let report = pool.install(|| measure(&args))?;
    println!("{report}");
    Ok(())
}

fn measure(args: &Args) -> Result<Value, Failure> {
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    };
    let base = Arc::new(Base::load_as(&args.base, Head::LanguageModel, precision)?);
    let data = read(args, &base)?;
    let runs =
        (0..args.seeds.max(1)).map(|seed| run(args, &base, &data, seed)).collect::<Result<Vec<_>, _>>()?;
    let first = &runs[0];
    let half = first.seconds.len() / 2;
    let (seconds, tokens): (f64, u64) =
        (first.seconds[half..].iter().sum(), first.tokens[half..].iter().sum());
    let (compute, steps) = (first.compute[half..].iter().sum::<f64>(), (first.seconds.len() - half) as f64);
    let flops_per_token = first.flops as f64 / first.tokens.iter().sum::<u64>().max(1) as f64;
    // Before the products are measured on their own.
    let peak_bytes = peak_bytes();
    let rows =
        first.tokens.iter().max().map_or(1, |&tokens| tokens as usize / args.micro_batches.max(1) as usize);
    let rate = args.product_rate.then(|| product_rate(base.model(), rows.max(1), Duration::from_secs(3)));
    let tail = &first.losses[first.losses.len().saturating_sub(10)..];
    let evals: Vec<f64> = runs.iter().filter_map(|run| run.eval_after).collect();
    Ok(json!({
        "system": "lorafleet",
        "device": "cpu",
        "dtype": args.dtype.name(),
        "full": args.full,
        "threads": rayon::current_num_threads(),
        "trainable": first.trainable,
        "total": base.shape().parameters() + if args.full { 0 } else { first.trainable as u64 },
        "tokens_per_s": tokens as f64 / seconds,
        "step_ms": 1e3 * seconds / steps,
        "compute_ms": 1e3 * compute / steps,
        "compute_flops_per_s": flops_per_token * tokens as f64 / compute,
        "product_flops_per_s": rate.as_ref().map(|(rate, _)| rate),
        "product_shapes": rate.map(|(_, shapes)| {
            let list = |s: &MeasuredShape| [s.in_features, s.out_features, s.count, s.rows];
            shapes.iter().map(list).collect::<Vec<_>>()
        }),
        "train_s": first.seconds.iter().sum::<f64>(),
        "first_loss": first.losses.first(),
        "last_loss": tail.iter().sum::<f64>() / tail.len().max(1) as f64,
        "peak_bytes": peak_bytes,
        "flops_per_token": flops_per_token,
        "eval_loss_before": first.eval_before,
        "eval_loss": (!evals.is_empty()).then(|| evals.iter().sum::<f64>() / evals.len() as f64),
        "eval_losses": evals,
    }))
}

fn read(args: &Args, base: &Base) -> Result<Data, Failure> {
    let tokenizer = Tokenizer::load(&args.base)?;
    let examples = |path: &Path| -> Result<Vec<Example>, Failure> {
        let reader = BufReader::new(File::open(path)?);
        let (max_length, positions) = (args.seq_len as usize, base.shape().max_positions);
        Ok(Dataset::read(reader, &tokenizer, max_length, positions)?.examples)
    };
    Ok(Data {
        train: examples(&args.train)?,
        train_sha256: sha256_hex(&std::fs::read(&args.train)?),
        eval: args.eval.as_deref().map(examples).transpose()?.unwrap_or_default(),
    })
}

fn job(args: &Args, seed: u64) -> Result<Job, Failure> {
    let Args {
        rank,
        alpha,
        targets,
        batch,
        micro_batches,
        seq_len,
        steps,
        lr,
        schedule,
        warmup,
        weight_decay,
        ..
    } = args;
    let dtype = args.dtype.name();
    let adapter = if args.full {
        "{method: full}".to_owned()
    } else {
        format!("{{rank: {rank}, alpha: {alpha}, targets: [{targets}]}}")
    };
    let yaml = format!(
        "base: .\ndata: {{train: .}}\nadapter: {adapter}\nworkers: {{max: 1}}\n\
         train: {{steps: {steps}, global_batch: {batch}, micro_batches: {micro_batches}, max_length: {seq_len}, \
         lr: {lr}, schedule: {schedule}, warmup: {warmup}, weight_decay: {weight_decay}, seed: {seed}, precision: {dtype}}}\n"
    );
    let errors = |errors: Vec<lorafleet_spec::FieldError>| {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let mut spec = parse_yaml(&yaml).map_err(errors)?;
    fill_defaults(&mut spec);
    Ok(Job::try_from(&spec).map_err(errors)?)
}

fn run(args: &Args, base: &Arc<Base>, data: &Data, seed: u64) -> Result<Run, Failure> {
    let mut trainer = Trainer::new(base.clone(), &job(args, seed)?, args.steps, 0)?;
    let mut sampler = Sampler::new(&data.train_sha256, seed, data.train.len() as u32, args.batch);
    let eval_before = evaluate(&trainer, &data.eval)?;
    let (mut losses, mut seconds, mut compute, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    trainer.flops().reset();
    for step in 1..=args.steps {
        let started = Instant::now();
        let chosen: Vec<&Example> = sampler.step(step).iter().map(|&i| &data.train[i as usize]).collect();
        let lengths: Vec<usize> = chosen.iter().map(|example| example.tokens.len()).collect();
        for batch in cut(&lengths, args.micro_batches as usize, None) {
            trainer.micro_batch_at(&batch.iter().map(|&place| chosen[place]).collect::<Vec<_>>(), &batch)?;
        }
        compute.push(started.elapsed().as_secs_f64());
        let report = trainer.finish_step()?;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(report.loss);
        tokens.push(report.tokens);
    }
    let flops = trainer.flops().reset();
    let eval_after = evaluate(&trainer, &data.eval)?;
    if let Some(folder) = args.save.as_deref().filter(|_| seed == 0) {
        save(&trainer, folder)?;
    }
    let trainable = trainer.trainable_parameters();
    Ok(Run { losses, seconds, compute, tokens, flops, trainable, eval_before, eval_after })
}

fn save(trainer: &Trainer, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in trainer.snapshot().files {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

fn evaluate(trainer: &Trainer, examples: &[Example]) -> Result<Option<f64>, Failure> {
    let mut sums = EvalSums::default();
    for batch in examples.chunks(16) {
        sums.add(&trainer.evaluate(&batch.iter().collect::<Vec<_>>())?.sums);
    }
    Ok(sums.mean_loss())
}

/// The largest resident set so far, in bytes, where the system tells (Linux).
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
