//! A simulated worker: speaks the Fleet stream, computes nothing.

mod ahead;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lorafleet_proto::{GANG_PROTOCOL_VERSION, v1 as pb};
use pb::{coordinator_message::Message as Down, finished::Outcome, worker_message::Message as Up};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use crate::bed::{Coordinator, LONG};

/// What the worker says that it runs: (job, attempt) → its place.
type Running = Arc<Mutex<HashMap<(String, u32), pb::RunningJob>>>;

/// A worker process with one open stream.
pub struct Worker {
    pub name: String,
    pub id: String,
    process: String,
    up: mpsc::Sender<pb::WorkerMessage>,
    down: mpsc::UnboundedReceiver<Down>,
    running: Running,
    draining: Arc<Mutex<bool>>,
    tasks: Vec<JoinHandle<()>>,
}

/// A place in a gang, as its member knows it.
#[derive(Clone, Debug)]
pub struct Place {
    pub assign: pb::Assign,
}

pub fn registration(name: &str) -> pb::RegisterWorkerRequest {
    pb::RegisterWorkerRequest {
        name: name.into(),
        protocol_version: GANG_PROTOCOL_VERSION,
        resources: Some(pb::WorkerResources {
            device: "cpu".into(),
            memory_bytes: 1 << 30,
            threads: 1,
            slots: 1,
            kind: "test".into(),
            version: "0".into(),
        }),
        collective_address: "127.0.0.1:9".into(),
        labels: Default::default(),
        process_id: uuid::Uuid::new_v4().to_string(),
    }
}

impl Worker {
    /// A process of this name registers and opens a stream.
    pub async fn join(coordinator: &Coordinator, name: &str) -> Self {
        let request = registration(name);
        let response = coordinator.fleet().await.register_worker(request.clone()).await.expect("registered");
        Self::attach(coordinator, &request, &response.into_inner().worker_id, Running::default()).await
    }

    /// A process of this name with a label more registers and opens a stream.
    pub async fn join_with(coordinator: &Coordinator, name: &str, label: (&str, &str)) -> Self {
        let labels = [(label.0.to_owned(), label.1.to_owned())].into();
        let request = pb::RegisterWorkerRequest { labels, ..registration(name) };
        let response = coordinator.fleet().await.register_worker(request.clone()).await.expect("registered");
        Self::attach(coordinator, &request, &response.into_inner().worker_id, Running::default()).await
    }

    /// Goes on with another stream, as after a lost connection; what it runs stays.
    pub async fn reattach(self, coordinator: &Coordinator) -> Self {
        let (id, running) = (self.id.clone(), Arc::clone(&self.running));
        let request =
            pb::RegisterWorkerRequest { process_id: self.process.clone(), ..registration(&self.name) };
        self.vanish();
        Self::attach(coordinator, &request, &id, running).await
    }

    async fn attach(
        coordinator: &Coordinator,
        request: &pb::RegisterWorkerRequest,
        id: &str,
        running: Running,
    ) -> Self {
        let (up, outbound) = mpsc::channel(64);
        let draining = Arc::new(Mutex::new(false));
        let beats =
            tokio::spawn(beat(id.to_owned(), up.clone(), Arc::clone(&running), Arc::clone(&draining)));
        let mut client = coordinator.fleet().await;
        let stream = client.attach(ReceiverStream::new(outbound)).await.expect("a stream");
        let (sender, down) = mpsc::unbounded_channel();
        let listed = Arc::clone(&running);
        let reads = tokio::spawn(async move {
            let mut stream = stream.into_inner();
            while let Ok(Some(message)) = stream.message().await {
                let Some(message) = message.message else { continue };
                if let Down::Assign(assign) = &message {
                    let place = Place { assign: assign.clone() };
                    let running = pb::RunningJob {
                        job: assign.job.clone(),
                        fence: assign.fence.clone(),
                        step: 0,
                        place: assign.place,
                    };
                    listed.lock().expect("no panic").insert(place.key(), running);
                }
                if let Down::Begin(begin) = &message
                    && !enter(&listed, begin)
                {
                    continue;
                }
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let (name, process) = (request.name.clone(), request.process_id.clone());
        Self { name, id: id.into(), process, up, down, running, draining, tasks: vec![beats, reads] }
    }

    /// Dies without a word: no heartbeat, no stream.
    pub fn vanish(self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Takes no new work from now on.
    pub async fn drain(&self) {
        *self.draining.lock().expect("no panic") = true;
        let running = self.running.lock().expect("no panic").values().cloned().collect();
        self.send(Up::Heartbeat(pb::Heartbeat { running, draining: true })).await;
    }

    /// Waits for a message; passes over others.
    pub async fn expect<T>(&mut self, what: &str, mut pick: impl FnMut(Down) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let message = self.down.recv().await;
                let message = message.unwrap_or_else(|| panic!("the stream ended before {what}"));
                if let Some(picked) = pick(message) {
                    return picked;
                }
            }
        };
        tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    pub async fn assigned(&mut self) -> Place {
        let pick = |m| if let Down::Assign(assign) = m { Some(assign) } else { None };
        Place { assign: self.expect("Assign", pick).await }
    }

    pub async fn begun(&mut self) -> pb::Begin {
        self.expect("Begin", |m| if let Down::Begin(begin) = m { Some(begin) } else { None }).await
    }

    pub async fn stopped(&mut self) -> pb::Stop {
        self.expect("Stop", |m| if let Down::Stop(stop) = m { Some(stop) } else { None }).await
    }

    /// Waits until the coordinator closes the stream.
    pub async fn stream_ended(&mut self) {
        let ended = async { while self.down.recv().await.is_some() {} };
        tokio::time::timeout(LONG, ended).await.expect("the stream ends");
    }

    /// No longer lists a job, without a word.
    pub fn forget(&self, place: &Place) {
        self.running.lock().expect("no panic").remove(&place.key());
    }

    pub async fn finish_acked(&mut self) {
        self.expect("FinishedAck", |m| matches!(m, Down::FinishedAck(_)).then_some(())).await;
    }

    pub async fn send(&self, message: Up) {
        let message = pb::WorkerMessage { worker_id: self.id.clone(), message: Some(message) };
        self.up.send(message).await.expect("the stream is open");
    }

    pub async fn ready(&self, place: &Place) {
        self.send(Up::Ready(place.ready())).await;
    }

    /// Reports steps and waits for the acknowledgement.
    pub async fn progress(&mut self, place: &Place, steps: std::ops::RangeInclusive<u64>) {
        let last = *steps.end();
        self.send(Up::Progress(place.progress(steps))).await;
        self.expect("ProgressAck", |m| {
            matches!(&m, Down::ProgressAck(ack) if ack.step == last).then_some(())
        })
        .await;
    }

    /// Reports a point with an evaluation.
    pub async fn evaluated(&mut self, place: &Place, step: u64, eval_scores: Vec<pb::Score>) {
        let mut progress = place.progress(step..=step);
        progress.points[0].eval_loss = Some(0.5);
        progress.points[0].eval_scores = eval_scores;
        self.send(Up::Progress(progress)).await;
        self.expect("ProgressAck", |m| {
            matches!(&m, Down::ProgressAck(ack) if ack.step == step).then_some(())
        })
        .await;
    }

    /// Reports a checkpoint and waits for the acknowledgement; returns what expired.
    pub async fn checkpoint(&mut self, place: &Place, step: u64) -> Vec<String> {
        self.written(place, place.checkpoint(step)).await
    }

    /// Reports this checkpoint.
    pub async fn written(&mut self, place: &Place, checkpoint: pb::Checkpoint) -> Vec<String> {
        let checkpoint = Some(checkpoint);
        let (job, fence) = (place.assign.job.clone(), place.assign.fence.clone());
        self.send(Up::CheckpointWritten(pb::CheckpointWritten { job, fence, checkpoint })).await;
        self.expect(
            "CheckpointAck",
            |m| if let Down::CheckpointAck(ack) = m { Some(ack.expired) } else { None },
        )
        .await
    }

    /// Ends its part, and no longer lists the job.
    pub async fn finish(&mut self, place: &Place, outcome: Outcome) {
        self.running.lock().expect("no panic").remove(&place.key());
        self.send(Up::Finished(place.finished(outcome))).await;
        self.finish_acked().await;
    }

    /// Takes an assignment up to the first step.
    pub async fn start(&mut self) -> (Place, pb::Begin) {
        let place = self.assigned().await;
        self.ready(&place).await;
        let begin = self.begun().await;
        (place.entered(&begin), begin)
    }

    /// Leaves the collective of the place's generation, with evidence against others.
    pub async fn part(&self, place: &Place, step: u64, suspicions: &[(u32, pb::Evidence)]) {
        self.send(Up::Parted(place.parted(step, suspicions))).await;
    }

    /// Leaves it at a boundary that all agreed on.
    pub async fn part_politely(&self, place: &Place, step: u64) {
        self.send(Up::Parted(pb::Parted { polite: true, ..place.parted(step, &[]) })).await;
    }

    /// Waits until it is asked to part from the place's generation.
    pub async fn regrouped(&mut self, place: &Place) {
        let fence = place.assign.fence.clone();
        self.expect("Regroup", |m| matches!(&m, Down::Regroup(r) if r.fence == fence).then_some(())).await;
    }

    /// Everything that was sent before has been taken in: the same event once more is acknowledged.
    pub async fn settled(&mut self, place: &Place) {
        self.send(Up::ReportEvent(place.event("settled", "all was taken in"))).await;
        self.event_acked("settled").await;
    }

    pub async fn event_acked(&mut self, key: &str) {
        let acked = |m| matches!(&m, Down::EventAck(ack) if ack.keys == [key]).then_some(());
        self.expect("EventAck", acked).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Place {
    pub fn fence(&self) -> pb::Fence {
        self.assign.fence.clone().expect("a fence")
    }

    fn key(&self) -> (String, u32) {
        (self.assign.job.clone(), self.fence().attempt)
    }

    /// The same place in the generation that begins.
    pub fn entered(&self, begin: &pb::Begin) -> Self {
        self.with_fence(begin.fence.clone().expect("a fence"))
    }

    /// The same place under another fence.
    pub fn with_fence(&self, fence: pb::Fence) -> Self {
        Self { assign: pb::Assign { fence: Some(fence), ..self.assign.clone() } }
    }

    pub fn ready(&self) -> pb::Ready {
        pb::Ready {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone(),
            base_sha256: "b".repeat(64),
            train_sha256: "d".repeat(64),
            total_steps: 100,
            data: Some(pb::DataSummary { format: "chat".into(), examples: 640, ..Default::default() }),
            trainable_parameters: 1000,
            total_parameters: 100_000,
            place: self.assign.place,
            eval_sha256: String::new(),
            flops_per_token: 1e6,
        }
    }

    pub fn progress(&self, steps: std::ops::RangeInclusive<u64>) -> pb::Progress {
        let fence = self.fence();
        let point = |step| pb::MetricPoint {
            step,
            #[expect(clippy::cast_precision_loss, reason = "a made-up loss")]
            loss: 4.0 - step as f64 / 100.0,
            lr: 1e-3,
            tokens: 128,
            attempt: fence.attempt,
            generation: fence.generation,
            ..Default::default()
        };
        pb::Progress {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone(),
            points: steps.map(point).collect(),
        }
    }

    pub fn event(&self, key: &str, message: &str) -> pb::ReportEvent {
        pb::ReportEvent {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone(),
            kind: "said".into(),
            message: message.into(),
            key: key.into(),
        }
    }

    pub fn parted(&self, step: u64, suspicions: &[(u32, pb::Evidence)]) -> pb::Parted {
        let suspicion = |(index, evidence): &(u32, pb::Evidence)| pb::Suspicion {
            index: *index,
            evidence: (*evidence).into(),
        };
        pb::Parted {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone(),
            place: self.assign.place,
            step,
            suspicions: suspicions.iter().map(suspicion).collect(),
            message: "the ring broke".into(),
            polite: false,
        }
    }

    pub fn checkpoint(&self, step: u64) -> pb::Checkpoint {
        let pb::Fence { attempt, generation, generation_id } = self.fence();
        pb::Checkpoint {
            name: format!(
                "{}/checkpoints/{step:010}-{attempt:04}-{generation:04}-{generation_id}",
                self.assign.job
            ),
            step,
            files: vec![pb::CheckpointFile {
                name: "adapter_model.safetensors".into(),
                size_bytes: 1,
                sha256: "a".repeat(64),
            }],
            manifest_sha256: "c".repeat(64),
            ..Default::default()
        }
    }

    pub fn finished(&self, outcome: Outcome) -> pb::Finished {
        pb::Finished {
            job: self.assign.job.clone(),
            fence: self.assign.fence.clone(),
            outcome: Some(outcome),
            place: self.assign.place,
        }
    }

    pub fn succeeded(&self, step: u64) -> Outcome {
        let result = pb::JobResult { adapter_sha256: "a".repeat(64), ..Default::default() };
        let checkpoint = pb::Checkpoint { r#final: true, ..self.checkpoint(step) };
        Outcome::Succeeded(pb::Succeeded {
            checkpoint: Some(checkpoint),
            result: Some(result),
            ..Default::default()
        })
    }
}

/// The outcome of a member that was told to stop.
pub fn stopped() -> Outcome {
    Outcome::Stopped(pb::Stopped {})
}

/// The outcome of a member whose peers are gone.
pub fn lost() -> Outcome {
    Outcome::Lost(pb::Lost { message: "the ring broke".into(), suspects: vec![1] })
}

/// The outcome of a member that leaves politely.
pub fn released(step: u64) -> Outcome {
    Outcome::Released(pb::Released { step })
}

/// Enters a generation. False for a beginning that is repeated, or not newer whatever its id: workers do not heed it.
fn enter(listed: &Running, begin: &pb::Begin) -> bool {
    let attempt = begin.fence.as_ref().map_or(0, |fence| fence.attempt);
    let mut listed = listed.lock().expect("no panic");
    let Some(running) = listed.get_mut(&(begin.job.clone(), attempt)) else { return true };
    let number = |fence: &Option<pb::Fence>| fence.as_ref().map_or(0, |fence| fence.generation);
    let newer = number(&begin.fence) > number(&running.fence);
    if newer {
        running.fence.clone_from(&begin.fence);
    }
    newer
}

async fn beat(id: String, up: mpsc::Sender<pb::WorkerMessage>, running: Running, draining: Arc<Mutex<bool>>) {
    loop {
        let running = running.lock().expect("no panic").values().cloned().collect();
        let draining = *draining.lock().expect("no panic");
        let heartbeat = Up::Heartbeat(pb::Heartbeat { running, draining });
        let message = pb::WorkerMessage { worker_id: id.clone(), message: Some(heartbeat) };
        if up.send(message).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
