//! Members that are unlike the others: one whose clock is an hour off, one that gets a tenth of a processor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lorafleet_tests::{Fleet, JobFile, Options, chaos::clock::ClockLibrary, http, wait::until};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a process run for a tenth of the time only, until it is dropped.
struct Throttle {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Throttle {
    fn new(process: u32) -> Result<Throttle> {
        let process = Pid::from_raw(process.try_into()?).context("a process has a number")?;
        let over = Arc::<AtomicBool>::default();
        let theirs = over.clone();
        let thread = thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                for (signal, time) in [(Signal::STOP, 45), (Signal::CONT, 5)] {
                    // It may be over already.
                    let _ = kill_process(process, signal);
                    thread::sleep(Duration::from_millis(time));
                }
            }
        });
        Ok(Throttle { over, thread: Some(thread) })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn job(name: &'static str, workers: u32) -> JobFile {
    JobFile { name, steps: 60, micro_batches: 6, workers: (workers, workers), ..JobFile::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_changes_nothing_and_a_slow_member_is_named() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let undisturbed = fleet.submit(&job("undisturbed", 1))?;
    fleet.succeeded(&undisturbed).await?;

    let clock = ClockLibrary::build(fleet.dir.path())?.clock(fleet.dir.path().join("shift"))?;
    clock.jump(3600)?;
    let env = clock.env();
    fleet.start_worker_with(
        "ahead",
        1,
        &env.each_ref().map(|(name, value)| (name.as_str(), value.as_str())),
    )?;
    fleet.start_worker("slow", 1)?;
    let name = fleet.submit(&job("odd", 3))?;
    fleet.job_when(&name, "step 2", |job| job.step >= 2).await?;
    let throttle = Throttle::new(fleet.worker("slow")?.id())?;
    let named = |metrics: &str| metrics.lines().any(|line| line == "lorafleet_worker_gang_stragglers 1");
    let address = fleet.worker("a")?.metrics_address()?;
    until("a's metrics to count a straggler", PATIENCE, || async {
        Ok(named(&http::get(&address, "/metrics")?).then_some(()))
    })
    .await?;
    drop(throttle);

    fleet.succeeded(&name).await?;
    let history = fleet.history(&name).await?;
    ensure!(fleet.adapter(&name)?.1 == fleet.adapter(&undisturbed)?.1, "another adapter\n{history}");
    ensure!(fleet.attempts(&name).await?.len() == 1, "another attempt\n{history}");
    let events = fleet.events(&name).await?;
    let told = events.iter().any(|event| event.kind == "straggler" && event.message.starts_with("slow "));
    ensure!(told, "no event names the slow member\n{history}");
    let mut times: Vec<i64> = Vec::new();
    times.extend(events.iter().filter_map(|event| event.time.map(|time| time.seconds)));
    let (first, last) = (times.iter().min(), times.iter().max());
    ensure!(
        first.zip(last).is_some_and(|(first, last)| last - first < 1800),
        "the wrong clock shows in the history\n{history}"
    );
    Ok(())
}
