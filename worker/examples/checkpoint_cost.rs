//! What writing checkpoints beside training costs the steps, measured: as one JSON object.
//!
//! Checkpoints go to a folder that takes so many bytes a second. A step's time is from one boundary to the next, with
//! whatever a checkpoint takes from the training thread.

use std::{
    fmt,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use futures::{FutureExt as _, stream::BoxStream};
use lorafleet_lora::{Base, Trainer};
use lorafleet_spec::{
    base::Head,
    data::{Dataset, Example, Tokenizer},
    job::{Job, Precision, fill_defaults, parse_yaml},
    sampler::{Sampler, cut},
};
use lorafleet_store::{Digest, Draft, Fence, Retry, Store};
use lorafleet_worker::run::{News, Waited, Work, Writing};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, local::LocalFileSystem,
    path::Path as Place,
};
use serde_json::{Value, json};

/// Train with checkpoints and print what they cost.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the base.
    #[arg(long)]
    base: PathBuf,
    /// Chats to train on, JSON lines.
    #[arg(long)]
    train: PathBuf,
    /// Folder for the checkpoints; emptied at the end.
    #[arg(long)]
    store: PathBuf,
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
    /// Bytes a second that the store takes.
    #[arg(long, default_value_t = 100_000_000)]
    rate: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let pool = rayon::ThreadPoolBuilder::new().build()?;
    let report = pool.install(|| measure(&args, runtime.handle()))?;
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
}

fn measure(args: &Args, runtime: &tokio::runtime::Handle) -> anyhow::Result<Value> {
    let mut training = Training::new(args)?;
    std::fs::create_dir_all(&args.store).context("cannot make the store's folder")?;
    let store = Store::over(Arc::new(Limited::new(&args.store, args.rate)?), Retry::default());
    for _ in 0..3 {
        training.step()?;
    }
    let (mut alone, mut beside, mut excess, mut uploads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..args.checkpoints {
        let mut last = Instant::now();
        // Seconds since the boundary before.
        let mut lap = || {
            let now = Instant::now();
            (now - std::mem::replace(&mut last, now)).as_secs_f64()
        };
        let mut quiet = Vec::new();
        for _ in 0..args.between {
            training.step()?;
            quiet.push(lap());
        }
        let usual = median(&quiet);
        let (told, news) = std::sync::mpsc::channel();
        let work = Work {
            store: store.clone(),
            draft: draft(&training)?,
            state: training.trainer.freeze(),
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
        let mut disturbed = Vec::new();
        // To the end of the step in which it became whole.
        loop {
            training.step()?;
            disturbed.push(lap());
            if writing.wait(Duration::ZERO) == Waited::Done {
                break;
            }
        }
        let (size, seconds) = news.recv()?.map_err(anyhow::Error::msg)?;
        bytes = size;
        uploads.push(seconds);
        excess.push(disturbed.iter().map(|seconds| seconds - usual).sum::<f64>());
        alone.extend(quiet);
        beside.extend(disturbed);
        std::fs::remove_dir_all(&args.store)?;
        std::fs::create_dir_all(&args.store)?;
    }
    let slowest = |steps: &[f64]| steps.iter().copied().fold(0.0, f64::max);
    Ok(json!({
        "bytes": bytes,
        "step_s": median(&alone),
        "step_beside_s": median(&beside),
        "slowest_alone": slowest(&alone) / median(&alone),
        "slowest_beside": slowest(&beside) / median(&alone),
        "steps_beside": beside.len(),
        "upload_s": median(&uploads),
        "excess_s": excess.iter().sum::<f64>() / excess.len().max(1) as f64,
        "peak_bytes": peak_bytes(),
    }))
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

/// A folder that takes so many bytes a second.
#[derive(Debug)]
struct Limited {
    inner: LocalFileSystem,
    line: Arc<Line>,
}

/// What all writers share: when the bytes that are on their way are through.
#[derive(Debug)]
struct Line {
    rate: f64,
    free: Mutex<Instant>,
}

impl Line {
    /// Takes up the line for so many bytes, and ends when they are through.
    async fn pass(&self, bytes: usize) {
        let through = {
            let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.rate);
            *free
        };
        tokio::time::sleep_until(through.into()).await;
    }
}

impl Limited {
    fn new(folder: &Path, rate: u64) -> anyhow::Result<Self> {
        let inner = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self { inner, line: Arc::new(Line { rate: rate as f64, free: Mutex::new(Instant::now()) }) })
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a folder with a limit")
    }
}

#[derive(Debug)]
struct LimitedUpload {
    inner: Box<dyn MultipartUpload>,
    line: Arc<Line>,
}

#[async_trait::async_trait]
impl MultipartUpload for LimitedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (line, bytes) = (self.line.clone(), data.content_length());
        let part = self.inner.put_part(data);
        async move {
            line.pass(bytes).await;
            part.await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait::async_trait]
impl ObjectStore for Limited {
    async fn put_opts(&self, place: &Place, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.line.pass(payload.content_length()).await;
        self.inner.put_opts(place, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        place: &Place,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(place, options).await?;
        Ok(Box::new(LimitedUpload { inner, line: self.line.clone() }))
    }

    async fn get_opts(&self, place: &Place, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(place, options).await
    }

    fn delete_stream(&self, places: BoxStream<'static, Result<Place>>) -> BoxStream<'static, Result<Place>> {
        self.inner.delete_stream(places)
    }

    fn list(&self, prefix: Option<&Place>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Place>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Place, to: &Place, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
