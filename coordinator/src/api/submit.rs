//! Submission: one job, or several that come after each other, checked whole and stored at once.

use lorafleet_proto::v1 as pb;
use lorafleet_spec::{FieldError, fill_defaults, job::submission::Misplaced};
use uuid::Uuid;

use super::{
    error::ApiError,
    jobs::JobsService,
    links,
    tenants::{fill_tenant, tenant_gone},
};
use crate::{
    access::Caller,
    check::CheckError,
    convert,
    db::within,
    ids::JobId,
    job::JobState,
    queue::{self, NewJob},
    quota::AdmitError,
};

/// Jobs of one submission.
const MAX_JOBS: usize = 1000;

impl JobsService {
    pub(super) async fn create(
        &self,
        caller: &Caller,
        request: pb::CreateJobRequest,
    ) -> Result<pb::Job, ApiError> {
        let spec = request.spec.ok_or_else(|| ApiError::field("spec", "is required"))?;
        let (id, validate_only) = (request.request_id, request.validate_only);
        let jobs = self.submit(caller, vec![spec], "spec", &id, validate_only).await?;
        jobs.into_iter().next().ok_or_else(|| ApiError::field("spec", "is required"))
    }

    pub(super) async fn create_all(
        &self,
        caller: &Caller,
        request: pb::CreateJobsRequest,
    ) -> Result<pb::CreateJobsResponse, ApiError> {
        let pb::CreateJobsRequest { specs, request_id, validate_only } = request;
        if specs.is_empty() || specs.len() > MAX_JOBS {
            let message = format!("has {} jobs; it must have 1 to {MAX_JOBS}", specs.len());
            return Err(ApiError::field("specs", message));
        }
        let jobs = self.submit(caller, specs, "specs", &request_id, validate_only).await?;
        Ok(pb::CreateJobsResponse { jobs })
    }

    /// `field` is where the request holds the jobs: `spec`, or `specs` with an index.
    async fn submit(
        &self,
        caller: &Caller,
        mut specs: Vec<pb::JobSpec>,
        field: &str,
        request_id: &str,
        validate_only: bool,
    ) -> Result<Vec<pb::Job>, ApiError> {
        let request = match request_id {
            "" => None,
            text => Some(Uuid::parse_str(text).map_err(|_| ApiError::field("request_id", "is not a UUID"))?),
        };
        for (i, spec) in specs.iter_mut().enumerate() {
            fill_defaults(spec);
            fill_tenant(spec, caller, &path(field, i))?;
        }
        // A repeated request is answered from its jobs alone: what they name may be gone from the store by now.
        if let Some(first) = request.filter(|_| !validate_only)
            && let Some(jobs) = self.before(&specs, field, first).await?
        {
            return Ok(jobs);
        }
        let ids: Vec<JobId> = specs.iter().map(|_| JobId::new()).collect();
        let order = name_siblings(&mut specs, field, &ids)?;
        for (i, spec) in specs.iter_mut().enumerate() {
            let path = path(field, i);
            self.checker.check(spec).await.map_err(|error| in_spec(error, &path))?;
            self.services.tenant_of(spec, &path).await?;
        }
        self.check_links(caller, &specs, field, &ids).await?;
        if validate_only {
            return Ok(specs
                .into_iter()
                .map(|spec| pb::Job { spec: Some(spec), ..pb::Job::default() })
                .collect());
        }
        let news: Vec<NewJob> = (0..)
            .zip(&specs)
            .map(|(i, spec)| NewJob { spec: spec.clone(), request_id: request.map(|id| nth(id, i)) })
            .collect();
        let ordered: Vec<(JobId, &NewJob)> = order.iter().map(|&i| (ids[i], &news[i])).collect();
        let stored = match ordered.as_slice() {
            [(id, new)] if new.spec.queue.as_ref().is_none_or(|queue| queue.after.is_empty()) => {
                self.store_one(*id, new).await.map(|job| Some(vec![job]))
            }
            several => within(queue::create_all(&self.services.pool, several)).await.map(|_| None),
        };
        let stored = match (stored, request) {
            // The same request came by another way at the same instant.
            (Err(error), Some(first)) if queue::is_repeated(&error) => {
                return self.before(&specs, field, first).await?.ok_or_else(|| error.into());
            }
            (Err(error), _) if queue::is_tenant_gone(&error) => return Err(tenant_gone(field)),
            (done, _) => done?,
        };
        self.services.hub.queue_grew();
        match stored {
            Some(jobs) => Ok(jobs),
            None => self.all(&ids).await,
        }
    }

    /// Stores a job together with what others submit at this moment; as it is then.
    async fn store_one(&self, id: JobId, new: &NewJob) -> Result<pb::Job, AdmitError> {
        let create_time = within(self.services.submissions.bring((id, new.clone()))).await??;
        Ok(pb::Job {
            name: id.name(),
            state: pb::JobState::from(JobState::Queued).into(),
            spec: Some(new.spec.clone()),
            state_message: queue::held_at_first(new)?,
            create_time: Some(convert::timestamp(create_time)),
            ..pb::Job::default()
        })
    }

    /// The jobs that this request made before, if it did.
    async fn before(
        &self,
        specs: &[pb::JobSpec],
        field: &str,
        first: Uuid,
    ) -> Result<Option<Vec<pb::Job>>, ApiError> {
        let pool = &self.services.pool;
        let Some((job, stored)) = within(queue::by_request_id(pool, first)).await? else { return Ok(None) };
        let used = || ApiError::RequestIdUsed { request_id: first.to_string(), job: job.name() };
        let (mut ids, mut before) = (vec![job], vec![stored]);
        for i in 1..specs.len() as u128 {
            let found = within(queue::by_request_id(pool, nth(first, i))).await?;
            let (job, stored) = found.ok_or_else(used)?;
            ids.push(job);
            before.push(stored);
        }
        let mut specs = specs.to_vec();
        name_siblings(&mut specs, field, &ids)?;
        if before != specs {
            return Err(used());
        }
        self.all(&ids).await.map(Some)
    }

    /// What the jobs say of others.
    async fn check_links(
        &self,
        caller: &Caller,
        specs: &[pb::JobSpec],
        field: &str,
        ids: &[JobId],
    ) -> Result<(), ApiError> {
        let jobs: Vec<(JobId, &pb::JobSpec)> = ids.iter().copied().zip(specs).collect();
        let found = within(links::mistakes(&self.services.pool, caller.scope(), &jobs)).await?;
        let at = |(i, errors): (usize, Vec<FieldError>)| {
            let path = path(field, i);
            errors.into_iter().map(move |e| FieldError::new(format!("{path}.{}", e.path), e.message))
        };
        let errors: Vec<FieldError> = found.into_iter().enumerate().flat_map(at).collect();
        if errors.is_empty() { Ok(()) } else { Err(ApiError::Invalid(errors)) }
    }

    async fn all(&self, ids: &[JobId]) -> Result<Vec<pb::Job>, ApiError> {
        let mut jobs = Vec::with_capacity(ids.len());
        for id in ids {
            jobs.push(self.get(*id).await?);
        }
        Ok(jobs)
    }
}

/// Replaces names of siblings by their resource names; gives the order in which to store them.
fn name_siblings(specs: &mut [pb::JobSpec], field: &str, ids: &[JobId]) -> Result<Vec<usize>, ApiError> {
    links::name_siblings(specs, ids).map_err(|wrong| {
        let at = |wrong: Misplaced| {
            FieldError::new(format!("{}.{}", path(field, wrong.job), wrong.error.path), wrong.error.message)
        };
        ApiError::Invalid(wrong.into_iter().map(at).collect())
    })
}

/// The key of idempotence of one of several jobs: the request's own for the first, and others by its last bits.
fn nth(request: Uuid, n: u128) -> Uuid {
    Uuid::from_u128(request.as_u128() ^ n)
}

/// Where one of the jobs stands in the request.
fn path(field: &str, index: usize) -> String {
    if field == "spec" { field.to_owned() } else { format!("{field}[{index}]") }
}

/// The check speaks of `spec`; the request may hold several.
fn in_spec(error: CheckError, path: &str) -> ApiError {
    match ApiError::from(error) {
        ApiError::Invalid(errors) => {
            let at = |error: FieldError| {
                let rest = error.path.strip_prefix("spec").unwrap_or(&error.path);
                FieldError::new(format!("{path}{rest}"), error.message)
            };
            ApiError::Invalid(errors.into_iter().map(at).collect())
        }
        other => other,
    }
}
