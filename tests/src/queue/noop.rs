//! Workers that speak the whole protocol and do nothing: ready when assigned, finished when begun.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use lorafleet_proto::{GANG_PROTOCOL_VERSION, v1 as pb};
use pb::{coordinator_message::Message as Down, finished::Outcome, worker_message::Message as Up};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;

use super::rig::Rig;

/// Streams that share a connection; the coordinator allows more.
const STREAMS: usize = 250;

/// What all workers of a fleet did.
#[derive(Debug, Default)]
pub struct Tally {
    /// Jobs whose end was acknowledged.
    finished: AtomicUsize,
    /// Streams that ended, which none should.
    lost: AtomicUsize,
    changed: Notify,
    assigned: std::sync::Mutex<HashMap<String, Instant>>,
}

/// Simulated workers in this process; gone when dropped.
#[derive(Debug)]
pub struct Workers {
    /// What they did.
    pub tally: Arc<Tally>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Tally {
    /// Streams that ended.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Jobs whose end was acknowledged.
    pub fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }

    /// Waits until so many jobs are done.
    ///
    /// # Errors
    /// When nothing ends for a minute.
    pub async fn until_finished(&self, jobs: usize) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            if self.finished() >= jobs {
                return Ok(());
            }
            tokio::time::timeout(Duration::from_secs(60), changed).await.with_context(|| {
                format!("{} of {jobs} jobs are done, and no more for a minute", self.finished())
            })?;
        }
    }

    /// When a job was first assigned; it is forgotten then.
    pub async fn assigned(&self, job: &str) -> Result<Instant> {
        loop {
            let changed = self.changed.notified();
            if let Some(at) = self.assigned.lock().expect("no panic under this lock").remove(job) {
                return Ok(at);
            }
            tokio::time::timeout(Duration::from_secs(60), changed).await.context("it is not assigned")?;
        }
    }

    fn note(&self, message: &Down) {
        match message {
            Down::Assign(assign) => {
                let mut assigned = self.assigned.lock().expect("no panic under this lock");
                assigned.entry(assign.job.clone()).or_insert_with(Instant::now);
            }
            Down::FinishedAck(_) => {
                self.finished.fetch_add(1, Ordering::Relaxed);
            }
            _ => return,
        }
        self.changed.notify_waiters();
    }
}

impl Workers {
    /// Registers `count` workers that send a heartbeat every `beat`, spread over it.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn join(rig: &Rig, count: usize, beat: Duration) -> Result<Self> {
        let tally = Arc::<Tally>::default();
        let mut tasks = Vec::with_capacity(count);
        for first in (0..count).step_by(STREAMS) {
            let channel = rig.channel().await?;
            let numbers: Vec<usize> = (first..count.min(first + STREAMS)).collect();
            for some in numbers.chunks(16) {
                let delay = |number: usize| beat.mul_f64(number as f64 / count as f64);
                let joining = some.iter().map(|number| {
                    let fleet = pb::fleet_client::FleetClient::new(channel.clone());
                    attach(fleet, *number, beat, delay(*number), Arc::clone(&tally))
                });
                tasks.extend(try_join_all(joining).await?);
            }
        }
        Ok(Self { tally, tasks })
    }
}

fn registration(number: usize) -> pb::RegisterWorkerRequest {
    pb::RegisterWorkerRequest {
        name: format!("nothing-{number}"),
        protocol_version: GANG_PROTOCOL_VERSION,
        resources: Some(pb::WorkerResources {
            device: "cpu".into(),
            memory_bytes: 1 << 30,
            threads: 1,
            slots: 1,
            kind: "none".into(),
            version: "0".into(),
        }),
        collective_address: "127.0.0.1:9".into(),
        process_id: format!("process-{number}"),
        ..Default::default()
    }
}

async fn attach(
    mut fleet: pb::fleet_client::FleetClient<tonic::transport::Channel>,
    number: usize,
    beat: Duration,
    delay: Duration,
    tally: Arc<Tally>,
) -> Result<JoinHandle<()>> {
    let id = fleet.register_worker(registration(number)).await?.into_inner().worker_id;
    let (up, outbound) = mpsc::channel(16);
    // A stream opens with a heartbeat.
    say(&up, &id, Up::Heartbeat(pb::Heartbeat::default())).await;
    let mut stream = fleet.attach(ReceiverStream::new(outbound)).await?.into_inner();
    Ok(tokio::spawn(async move {
        let mut running: HashMap<String, pb::RunningJob> = HashMap::new();
        let mut beats = tokio::time::interval_at(Instant::now() + delay, beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    let running = running.values().cloned().collect();
                    say(&up, &id, Up::Heartbeat(pb::Heartbeat { running, draining: false })).await;
                }
                message = stream.message() => {
                    let Ok(Some(message)) = message else { break };
                    let Some(message) = message.message else { continue };
                    tally.note(&message);
                    if let Some(answer) = answer(&mut running, message) {
                        say(&up, &id, answer).await;
                    }
                }
            }
        }
        tally.lost.fetch_add(1, Ordering::Relaxed);
    }))
}

async fn say(up: &mpsc::Sender<pb::WorkerMessage>, id: &str, message: Up) {
    // A stream that has ended is seen by its reader.
    let _ = up.send(pb::WorkerMessage { worker_id: id.to_owned(), message: Some(message) }).await;
}

fn answer(running: &mut HashMap<String, pb::RunningJob>, message: Down) -> Option<Up> {
    match message {
        Down::Assign(assign) => {
            let place = pb::RunningJob {
                job: assign.job.clone(),
                fence: assign.fence.clone(),
                step: 0,
                place: assign.place,
            };
            running.insert(assign.job.clone(), place);
            Some(Up::Ready(ready(assign)))
        }
        Down::Begin(begin) => Some(Up::Finished(finished(&running.remove(&begin.job)?, begin))),
        Down::Stop(stop) => {
            let place = running.remove(&stop.job)?;
            let (job, fence) = (place.job, place.fence);
            let outcome = Some(Outcome::Stopped(pb::Stopped {}));
            Some(Up::Finished(pb::Finished { job, fence, place: place.place, outcome }))
        }
        _ => None,
    }
}

fn ready(assign: pb::Assign) -> pb::Ready {
    pb::Ready {
        job: assign.job,
        fence: assign.fence,
        base_sha256: "b".repeat(64),
        train_sha256: "d".repeat(64),
        total_steps: 1,
        data: Some(pb::DataSummary { format: "chat".into(), examples: 1, ..Default::default() }),
        trainable_parameters: 1000,
        total_parameters: 100_000,
        place: assign.place,
        eval_sha256: String::new(),
        flops_per_token: 0.0,
    }
}

fn finished(place: &pb::RunningJob, begin: pb::Begin) -> pb::Finished {
    let pb::Fence { attempt, generation, generation_id } = begin.fence.clone().unwrap_or_default();
    let file = pb::CheckpointFile {
        name: "adapter_model.safetensors".into(),
        size_bytes: 1,
        sha256: "a".repeat(64),
    };
    let checkpoint = pb::Checkpoint {
        name: format!("{}/checkpoints/{:010}-{attempt:04}-{generation:04}-{generation_id}", begin.job, 1),
        step: 1,
        files: vec![file],
        manifest_sha256: "c".repeat(64),
        r#final: true,
        ..Default::default()
    };
    let result = pb::JobResult { adapter_sha256: "a".repeat(64), ..Default::default() };
    let outcome = Outcome::Succeeded(pb::Succeeded {
        checkpoint: Some(checkpoint),
        result: Some(result),
        ..Default::default()
    });
    pb::Finished { job: begin.job, fence: begin.fence, place: place.place, outcome: Some(outcome) }
}
