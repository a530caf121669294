//! One connection to a coordinator and the unary calls over it, each with a deadline, retried where that is safe.

use std::{future::Future, time::Duration};

use lorafleet_proto::bearer::Bearer;
use lorafleet_spec::FieldError;
use tonic::{
    Request, Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::{
    error::{ClientError, root_cause},
    pb::{self, fleet_client::FleetClient, jobs_client::JobsClient},
    retry::idempotent,
};

/// A unary call that has no answer by then has failed.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// A connection that is not there by then will not be.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Pings tell a dead peer from a quiet one.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer: a page of a thousand jobs with their specs fits many times over.
const MAX_MESSAGE: usize = 32 << 20;
/// The page size that is asked for when everything is wanted.
pub(crate) const PAGE: i32 = 1000;
/// A listing ends here at the latest, whatever the server says.
const MAX_PAGES: usize = 1000;

/// A connection that shows the caller's token in each call, if there is one.
pub(crate) type Line = InterceptedService<Channel, Bearer>;

/// A connection to a coordinator. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) channel: Line,
    url: String,
}

impl Client {
    /// Connects to the coordinator at `url` (`http://host:port`), without a token.
    ///
    /// # Errors
    /// `Invalid` when `url` is none, `Unreachable` when nobody answers within five seconds.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        Self::connect_with_token(url, "").await
    }

    /// Connects to the coordinator at `url`, and shows it `token` in each call; an empty one is none.
    ///
    /// # Errors
    /// As [`Client::connect`]; `Invalid` when the token cannot be sent.
    pub async fn connect_with_token(url: &str, token: &str) -> Result<Self, ClientError> {
        let wrong = |field: &str, message| {
            ClientError::invalid("the command line is not right:", vec![FieldError::new(field, message)])
        };
        let bearer = Bearer::new(token).map_err(|error| wrong("--token", error.to_string()))?;
        let endpoint = Endpoint::from_shared(url.to_owned())
            .ok()
            .filter(|endpoint| matches!(endpoint.uri().scheme_str(), Some("http")))
            .ok_or_else(|| {
                let message = format!("'{url}' is not a URL like http://127.0.0.1:7400");
                wrong("--coordinator", message)
            })?
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ClientError::Unreachable { url: url.to_owned(), reason: root_cause(&error) })?;
        Ok(Self { channel: InterceptedService::new(channel, bearer), url: url.to_owned() })
    }

    /// The coordinator's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stores a job; with the same `request_id` the same job, so it is retried safely.
    ///
    /// # Errors
    /// `Invalid` with each mistake in the spec, `NotFound` when base or data were never uploaded, `Refused` when
    /// the request id was used for another spec.
    pub async fn create_job(&self, spec: &pb::JobSpec, request_id: &str) -> Result<pb::Job, ClientError> {
        let request = pb::CreateJobRequest {
            spec: Some(spec.clone()),
            request_id: request_id.to_owned(),
            validate_only: false,
        };
        self.unary(request, |channel, request| async move { jobs(channel).create_job(request).await }).await
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_job(&self, name: &str) -> Result<pb::Job, ClientError> {
        let request = pb::GetJobRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { jobs(channel).get_job(request).await }).await
    }

    /// Ends a job that has not ended.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when it has ended.
    pub async fn cancel_job(&self, name: &str) -> Result<pb::Job, ClientError> {
        let request = pb::CancelJobRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { jobs(channel).cancel_job(request).await }).await
    }

    /// Stores several jobs at once, or none; with the same `request_id` the same jobs.
    ///
    /// # Errors
    /// As [`Client::create_job`].
    pub async fn create_jobs(
        &self,
        specs: &[pb::JobSpec],
        request_id: &str,
    ) -> Result<Vec<pb::Job>, ClientError> {
        let request = pb::CreateJobsRequest {
            specs: specs.to_vec(),
            request_id: request_id.to_owned(),
            validate_only: false,
        };
        let made =
            self.unary(request, |channel, request| async move { jobs(channel).create_jobs(request).await });
        Ok(made.await?.jobs)
    }

    /// Takes a job off its workers, with a checkpoint, until it is resumed.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when it has ended.
    pub async fn pause_job(&self, name: &str) -> Result<pb::Job, ClientError> {
        let request = pb::PauseJobRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { jobs(channel).pause_job(request).await }).await
    }

    /// Puts a paused job back into the queue.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when it is not paused.
    pub async fn resume_job(&self, name: &str) -> Result<pb::Job, ClientError> {
        let request = pb::ResumeJobRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { jobs(channel).resume_job(request).await }).await
    }

    /// Why a job stands where it does.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn explain_job(&self, name: &str) -> Result<pb::ExplainJobResponse, ClientError> {
        let request = pb::ExplainJobRequest { name: name.to_owned() };
        self.unary(request, |channel, request| async move { jobs(channel).explain_job(request).await }).await
    }

    /// The newest `limit` jobs in one of `states` (empty: any) and of `tenant` (empty: any), newest first.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn list_jobs(
        &self,
        states: &[pb::JobState],
        tenant: &str,
        limit: usize,
    ) -> Result<Vec<pb::Job>, ClientError> {
        let states: Vec<i32> = states.iter().map(|&state| state.into()).collect();
        let page_size = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        pages(limit, |page_token| {
            let request = pb::ListJobsRequest {
                page_size,
                page_token,
                states: states.clone(),
                tenant: tenant.to_owned(),
            };
            async {
                let page = self
                    .unary(request, |channel, request| async move { jobs(channel).list_jobs(request).await })
                    .await?;
                Ok((page.jobs, page.next_page_token))
            }
        })
        .await
    }

    /// The history of a job, first to last.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn list_events(&self, job: &str) -> Result<Vec<pb::JobEvent>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListEventsRequest { parent: job.to_owned(), page_size: PAGE, page_token };
            async {
                let page =
                    self.unary(request, |channel, request| async move {
                        jobs(channel).list_events(request).await
                    })
                    .await?;
                Ok((page.events, page.next_page_token))
            }
        })
        .await
    }

    /// The tries at running a job, first to last.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn list_attempts(&self, job: &str) -> Result<Vec<pb::Attempt>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListAttemptsRequest { parent: job.to_owned(), page_size: PAGE, page_token };
            async {
                let page =
                    self.unary(request, |channel, request| async move {
                        jobs(channel).list_attempts(request).await
                    })
                    .await?;
                Ok((page.attempts, page.next_page_token))
            }
        })
        .await
    }

    /// The whole checkpoints of a job, newest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn list_checkpoints(&self, job: &str) -> Result<Vec<pb::Checkpoint>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListCheckpointsRequest { parent: job.to_owned(), page_size: PAGE, page_token };
            async {
                let page = self
                    .unary(request, |channel, request| async move {
                        jobs(channel).list_checkpoints(request).await
                    })
                    .await?;
                Ok((page.checkpoints, page.next_page_token))
            }
        })
        .await
    }

    /// The workers, live ones first.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn list_workers(&self) -> Result<Vec<pb::Worker>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListWorkersRequest { page_size: PAGE, page_token };
            async {
                let page = self
                    .unary(request, |channel, request| async move {
                        FleetClient::new(channel).list_workers(request).await
                    })
                    .await?;
                Ok((page.workers, page.next_page_token))
            }
        })
        .await
    }

    /// Makes one idempotent call: with a deadline, retried while the coordinator is away.
    pub(crate) async fn unary<Req, Resp, F>(
        &self,
        request: Req,
        send: impl Fn(Line, Request<Req>) -> F,
    ) -> Result<Resp, ClientError>
    where
        Req: Clone,
        F: Future<Output = Result<Response<Resp>, Status>>,
    {
        let answer = idempotent(|| {
            let mut request = Request::new(request.clone());
            request.set_timeout(CALL_DEADLINE);
            send(self.channel.clone(), request)
        });
        answer.await.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    /// Makes one call that must not be repeated, with a deadline.
    pub(crate) async fn once<Req, Resp, F>(
        &self,
        request: Req,
        send: impl FnOnce(Line, Request<Req>) -> F,
    ) -> Result<Resp, ClientError>
    where
        F: Future<Output = Result<Response<Resp>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(CALL_DEADLINE);
        let answer = send(self.channel.clone(), request).await;
        answer.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    /// What a status from this coordinator means.
    pub(crate) fn error(&self, status: &Status) -> ClientError {
        ClientError::from_status(&self.url, status)
    }
}

pub(crate) fn jobs(channel: Line) -> JobsClient<Line> {
    JobsClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// Collects a listing page by page until it ends or `limit` entries are there.
pub(crate) async fn pages<T, F>(
    limit: usize,
    mut fetch: impl FnMut(String) -> F,
) -> Result<Vec<T>, ClientError>
where
    F: Future<Output = Result<(Vec<T>, String), ClientError>>,
{
    let (mut all, mut token) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let (page, next) = fetch(token).await?;
        all.extend(page);
        if next.is_empty() || all.len() >= limit {
            all.truncate(limit);
            return Ok(all);
        }
        token = next;
    }
    Err(ClientError::Protocol(format!("a listing did not end within {MAX_PAGES} pages")))
}
