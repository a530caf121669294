//! Starts the fleet's programs in order, restarts those that die, and stops all in order.

use std::{collections::BTreeSet, future::Future, pin::Pin, process::ExitStatus, time::Duration};

use anyhow::{Context as _, bail};
use futures::future::select_all;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

use super::{
    child::{Child, Program},
    data_dir::DataDir,
    health,
    services::{Plan, WORKER_DRAIN_LIMIT},
};

/// Each part has this long to say that it can work.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Workers end by their own limit before this.
const WORKER_STOP_LIMIT: Duration = Duration::from_secs(WORKER_DRAIN_LIMIT.as_secs() + 15);
/// The coordinator ends its streams.
const COORDINATOR_STOP_LIMIT: Duration = Duration::from_secs(20);
/// Waits before a program that died is started again: doubled each time, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Who lived this long starts with the first wait again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// How often somebody asked us to stop; the second time means at once.
pub type Stop = watch::Receiver<u32>;

/// Counts SIGINT, SIGTERM, SIGHUP, and the end of standard input if that is wanted.
///
/// # Errors
/// When the signals cannot be caught.
pub fn stop_signals(until_stdin_closes: bool) -> anyhow::Result<Stop> {
    let (count, stop) = watch::channel(0);
    let mut int = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut term = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    if until_stdin_closes {
        let count = count.clone();
        std::thread::spawn(move || {
            // Whatever is said there does not matter, only that it ends, well or not.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            count.send_modify(|count| *count += 1);
        });
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hangup.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(stop)
}

/// A program of the fleet, running or waiting to be started again.
struct Slot {
    program: Program,
    child: Option<Child>,
    started: Instant,
    /// When it is started again, if it does not run.
    due: Instant,
    wait: Duration,
}

/// Runs a plan.
pub struct Supervisor<'a> {
    plan: Plan,
    dir: &'a DataDir,
    stop: Stop,
    /// The coordinator, then the workers.
    slots: Vec<Slot>,
}

impl<'a> Supervisor<'a> {
    /// A fleet that does not run yet.
    pub fn new(plan: Plan, dir: &'a DataDir, stop: Stop) -> Self {
        Self { plan, dir, stop, slots: Vec::new() }
    }

    /// Starts everything, keeps it running until it is told to stop, and stops it all in order.
    ///
    /// # Errors
    /// When a part does not come up; what already runs is stopped first.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let outcome = match self.start().await {
            Ok(true) => {
                eprintln!("{}", self.plan.banner(self.dir));
                self.keep_running().await;
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        self.stop_all().await;
        outcome
    }

    /// Starts the coordinator, then the workers, and waits for each; false when it was told to stop meanwhile.
    async fn start(&mut self) -> anyhow::Result<bool> {
        let url = self.plan.coordinator_url();
        self.spawn(self.plan.coordinator.clone())?;
        let serves = Box::pin({
            let url = url.clone();
            async move { health::coordinator_serves(&url).await }
        });
        if !self.wait_for("the coordinator", serves).await? {
            return Ok(false);
        }
        for worker in self.plan.workers.clone() {
            self.spawn(worker)?;
        }
        let names: BTreeSet<String> = self.plan.workers.iter().map(|worker| worker.name.clone()).collect();
        let ready = Box::pin(async move { health::workers_ready(&url, &names).await });
        if !self.wait_for("the workers", ready).await? {
            return Ok(false);
        }
        self.write_state()?;
        Ok(true)
    }

    fn spawn(&mut self, program: Program) -> anyhow::Result<()> {
        let child = Some(program.start()?);
        let now = Instant::now();
        self.slots.push(Slot { program, child, started: now, due: now, wait: FIRST_WAIT });
        Ok(())
    }

    /// Waits until `ready`; an error when a program ends before that.
    async fn wait_for(
        &mut self,
        what: &str,
        ready: Pin<Box<dyn Future<Output = ()>>>,
    ) -> anyhow::Result<bool> {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = ready => Ok(true),
            _ = stop.wait_for(|&count| count > 0) => Ok(false),
            (index, status) = next_end(&mut self.slots) => {
                let slot = &mut self.slots[index];
                slot.child = None;
                let program = &slot.program;
                bail!("{} ended while starting ({status}); the end of its log:{}", program.name, program.log_tail())
            }
            () = tokio::time::sleep(START_LIMIT) => {
                let tails = self.slots.iter().map(|slot| format!("\n{}:{}", slot.program.name, slot.program.log_tail()));
                bail!("{what} did not come up within {} s; the logs end:{}", START_LIMIT.as_secs(), tails.collect::<String>())
            }
        }
    }

    /// Starts again what dies, until told to stop.
    async fn keep_running(&mut self) {
        let mut stop = self.stop.clone();
        loop {
            let due = self.slots.iter().filter(|slot| slot.child.is_none()).map(|slot| slot.due).min();
            tokio::select! {
                _ = stop.wait_for(|&count| count > 0) => return,
                (index, status) = next_end(&mut self.slots) => self.slots[index].ended(&status),
                () = sleep_until(due) => self.start_due(),
            }
            // It tells other programs what runs; the fleet does not need it.
            if let Err(error) = self.write_state() {
                eprintln!("warning: {error:#}");
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for slot in self.slots.iter_mut().filter(|slot| slot.child.is_none() && slot.due <= now) {
            slot.started = now;
            match slot.program.start() {
                Ok(child) => {
                    eprintln!("{} runs again (process {})", slot.program.name, child.id());
                    slot.child = Some(child);
                }
                Err(error) => slot.ended(&format!("{error:#}")),
            }
        }
    }

    /// Workers first, together, so that they can still give their work back; then the coordinator.
    async fn stop_all(&mut self) {
        if self.slots.iter().any(|slot| slot.child.is_some()) {
            eprintln!(
                "stopping: workers finish their step and write a checkpoint (Ctrl-C again to stop at once)"
            );
        }
        let workers = self.slots.split_off(self.slots.len().min(1));
        for (slots, limit) in
            [(workers, WORKER_STOP_LIMIT), (std::mem::take(&mut self.slots), COORDINATOR_STOP_LIMIT)]
        {
            self.stop_together(slots, limit).await;
        }
    }

    async fn stop_together(&self, slots: Vec<Slot>, limit: Duration) {
        let mut running: Vec<_> =
            slots.into_iter().filter_map(|slot| Some((slot.program, slot.child?))).collect();
        for (_, child) in &running {
            child.ask_to_stop();
        }
        let deadline = Instant::now() + limit;
        let impatient = async {
            let mut stop = self.stop.clone();
            let _ = stop.wait_for(|&count| count > 1).await;
        };
        let all_gone = async {
            for (program, child) in &mut running {
                if !child.gone_within(deadline.saturating_duration_since(Instant::now())).await {
                    eprintln!("{} did not stop within {} s and was killed", program.name, limit.as_secs());
                }
            }
        };
        // Whoever is left when this ends early is killed as it is dropped.
        tokio::select! {
            () = all_gone => {}
            () = impatient => {}
        }
        for (_, child) in &mut running {
            child.gone_within(Duration::ZERO).await;
        }
    }

    fn write_state(&self) -> anyhow::Result<()> {
        let programs: Vec<_> = self
            .slots
            .iter()
            .map(|slot| json!({ "name": slot.program.name, "pid": slot.child.as_ref().map(Child::id) }))
            .collect();
        self.dir.write_state(&json!({
            "coordinator": self.plan.coordinator_url(),
            "pid": std::process::id(),
            "programs": programs,
        }))
    }
}

impl Slot {
    /// It has ended, or could not be started: says so, and sets when it is started again.
    fn ended(&mut self, how: &dyn std::fmt::Display) {
        self.child = None;
        self.wait = match self.started.elapsed() > HEALTHY_AFTER {
            true => FIRST_WAIT,
            false => self.wait,
        };
        self.due = Instant::now() + self.wait;
        eprintln!(
            "{} ended ({how}); starting it again in {:.1} s; its log: {}",
            self.program.name,
            self.wait.as_secs_f64(),
            self.program.log.display()
        );
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// The next program that ends: its index, and how.
async fn next_end(slots: &mut [Slot]) -> (usize, String) {
    let ends: Vec<_> = slots
        .iter_mut()
        .enumerate()
        .filter_map(|(index, slot)| slot.child.as_mut().map(|child| (index, child)))
        .map(|(index, child)| Box::pin(async move { (index, describe(child.ended().await)) }))
        .collect();
    if ends.is_empty() {
        return std::future::pending().await;
    }
    select_all(ends).await.0
}

fn describe(end: std::io::Result<ExitStatus>) -> String {
    match end {
        Ok(status) => status.to_string(),
        Err(error) => format!("it cannot be waited for: {error}"),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
