//! A coordinator that does what a test says, over a real connection.

#![allow(dead_code)]

mod fleet;
mod tiny;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::Stream;
use lorafleet_proto::v1 as pb;
use pb::{coordinator_message::Message as Down, worker_message::Message as Up};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

#[allow(unused_imports, reason = "not every test needs both")]
pub use self::fleet::{Fleet, Worker};

/// Nothing that a test waits for takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

type Outbound = Result<pb::CoordinatorMessage, Status>;

#[derive(Default)]
struct Seen {
    /// By worker id: its name and its collective's address.
    registered: HashMap<String, (String, String)>,
    /// By name: its present stream.
    streams: HashMap<String, mpsc::Sender<Outbound>>,
    /// By name: everything it said, but heartbeats.
    said: HashMap<String, Vec<Up>>,
    /// By name: its last heartbeat.
    heartbeats: HashMap<String, pb::Heartbeat>,
    attachments: u32,
    /// It answers nobody.
    away: bool,
}

impl Seen {
    /// Where peers reach the latest process of that name.
    fn address(&self, worker: &str) -> Option<String> {
        let newest = self
            .registered
            .iter()
            .filter(|(_, (name, _))| name == worker)
            .max_by_key(|(id, _)| (id.len(), id.as_str()));
        newest.map(|(_, (_, address))| address.clone())
    }
}

struct Shared {
    seen: Mutex<Seen>,
    news: Notify,
    store_url: String,
    /// Reports are acknowledged.
    acks: Mutex<bool>,
    /// Assignments bring it along.
    adapter: Mutex<Option<pb::Checkpoint>>,
}

/// The coordinator of a test.
#[derive(Clone)]
pub struct Coordinator {
    pub url: String,
    shared: Arc<Shared>,
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl pb::fleet_server::Fleet for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Outbound> + Send>>;

    async fn register_worker(
        &self,
        request: Request<pb::RegisterWorkerRequest>,
    ) -> Result<Response<pb::RegisterWorkerResponse>, Status> {
        let request = request.into_inner();
        let mut seen = self.0.seen.lock().unwrap();
        if seen.away {
            return Err(Status::unavailable("the coordinator is away"));
        }
        let worker_id = format!("w{}", seen.registered.len());
        seen.registered.insert(worker_id.clone(), (request.name, request.collective_address));
        Ok(Response::new(pb::RegisterWorkerResponse {
            worker_id,
            heartbeat_millis: 200,
            lease_millis: 5000,
            store_url: self.0.store_url.clone(),
        }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (down, outbound) = mpsc::channel(256);
        let (shared, mut inbound) = (self.0.clone(), request.into_inner());
        if shared.seen.lock().unwrap().away {
            return Err(Status::unavailable("the coordinator is away"));
        }
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                shared.take(message, &down);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn list_workers(
        &self,
        _request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}

impl Shared {
    fn take(&self, message: pb::WorkerMessage, down: &mpsc::Sender<Outbound>) {
        let mut seen = self.seen.lock().unwrap();
        let name = seen.registered[&message.worker_id].0.clone();
        let up = message.message.unwrap();
        if let Up::Heartbeat(heartbeat) = up {
            if !seen.streams.get(&name).is_some_and(|stream| stream.same_channel(down)) {
                seen.streams.insert(name.clone(), down.clone());
                seen.attachments += 1;
            }
            seen.heartbeats.insert(name, heartbeat);
        } else {
            if *self.acks.lock().unwrap()
                && let Some(ack) = ack(&up)
            {
                // What every member keeps is acknowledged to all.
                let of_gang = matches!(ack, Down::ProgressAck(_) | Down::EventAck(_));
                let streams = seen.streams.values().filter(|stream| of_gang || stream.same_channel(down));
                for stream in streams {
                    drop(stream.try_send(Ok(pb::CoordinatorMessage { message: Some(ack.clone()) })));
                }
            }
            seen.said.entry(name).or_default().push(up);
        }
        drop(seen);
        self.news.notify_waiters();
    }
}

fn ack(up: &Up) -> Option<Down> {
    Some(match up.clone() {
        Up::Progress(progress) => {
            let step = progress.points.iter().map(|point| point.step).max()?;
            Down::ProgressAck(pb::ProgressAck { job: progress.job, step })
        }
        Up::CheckpointWritten(written) => Down::CheckpointAck(pb::CheckpointAck {
            job: written.job,
            checkpoint: written.checkpoint?.name,
            expired: Vec::new(),
        }),
        Up::ReportEvent(report) => {
            Down::EventAck(pb::EventAck { job: report.job, fence: report.fence, keys: vec![report.key] })
        }
        Up::Finished(finished) => Down::FinishedAck(pb::FinishedAck {
            job: finished.job,
            fence: finished.fence,
            place: finished.place,
        }),
        Up::Heartbeat(_) | Up::Ready(_) | Up::Parted(_) => return None,
    })
}

impl Coordinator {
    pub async fn start(store_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            news: Notify::new(),
            store_url: store_url.to_owned(),
            acks: Mutex::new(true),
            adapter: Mutex::default(),
        });
        let service = pb::fleet_server::FleetServer::new(Service(shared.clone()));
        let serving = Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, shared }
    }

    /// Whether reports are acknowledged.
    pub fn set_acks(&self, acks: bool) {
        *self.shared.acks.lock().unwrap() = acks;
    }

    /// Assignments bring this adapter along.
    pub fn set_adapter(&self, adapter: Option<pb::Checkpoint>) {
        *self.shared.adapter.lock().unwrap() = adapter;
    }

    /// Ends a worker's stream.
    pub async fn hang_up(&self, worker: &str) {
        let stream = self.shared.seen.lock().unwrap().streams.remove(worker).unwrap();
        stream.send(Err(Status::unavailable("the coordinator restarts"))).await.unwrap();
    }

    /// Ends all streams, and answers nobody until it is back.
    pub async fn go_away(&self) {
        let streams = {
            let mut seen = self.shared.seen.lock().unwrap();
            seen.away = true;
            std::mem::take(&mut seen.streams)
        };
        for stream in streams.into_values() {
            // That of a worker that has died is closed.
            drop(stream.send(Err(Status::unavailable("the coordinator goes away"))).await);
        }
    }

    pub fn come_back(&self) {
        self.shared.seen.lock().unwrap().away = false;
    }

    pub fn attachments(&self) -> u32 {
        self.shared.seen.lock().unwrap().attachments
    }

    pub async fn send(&self, worker: &str, message: Down) {
        let stream = self.wait(|seen| seen.streams.get(worker).cloned()).await;
        stream.send(Ok(pb::CoordinatorMessage { message: Some(message) })).await.unwrap();
    }

    /// Gives a worker a place.
    pub async fn place(&self, job: &str, fence: &pb::Fence, spec: &pb::JobSpec, worker: &str, place: u32) {
        let assign = pb::Assign {
            job: job.to_owned(),
            fence: Some(pb::Fence { attempt: fence.attempt, ..Default::default() }),
            spec: Some(spec.clone()),
            place,
            adapter: self.shared.adapter.lock().unwrap().clone(),
        };
        self.send(worker, Down::Assign(assign)).await;
    }

    /// Assigns a job to a gang: places from 1.
    pub async fn assign(&self, job: &str, fence: &pb::Fence, spec: &pb::JobSpec, gang: &[&str]) {
        for (worker, place) in gang.iter().zip(1..) {
            self.place(job, fence, spec, worker, place).await;
        }
    }

    /// Waits until a worker has loaded base and data for its place.
    pub async fn ready(&self, worker: &str, fence: &pb::Fence) {
        let first = self.said(worker, |up| match up {
            Up::Ready(ready) => attempt_of(&ready.fence) == fence.attempt,
            Up::Finished(finished) => attempt_of(&finished.fence) == fence.attempt,
            _ => false,
        });
        let first = first.await;
        assert!(matches!(first, Up::Ready(_)), "{worker} is not ready: {first:?}");
    }

    /// Opens a generation with these workers in their places.
    pub async fn begin(&self, job: &str, fence: &pb::Fence, gang: &[(&str, u32)], resume: &[pb::Checkpoint]) {
        let mut members = Vec::new();
        for ((worker, place), index) in gang.iter().zip(0..) {
            let address = self.wait(|seen| seen.address(worker)).await;
            members.push(pb::Member { index, worker: worker.to_string(), address, place: *place });
        }
        for (worker, _) in gang {
            let begin = pb::Begin {
                job: job.to_owned(),
                fence: Some(fence.clone()),
                members: members.clone(),
                resume: resume.to_vec(),
            };
            self.send(worker, Down::Begin(begin)).await;
        }
    }

    /// Assigns a job to a gang, waits until all are ready, and lets them begin.
    pub async fn run(
        &self,
        job: &str,
        fence: &pb::Fence,
        spec: &pb::JobSpec,
        gang: &[&str],
        resume: &[pb::Checkpoint],
    ) {
        self.assign(job, fence, spec, gang).await;
        for worker in gang {
            self.ready(worker, fence).await;
        }
        let places: Vec<(&str, u32)> = gang.iter().copied().zip(1..).collect();
        self.begin(job, fence, &places, resume).await;
    }

    /// Waits until the worker has parted from exactly that generation.
    pub async fn parted(&self, worker: &str, fence: &pb::Fence) -> pb::Parted {
        let of_generation =
            |up: &Up| matches!(up, Up::Parted(parted) if parted.fence.as_ref() == Some(fence));
        match self.said(worker, of_generation).await {
            Up::Parted(parted) => parted,
            other => panic!("{other:?}"),
        }
    }

    pub async fn stop(&self, worker: &str, job: &str, fence: &pb::Fence, place: u32, reason: pb::StopReason) {
        let stop = pb::Stop { job: job.to_owned(), fence: Some(fence.clone()), reason: reason.into(), place };
        self.send(worker, Down::Stop(stop)).await;
    }

    /// Waits until the worker says something like it.
    pub async fn said(&self, worker: &str, like: impl Fn(&Up) -> bool) -> Up {
        self.wait(|seen| seen.said.get(worker)?.iter().find(|up| like(up)).cloned()).await
    }

    /// Waits for the end of the worker's run in the attempt.
    pub async fn outcome(&self, worker: &str, fence: &pb::Fence) -> pb::finished::Outcome {
        let of_run =
            |up: &Up| matches!(up, Up::Finished(finished) if attempt_of(&finished.fence) == fence.attempt);
        match self.said(worker, of_run).await {
            Up::Finished(finished) => finished.outcome.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the worker's run succeeded.
    pub async fn success(&self, worker: &str, fence: &pb::Fence) -> pb::Succeeded {
        match self.outcome(worker, fence).await {
            pb::finished::Outcome::Succeeded(succeeded) => succeeded,
            other => panic!("{worker}: {other:?}"),
        }
    }

    /// Waits until the worker has reported this step in the generation.
    pub async fn step(&self, worker: &str, fence: &pb::Fence, step: u64) {
        self.said(worker, |up| {
            matches!(up, Up::Progress(progress) if progress.fence.as_ref() == Some(fence)
                && progress.points.iter().any(|point| point.step >= step))
        })
        .await;
    }

    /// All points that the worker has reported in the attempt, by step.
    pub fn points(&self, worker: &str, fence: &pb::Fence) -> BTreeMap<u64, pb::MetricPoint> {
        let seen = self.shared.seen.lock().unwrap();
        let of_run = |up: &Up| match up {
            Up::Progress(progress) if attempt_of(&progress.fence) == fence.attempt => progress.points.clone(),
            _ => Vec::new(),
        };
        let said = seen.said.get(worker).into_iter().flatten();
        said.flat_map(of_run).map(|point| (point.step, point)).collect()
    }

    /// Keys of the events that the worker has reported, in order.
    pub fn keys(&self, worker: &str) -> Vec<String> {
        let seen = self.shared.seen.lock().unwrap();
        let key = |up: &Up| match up {
            Up::ReportEvent(event) => Some(event.key.clone()),
            _ => None,
        };
        seen.said[worker].iter().filter_map(key).collect()
    }

    /// Kinds of the events that the worker has reported, in order.
    pub fn events(&self, worker: &str) -> Vec<String> {
        let seen = self.shared.seen.lock().unwrap();
        let kind = |up: &Up| match up {
            Up::ReportEvent(event) => Some(event.kind.clone()),
            _ => None,
        };
        seen.said[worker].iter().filter_map(kind).collect()
    }

    /// Checkpoints that the worker has reported, newest first.
    pub fn checkpoints(&self, worker: &str) -> Vec<pb::Checkpoint> {
        let seen = self.shared.seen.lock().unwrap();
        let checkpoint = |up: &Up| match up {
            Up::CheckpointWritten(written) => written.checkpoint.clone(),
            _ => None,
        };
        let mut all: Vec<_> = seen.said[worker].iter().filter_map(checkpoint).collect();
        all.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.step));
        all.dedup();
        all
    }

    /// Waits until the worker's last heartbeat is like this.
    pub async fn heartbeat(&self, worker: &str, like: impl Fn(&pb::Heartbeat) -> bool) {
        self.wait(|seen| seen.heartbeats.get(worker).filter(|heartbeat| like(heartbeat)).cloned()).await;
    }

    async fn wait<T>(&self, look: impl Fn(&Seen) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let news = self.shared.news.notified();
                if let Some(found) = look(&self.shared.seen.lock().unwrap()) {
                    return found;
                }
                drop(tokio::time::timeout(Duration::from_millis(100), news).await);
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("what the test waits for does not come")
    }
}

fn attempt_of(fence: &Option<pb::Fence>) -> u32 {
    fence.as_ref().map_or(0, |fence| fence.attempt)
}

/// The attempt's fence of that generation.
pub fn generation(attempt: u32, generation: u32) -> pb::Fence {
    pb::Fence { attempt, generation, generation_id: format!("{attempt:08x}{generation:08x}") }
}

/// The fence of the attempt's first generation.
pub fn fence(attempt: u32) -> pb::Fence {
    generation(attempt, 1)
}
