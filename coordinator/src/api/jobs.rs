//! The Jobs service: requests to rows and back; what jobs are and may do is said elsewhere.

use lorafleet_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, error::ApiError, page::Page};
use crate::{
    access::Caller,
    check::Checker,
    checkpoints,
    db::{DbError, within},
    events, gang,
    ids::JobId,
    job::JobState,
    points,
    queue::{self, JobRow},
    watch::{self, Watcher},
};

/// The service.
#[derive(Debug)]
pub struct JobsService {
    pub(super) services: Services,
    pub(super) checker: Checker,
}

impl JobsService {
    /// The job of this name. Another tenant's is not there, for a caller that speaks for one only.
    pub(super) async fn job_of(&self, caller: &Caller, field: &str, name: &str) -> Result<JobId, ApiError> {
        let job = JobId::from_name(name).map_err(|error| ApiError::name(field, &error))?;
        match caller.scope() {
            Some(tenant) if !within(queue::belongs(&self.services.pool, job, tenant)).await? => {
                Err(not_found(job))
            }
            _ => Ok(job),
        }
    }

    pub(super) async fn get(&self, job: JobId) -> Result<pb::Job, ApiError> {
        let pool = &self.services.pool;
        let read = async {
            let Some(row) = queue::get(pool, job).await? else { return Ok(None) };
            Ok::<_, DbError>(JobRow::messages(pool, vec![row]).await?.pop())
        };
        within(read).await?.ok_or_else(|| not_found(job))
    }

    async fn list(
        &self,
        caller: &Caller,
        request: pb::ListJobsRequest,
    ) -> Result<pb::ListJobsResponse, ApiError> {
        let states = read_states(&request.states)?;
        let tenant = self.services.tenant_filter(caller, &request.tenant).await?;
        let list = format!("jobs?{:?}&{tenant:?}", request.states);
        let page = Page::read(request.page_size, &request.page_token, list)?;
        let before = page.after_number()?.unwrap_or(i64::MAX);
        let pool = &self.services.pool;
        let mut rows = within(queue::list(pool, before, &states, tenant, page.read_size())).await?;
        let next_page_token = page.cut(&mut rows, |row| row.number.to_string());
        let jobs = within(JobRow::messages(pool, rows)).await?;
        Ok(pb::ListJobsResponse { jobs, next_page_token })
    }

    async fn cancel(&self, caller: &Caller, name: &str) -> Result<pb::Job, ApiError> {
        let job = self.job_of(caller, "name", name).await?;
        within(gang::cancel(&self.services.pool, job)).await?;
        let hub = &self.services.hub;
        hub.job_changed(job);
        hub.want_dispatch();
        self.get(job).await
    }

    async fn attempts(
        &self,
        caller: &Caller,
        request: pb::ListAttemptsRequest,
    ) -> Result<pb::ListAttemptsResponse, ApiError> {
        let (job, page) = self
            .sub_list(caller, &request.parent, "attempts", request.page_size, &request.page_token)
            .await?;
        let after = page.after_number()?.unwrap_or(0);
        let read = queue::list_attempts(&self.services.pool, job, after, page.read_size());
        let mut attempts = within(read).await?;
        let next_page_token = page.cut(&mut attempts, |attempt| attempt.attempt.to_string());
        Ok(pb::ListAttemptsResponse { attempts, next_page_token })
    }

    async fn events(
        &self,
        caller: &Caller,
        request: pb::ListEventsRequest,
    ) -> Result<pb::ListEventsResponse, ApiError> {
        let (job, page) =
            self.sub_list(caller, &request.parent, "events", request.page_size, &request.page_token).await?;
        let after = page.after_number()?.unwrap_or(0);
        let mut events = within(events::list(&self.services.pool, job, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut events, |event| event.number.to_string());
        Ok(pb::ListEventsResponse { events, next_page_token })
    }

    async fn checkpoints(
        &self,
        caller: &Caller,
        request: pb::ListCheckpointsRequest,
    ) -> Result<pb::ListCheckpointsResponse, ApiError> {
        let (job, page) = self
            .sub_list(caller, &request.parent, "checkpoints", request.page_size, &request.page_token)
            .await?;
        // A checkpoint's id begins with its step, so the ids sort as the list does.
        let before = page.after.as_deref();
        let read = checkpoints::list(&self.services.pool, job, before, page.read_size());
        let mut checkpoints = within(read).await?;
        let own_id = |c: &pb::Checkpoint| c.name.rsplit('/').next().unwrap_or_default().to_owned();
        let next_page_token = page.cut(&mut checkpoints, own_id);
        Ok(pb::ListCheckpointsResponse { checkpoints, next_page_token })
    }

    async fn points(
        &self,
        caller: &Caller,
        request: pb::ListMetricPointsRequest,
    ) -> Result<pb::ListMetricPointsResponse, ApiError> {
        let (job, page) =
            self.sub_list(caller, &request.parent, "points", request.page_size, &request.page_token).await?;
        let after = page.after_number()?.unwrap_or(-1);
        let mut points = within(points::list(&self.services.pool, job, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut points, |point| point.step.to_string());
        Ok(pb::ListMetricPointsResponse { points, next_page_token })
    }

    /// The job and page of a list below a job, once the job is known to exist.
    async fn sub_list(
        &self,
        caller: &Caller,
        parent: &str,
        list: &str,
        size: i32,
        token: &str,
    ) -> Result<(JobId, Page), ApiError> {
        let job = self.job_of(caller, "parent", parent).await?;
        let page = Page::read(size, token, format!("{parent}/{list}"))?;
        let exists = within(queue::exists(&self.services.pool, job)).await?;
        if exists { Ok((job, page)) } else { Err(not_found(job)) }
    }
}

pub(super) fn not_found(job: JobId) -> ApiError {
    ApiError::NotFound { what: job.name(), reason: "JOB_NOT_FOUND" }
}

fn read_states(states: &[i32]) -> Result<Vec<JobState>, ApiError> {
    let wrong = || ApiError::field("states", "names a state that does not exist");
    let read = |state: &i32| match pb::JobState::try_from(*state) {
        Ok(pb::JobState::Queued) => Ok(JobState::Queued),
        Ok(pb::JobState::Running) => Ok(JobState::Running),
        Ok(pb::JobState::Paused) => Ok(JobState::Paused),
        Ok(pb::JobState::Succeeded) => Ok(JobState::Succeeded),
        Ok(pb::JobState::Failed) => Ok(JobState::Failed),
        Ok(pb::JobState::Cancelled) => Ok(JobState::Cancelled),
        Ok(pb::JobState::Unspecified) | Err(_) => Err(wrong()),
    };
    states.iter().map(read).collect()
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, ApiError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl pb::jobs_server::Jobs for JobsService {
    type WatchJobStream = ReceiverStream<Result<pb::WatchJobResponse, Status>>;

    async fn create_job(&self, request: Request<pb::CreateJobRequest>) -> Answer<pb::Job> {
        let caller = Caller::of(&request)?;
        answer(self.create(&caller, request.into_inner()).await)
    }

    async fn create_jobs(&self, request: Request<pb::CreateJobsRequest>) -> Answer<pb::CreateJobsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.create_all(&caller, request.into_inner()).await)
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Answer<pb::Job> {
        let job = self.job_of(&Caller::of(&request)?, "name", &request.get_ref().name).await?;
        answer(self.get(job).await)
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Answer<pb::ListJobsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.list(&caller, request.into_inner()).await)
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        let job = self.job_of(&Caller::of(&request)?, "name", &request.get_ref().name).await?;
        self.get(job).await?;
        let request = request.into_inner();
        let Services { pool, hub, poll, shutdown, .. } = self.services.clone();
        let (outbox, updates) = mpsc::channel(watch::OUTBOX);
        let watcher = Watcher::new(pool, job, &request, outbox, poll);
        tokio::spawn(async move {
            tokio::select! {
                () = watcher.run(hub) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(updates)))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Answer<pb::Job> {
        answer(self.cancel(&Caller::of(&request)?, &request.get_ref().name).await)
    }

    async fn pause_job(&self, request: Request<pb::PauseJobRequest>) -> Answer<pb::Job> {
        answer(self.pause(&Caller::of(&request)?, &request.get_ref().name).await)
    }

    async fn resume_job(&self, request: Request<pb::ResumeJobRequest>) -> Answer<pb::Job> {
        answer(self.resume(&Caller::of(&request)?, &request.get_ref().name).await)
    }

    async fn explain_job(&self, request: Request<pb::ExplainJobRequest>) -> Answer<pb::ExplainJobResponse> {
        answer(self.explain(&Caller::of(&request)?, &request.get_ref().name).await)
    }

    async fn list_attempts(
        &self,
        request: Request<pb::ListAttemptsRequest>,
    ) -> Answer<pb::ListAttemptsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.attempts(&caller, request.into_inner()).await)
    }

    async fn list_events(&self, request: Request<pb::ListEventsRequest>) -> Answer<pb::ListEventsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.events(&caller, request.into_inner()).await)
    }

    async fn list_checkpoints(
        &self,
        request: Request<pb::ListCheckpointsRequest>,
    ) -> Answer<pb::ListCheckpointsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.checkpoints(&caller, request.into_inner()).await)
    }

    async fn list_metric_points(
        &self,
        request: Request<pb::ListMetricPointsRequest>,
    ) -> Answer<pb::ListMetricPointsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.points(&caller, request.into_inner()).await)
    }
}
