//! How long a gang of four stands still when one dies, how soon a silent death is noticed, how soon a newcomer trains.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lorafleet_proto::v1::{self as pb, watch_job_response::Update};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    job,
    rig::{Layout, Pace, Rig, Start},
};

const WORKERS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);
/// Steps between two measurements, which give the usual time of one.
const USUAL: usize = 7;

/// What the job's stream said, and when it came.
struct Seen {
    at: Instant,
    update: Update,
}

/// A gang that trains while it is measured.
struct Bench {
    rig: Rig,
    seen: mpsc::Receiver<Seen>,
    generation: (u32, u32),
}

/// Seconds, all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// From SIGKILL to the next finished step, less a usual step of the three that are left.
    pub recoveries: Vec<f64>,
    /// From SIGSTOP to the opening of the next generation.
    pub silences: Vec<f64>,
    /// From the start of a worker's process to the first step of the gang with it.
    pub newcomers: Vec<f64>,
}

/// Kills a worker so many times, and freezes one so many.
pub async fn measure(kills: usize, freezes: usize, say: &mut dyn FnMut(&str)) -> Result<Times> {
    let mut bench = Bench::start().await?;
    let mut times = Times::default();
    for round in 0..kills {
        let (recovery, newcomer) = bench.kill(round).await?;
        say(&format!("kill {}: {recovery:.3} s; a newcomer's first step after {newcomer:.2} s", round + 1));
        times.recoveries.push(recovery);
        times.newcomers.push(newcomer);
    }
    for round in 0..freezes {
        let silence = bench.freeze(round).await?;
        say(&format!("freeze {}: noticed after {silence:.2} s", round + 1));
        times.silences.push(silence);
    }
    Ok(times)
}

impl Bench {
    async fn start() -> Result<Bench> {
        let layout = Layout { coordinators: 1, namespaces: false, pace: Pace::Default };
        let mut rig = Rig::start(layout, None).await?;
        for _ in 0..WORKERS {
            rig.add_worker(&Start::default())?;
        }
        let name = rig.submit(&job::endless(&rig.home("client")?, WORKERS)?)?;
        let (sender, seen) = mpsc::channel(4096);
        let client = rig.client();
        tokio::spawn(async move {
            // When it ends, so does the channel, and whoever waits says so.
            let _ = client
                .watch(&name, |update| sender.try_send(Seen { at: Instant::now(), update }).is_ok())
                .await;
        });
        let mut bench = Bench { rig, seen, generation: (0, 0) };
        bench.steps(USUAL).await?;
        Ok(bench)
    }

    /// The next update, in time.
    async fn next(&mut self) -> Result<Seen> {
        let next = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        let seen = next.context("the job stands still")?.context("the job's stream has ended")?;
        if let Update::Job(job) = &seen.update
            && job.state() as i32 > pb::JobState::Running as i32
        {
            bail!("the job has ended: {}", job.state_message);
        }
        Ok(seen)
    }

    /// So many steps; the usual time of one.
    async fn steps(&mut self, count: usize) -> Result<f64> {
        let mut times = Vec::new();
        while times.len() < count {
            if let Update::Point(point) = self.next().await?.update
                && point.step > 0
            {
                self.generation = (point.attempt, point.generation);
                times.push(point.step_seconds);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// When the first step of a later generation was seen.
    async fn changed(&mut self) -> Result<Instant> {
        loop {
            let Seen { at, update } = self.next().await?;
            if let Update::Point(point) = update
                && (point.attempt, point.generation) > self.generation
            {
                ensure!(point.attempt == self.generation.0 || self.generation.0 == 0, "the attempt was lost");
                self.generation = (point.attempt, point.generation);
                return Ok(at);
            }
        }
    }

    fn victim(&self, round: usize) -> Result<String> {
        let names: Vec<&String> = self.rig.workers.keys().collect();
        names.get(round % names.len().max(1)).map(|name| (*name).clone()).context("no worker is left")
    }

    async fn kill(&mut self, round: usize) -> Result<(f64, f64)> {
        let victim = self.victim(round)?;
        let worker = self.rig.workers.get_mut(&victim).context("no such worker")?;
        let killed = Instant::now();
        worker.process.kill()?;
        let again = self.changed().await?;
        let usual = self.steps(USUAL).await?;
        self.rig.reap();
        Ok(((again - killed).as_secs_f64() - usual, self.newcomer().await?))
    }

    async fn newcomer(&mut self) -> Result<f64> {
        let started = Instant::now();
        self.rig.add_worker(&Start::default())?;
        let first = self.changed().await?;
        self.steps(USUAL).await?;
        Ok((first - started).as_secs_f64())
    }

    async fn freeze(&mut self, round: usize) -> Result<f64> {
        let victim = self.victim(round)?;
        let worker = self.rig.workers.get_mut(&victim).context("no such worker")?;
        let frozen = Instant::now();
        worker.process.signal(Signal::STOP)?;
        let noticed = loop {
            let Seen { at, update } = self.next().await?;
            if let Update::Event(event) = update
                && event.kind == "generation"
                && (event.attempt, event.generation) > self.generation
            {
                break at;
            }
        };
        self.changed().await?;
        self.rig.workers.get_mut(&victim).context("no such worker")?.process.kill()?;
        self.rig.reap();
        self.newcomer().await?;
        Ok((noticed - frozen).as_secs_f64())
    }
}

impl Times {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({"recoveries": self.recoveries, "silences": self.silences, "newcomers": self.newcomers})
    }
}
