//! A coordinator that answers from a script kept in memory, and notes what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use lorafleet_proto::v1::{
    self as pb,
    artifact_ref::Place,
    artifacts_server::{Artifacts, ArtifactsServer},
    download_file_response as down,
    fleet_server::{Fleet, FleetServer},
    jobs_server::{Jobs, JobsServer},
    upload_file_request as up,
    watch_job_response::Update,
};
use lorafleet_spec::digest::sha256_hex;
use tokio::net::TcpListener;
use tokio_stream::{Iter, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Stream<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

/// What the coordinator has and does.
#[derive(Default)]
pub struct State {
    pub jobs: Vec<pb::Job>,
    pub attempts: Vec<pb::Attempt>,
    pub events: Vec<pb::JobEvent>,
    pub checkpoints: Vec<pb::Checkpoint>,
    pub workers: Vec<pb::Worker>,
    /// Stored files by their place.
    pub files: HashMap<String, Vec<u8>>,
    /// Places in the order in which they were uploaded.
    pub imports: Vec<pb::ImportDataRequest>,
    pub hints: Vec<pb::DataHint>,
    pub uploads: Vec<String>,
    pub created: Vec<pb::CreateJobRequest>,
    /// CreateJob answers with these first.
    pub create_errors: VecDeque<Status>,
    /// What each WatchJob brings, one call after the other.
    pub watches: VecDeque<Vec<Result<Update, Status>>>,
    pub watched: Vec<pb::WatchJobRequest>,
    /// Downloads break off after their first chunk, so many times.
    pub broken_downloads: u32,
}

/// The running server; its handle to the script.
pub struct Coordinator {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

impl Coordinator {
    /// Listens on a free port of the loopback interface.
    pub async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let service = Service(state.clone());
        let server = Server::builder()
            .add_service(JobsServer::new(service.clone()))
            .add_service(FleetServer::new(service.clone()))
            .add_service(ArtifactsServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn job(&self, name: &str) -> Result<pb::Job, Status> {
        let found = self.jobs.iter().find(|job| job.name == name).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no job {name}")))
    }
}

/// The place of a file as a text.
pub fn place(artifact: &Option<pb::ArtifactRef>) -> String {
    match artifact.clone().unwrap().place.unwrap() {
        Place::DatasetSha256(sha256) => format!("datasets/{sha256}"),
        Place::BaseFile(file) => format!("bases/{}/{}", file.base_sha256, file.name),
        Place::CheckpointFile(file) => format!("{}/{}", file.checkpoint, file.name),
    }
}

fn stream<T>(items: Vec<Result<T, Status>>) -> Response<Stream<T>> {
    Response::new(tokio_stream::iter(items))
}

#[tonic::async_trait]
impl Jobs for Service {
    type WatchJobStream = Stream<pb::WatchJobResponse>;

    async fn create_job(&self, request: Request<pb::CreateJobRequest>) -> Result<Response<pb::Job>, Status> {
        let (mut state, request) = (self.state(), request.into_inner());
        state.created.push(request.clone());
        if let Some(error) = state.create_errors.pop_front() {
            return Err(error);
        }
        let job = pb::Job {
            name: "jobs/new".into(),
            spec: request.spec,
            state: pb::JobState::Queued.into(),
            ..Default::default()
        };
        state.jobs.push(job.clone());
        Ok(Response::new(job))
    }

    async fn create_jobs(
        &self,
        request: Request<pb::CreateJobsRequest>,
    ) -> Result<Response<pb::CreateJobsResponse>, Status> {
        let named = |(i, spec)| pb::Job { name: format!("jobs/{i}"), spec: Some(spec), ..Default::default() };
        let jobs = (1..).zip(request.into_inner().specs).map(named).collect();
        Ok(Response::new(pb::CreateJobsResponse { jobs }))
    }

    async fn pause_job(&self, request: Request<pb::PauseJobRequest>) -> Result<Response<pb::Job>, Status> {
        let mut job = self.state().job(&request.into_inner().name)?;
        job.set_state(pb::JobState::Paused);
        Ok(Response::new(job))
    }

    async fn resume_job(&self, request: Request<pb::ResumeJobRequest>) -> Result<Response<pb::Job>, Status> {
        let mut job = self.state().job(&request.into_inner().name)?;
        job.set_state(pb::JobState::Queued);
        Ok(Response::new(job))
    }

    async fn explain_job(
        &self,
        request: Request<pb::ExplainJobRequest>,
    ) -> Result<Response<pb::ExplainJobResponse>, Status> {
        let job = self.state().job(&request.into_inner().name)?;
        let explanation = format!("is queued: it {}", job.state_message);
        Ok(Response::new(pb::ExplainJobResponse { explanation, state: job.state, ..Default::default() }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::Job>, Status> {
        self.state().job(&request.into_inner().name).map(Response::new)
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        let request = request.into_inner();
        let wanted = |job: &&pb::Job| request.states.is_empty() || request.states.contains(&job.state);
        let jobs: Vec<_> = self.state().jobs.iter().filter(wanted).cloned().collect();
        // Pages of two, so that a client must turn them.
        let from: usize = request.page_token.parse().unwrap_or(0);
        let to = jobs.len().min(from + 2);
        let next_page_token = if to < jobs.len() { to.to_string() } else { String::new() };
        Ok(Response::new(pb::ListJobsResponse { jobs: jobs[from..to].to_vec(), next_page_token }))
    }

    async fn watch_job(
        &self,
        request: Request<pb::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let (mut state, request) = (self.state(), request.into_inner());
        state.job(&request.name)?;
        state.watched.push(request);
        let updates = state.watches.pop_front().unwrap_or_default();
        let message = |update| pb::WatchJobResponse { update: Some(update) };
        Ok(stream(updates.into_iter().map(|update| update.map(message)).collect()))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Result<Response<pb::Job>, Status> {
        let mut job = self.state().job(&request.into_inner().name)?;
        if job.state() != pb::JobState::Running {
            return Err(Status::failed_precondition(format!("{} has ended", job.name)));
        }
        job.set_state(pb::JobState::Cancelled);
        Ok(Response::new(job))
    }

    async fn list_attempts(
        &self,
        _: Request<pb::ListAttemptsRequest>,
    ) -> Result<Response<pb::ListAttemptsResponse>, Status> {
        let attempts = self.state().attempts.clone();
        Ok(Response::new(pb::ListAttemptsResponse { attempts, ..Default::default() }))
    }

    async fn list_events(
        &self,
        _: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let events = self.state().events.clone();
        Ok(Response::new(pb::ListEventsResponse { events, ..Default::default() }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<pb::ListCheckpointsRequest>,
    ) -> Result<Response<pb::ListCheckpointsResponse>, Status> {
        let checkpoints = self.state().checkpoints.clone();
        Ok(Response::new(pb::ListCheckpointsResponse { checkpoints, ..Default::default() }))
    }

    async fn list_metric_points(
        &self,
        _: Request<pb::ListMetricPointsRequest>,
    ) -> Result<Response<pb::ListMetricPointsResponse>, Status> {
        Err(Status::unimplemented("no client asks for it yet"))
    }
}

#[tonic::async_trait]
impl Fleet for Service {
    type AttachStream = Stream<pb::CoordinatorMessage>;

    async fn register_worker(
        &self,
        _: Request<pb::RegisterWorkerRequest>,
    ) -> Result<Response<pb::RegisterWorkerResponse>, Status> {
        Err(Status::unimplemented("for workers"))
    }

    async fn attach(
        &self,
        _: Request<Streaming<pb::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("for workers"))
    }

    async fn list_workers(
        &self,
        _: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        let workers = self.state().workers.clone();
        Ok(Response::new(pb::ListWorkersResponse { workers, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Artifacts for Service {
    type DownloadFileStream = Stream<pb::DownloadFileResponse>;

    async fn stat_artifact(
        &self,
        request: Request<pb::StatArtifactRequest>,
    ) -> Result<Response<pb::StatArtifactResponse>, Status> {
        let state = self.state();
        let file = state.files.get(&place(&request.into_inner().artifact));
        let size_bytes = file.map_or(0, |file| file.len() as u64);
        Ok(Response::new(pb::StatArtifactResponse { present: file.is_some(), size_bytes }))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<pb::UploadFileRequest>>,
    ) -> Result<Response<pb::UploadFileResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(up::Part::Header(header)) = first else {
            return Err(Status::invalid_argument("the header comes first"));
        };
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await? {
            match message.part {
                Some(up::Part::Chunk(chunk)) if chunk.len() <= 1 << 20 => bytes.extend(chunk),
                _ => return Err(Status::invalid_argument("chunks of at most 1 MiB follow the header")),
            }
        }
        if bytes.len() as u64 != header.size_bytes {
            return Err(Status::data_loss("another size than promised"));
        }
        if let Some(Place::BaseFile(file)) =
            header.artifact.as_ref().and_then(|artifact| artifact.place.as_ref())
            && sha256_hex(&bytes) != file.sha256
        {
            return Err(Status::data_loss("another digest than promised"));
        }
        let place = place(&header.artifact);
        let mut state = self.state();
        state.hints.extend(header.data);
        state.uploads.push(place.clone());
        state.files.insert(place, bytes);
        Ok(Response::new(pb::UploadFileResponse { already_present: false, examples: 0 }))
    }

    async fn import_data(
        &self,
        request: Request<pb::ImportDataRequest>,
    ) -> Result<Response<pb::ImportDataResponse>, Status> {
        let request = request.into_inner();
        let file = |name: &str| pb::DataRef {
            source: request.url.replace('*', name),
            sha256: sha256_hex(name.as_bytes()),
        };
        let files = vec![file("a"), file("b")];
        self.state().imports.push(request);
        Ok(Response::new(pb::ImportDataResponse { files, examples: 2, size_bytes: 100 }))
    }

    async fn download_file(
        &self,
        request: Request<pb::DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        let (mut state, place) = (self.state(), place(&request.into_inner().artifact));
        let file =
            state.files.get(&place).cloned().ok_or_else(|| Status::not_found(format!("no {place}")))?;
        let part = |part| Ok(pb::DownloadFileResponse { part: Some(part) });
        let mut parts = vec![part(down::Part::Header(pb::DownloadHeader { size_bytes: file.len() as u64 }))];
        parts.extend(file.chunks(1 << 20).map(|chunk| part(down::Part::Chunk(chunk.to_vec()))));
        if state.broken_downloads > 0 {
            state.broken_downloads -= 1;
            parts.truncate(2);
            parts.push(Err(Status::unavailable("going down")));
        }
        Ok(stream(parts))
    }
}
