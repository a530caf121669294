//! The Sweeps service: requests to rows and back; what a sweep is and does is said elsewhere.

use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    FieldError,
    sweep::{self as expand, Mistakes, Sweep},
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    Services,
    error::ApiError,
    links,
    page::Page,
    tenants::{fill_tenant, tenant_gone},
};
use crate::{
    access::Caller,
    check::{CheckError, Checker},
    db::within,
    ids::{JobId, SweepId},
    queue,
    sweeps::{self, CancelSweepError, Created, NewSweep},
};

/// The service.
#[derive(Debug)]
pub struct SweepsService {
    pub(super) services: Services,
    pub(super) checker: Checker,
}

impl SweepsService {
    async fn create(&self, caller: &Caller, request: pb::CreateSweepRequest) -> Result<pb::Sweep, ApiError> {
        let request_id = match request.request_id.as_str() {
            "" => None,
            text => Some(Uuid::parse_str(text).map_err(|_| ApiError::field("request_id", "is not a UUID"))?),
        };
        let mut spec = request.spec.ok_or_else(|| ApiError::field("spec", "is required"))?;
        fill_tenant(&mut spec, caller, "spec")?;
        let sweep = request.sweep.ok_or_else(|| ApiError::field("sweep", "is required"))?;
        let pool = &self.services.pool;
        // A repeated request is answered from what is stored: what it names may be gone from the store by now.
        let before = match request_id {
            Some(id) => within(sweeps::by_request_id(pool, id)).await?.map(Box::new),
            None => None,
        };
        let created = match before {
            Some(before) => Created::Before(before),
            None => {
                let expanded = self.check(caller, &spec, &sweep).await?;
                self.services.tenant_of(&spec, "spec").await?;
                let new = NewSweep { spec: spec.clone(), sweep: sweep.clone(), request_id, expanded };
                match within(sweeps::create(pool, &new)).await {
                    Err(error) if queue::is_tenant_gone(&error) => return Err(tenant_gone("spec")),
                    done => done?,
                }
            }
        };
        let id = match created {
            Created::New(id) => id,
            Created::Before(before) if before.1 == spec && before.2 == sweep => before.0,
            Created::Before(before) => {
                return Err(ApiError::RequestIdUsed { request_id: request.request_id, job: before.0.name() });
            }
        };
        self.services.hub.queue_grew();
        self.get(id).await
    }

    /// Works the children out and checks each as CreateJob does. All mistakes at once.
    async fn check(
        &self,
        caller: &Caller,
        spec: &pb::JobSpec,
        sweep: &pb::SweepSpec,
    ) -> Result<Sweep, ApiError> {
        let mut expanded =
            expand::expand(spec, sweep).map_err(|errors| ApiError::Invalid(in_request(errors)))?;
        let mut first: Option<pb::JobSpec> = None;
        let mut mistakes = Mistakes::default();
        for child in &mut expanded.children {
            let checked = match &first {
                None => self.checker.check(&mut child.spec).await,
                Some(first) => self.checker.check_like(&mut child.spec, first).await,
            };
            match checked {
                Ok(()) => first = first.or_else(|| Some(child.spec.clone())),
                Err(CheckError::Fields(errors)) => mistakes.of_child(errors, child.index, &child.settings),
                Err(other) => return Err(other.into()),
            }
        }
        self.check_links(caller, &mut expanded, &mut mistakes).await?;
        mistakes.none().map_err(|errors| ApiError::Invalid(in_request(errors)))?;
        Ok(expanded)
    }

    /// The sweep of this name. Another tenant's is not there, for a caller that speaks for one only.
    async fn sweep_of(&self, caller: &Caller, field: &str, name: &str) -> Result<SweepId, ApiError> {
        let sweep = SweepId::from_name(name).map_err(|error| ApiError::name(field, &error))?;
        let tenant = caller.scope().map(|_| caller.tenant_name());
        let there = within(sweeps::exists(&self.services.pool, sweep, tenant)).await?;
        if there { Ok(sweep) } else { Err(not_found(sweep)) }
    }

    /// What the children say of jobs that were submitted before.
    async fn check_links(
        &self,
        caller: &Caller,
        sweep: &mut Sweep,
        mistakes: &mut Mistakes,
    ) -> Result<(), ApiError> {
        let ids: Vec<JobId> = sweep.children.iter().map(|_| JobId::new()).collect();
        let mut unnamed = false;
        for (child, id) in sweep.children.iter_mut().zip(&ids) {
            // A child has no siblings that it could name.
            let named = links::name_siblings(std::slice::from_mut(&mut child.spec), &[*id]);
            if let Err(wrong) = named {
                unnamed = true;
                let errors = wrong.into_iter().map(|wrong| wrong.error).collect();
                mistakes.of_child(errors, child.index, &child.settings);
            }
        }
        if unnamed {
            return Ok(());
        }
        let jobs: Vec<(JobId, &pb::JobSpec)> =
            ids.iter().copied().zip(sweep.children.iter().map(|child| &child.spec)).collect();
        let found = within(links::mistakes(&self.services.pool, caller.scope(), &jobs)).await?;
        for (child, errors) in sweep.children.iter().zip(found).filter(|(_, errors)| !errors.is_empty()) {
            mistakes.of_child(errors, child.index, &child.settings);
        }
        Ok(())
    }

    async fn get(&self, sweep: SweepId) -> Result<pb::Sweep, ApiError> {
        let pool = &self.services.pool;
        let read = async {
            match sweeps::get(pool, sweep).await? {
                Some(row) => row.message(pool).await.map(Some),
                None => Ok(None),
            }
        };
        within(read).await?.ok_or_else(|| not_found(sweep))
    }

    async fn list(
        &self,
        caller: &Caller,
        request: pb::ListSweepsRequest,
    ) -> Result<pb::ListSweepsResponse, ApiError> {
        let tenant = caller.scope().map(|_| caller.tenant_name());
        let list = format!("sweeps?{tenant:?}");
        let page = Page::read(request.page_size, &request.page_token, list)?;
        let before = page.after_number()?.unwrap_or(i64::MAX);
        let pool = &self.services.pool;
        let mut rows = within(sweeps::list(pool, before, tenant, page.read_size())).await?;
        let next_page_token = page.cut(&mut rows, |row| row.number.to_string());
        let mut messages = Vec::with_capacity(rows.len());
        for row in rows {
            messages.push(within(row.message(pool)).await?);
        }
        Ok(pb::ListSweepsResponse { sweeps: messages, next_page_token })
    }

    async fn children(
        &self,
        caller: &Caller,
        request: pb::ListSweepChildrenRequest,
    ) -> Result<pb::ListSweepChildrenResponse, ApiError> {
        let sweep = self.sweep_of(caller, "parent", &request.parent).await?;
        let list = format!("{}/children", request.parent);
        let page = Page::read(request.page_size, &request.page_token, list)?;
        let after = page.after_number()?.unwrap_or(0);
        let pool = &self.services.pool;
        let mut children = within(sweeps::children(pool, sweep, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut children, |child| child.index.to_string());
        Ok(pb::ListSweepChildrenResponse { children, next_page_token })
    }

    async fn cancel(&self, caller: &Caller, name: &str) -> Result<pb::Sweep, ApiError> {
        let sweep = self.sweep_of(caller, "name", name).await?;
        let pool = &self.services.pool;
        within(sweeps::cancel(pool, sweep)).await.map_err(|error| match error {
            CancelSweepError::NotFound => not_found(sweep),
            CancelSweepError::Ended => ApiError::Precondition {
                message: format!("all children of {name} have ended; there is nothing to cancel"),
                reason: "SWEEP_HAS_ENDED",
            },
            CancelSweepError::Db(error) => error.into(),
        })?;
        // The leader does the same, should this process end now.
        let hub = &self.services.hub;
        for job in within(sweeps::cancel_children(pool, sweep)).await? {
            hub.job_changed(job);
        }
        hub.want_dispatch();
        self.get(sweep).await
    }
}

/// Paths as in the request: those of the sweep begin with `sweep` already.
fn in_request(errors: Vec<FieldError>) -> Vec<FieldError> {
    let path = |path: String| match path.as_str() {
        "" => "spec".to_owned(),
        own if own == "sweep" || own.starts_with("sweep.") => path,
        _ => format!("spec.{path}"),
    };
    errors.into_iter().map(|error| FieldError::new(path(error.path), error.message)).collect()
}

fn not_found(sweep: SweepId) -> ApiError {
    ApiError::NotFound { what: sweep.name(), reason: "SWEEP_NOT_FOUND" }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, ApiError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl pb::sweeps_server::Sweeps for SweepsService {
    async fn create_sweep(&self, request: Request<pb::CreateSweepRequest>) -> Answer<pb::Sweep> {
        let caller = Caller::of(&request)?;
        answer(self.create(&caller, request.into_inner()).await)
    }

    async fn get_sweep(&self, request: Request<pb::GetSweepRequest>) -> Answer<pb::Sweep> {
        let sweep = self.sweep_of(&Caller::of(&request)?, "name", &request.get_ref().name).await?;
        answer(self.get(sweep).await)
    }

    async fn list_sweeps(&self, request: Request<pb::ListSweepsRequest>) -> Answer<pb::ListSweepsResponse> {
        let caller = Caller::of(&request)?;
        answer(self.list(&caller, request.into_inner()).await)
    }

    async fn list_sweep_children(
        &self,
        request: Request<pb::ListSweepChildrenRequest>,
    ) -> Answer<pb::ListSweepChildrenResponse> {
        let caller = Caller::of(&request)?;
        answer(self.children(&caller, request.into_inner()).await)
    }

    async fn cancel_sweep(&self, request: Request<pb::CancelSweepRequest>) -> Answer<pb::Sweep> {
        answer(self.cancel(&Caller::of(&request)?, &request.get_ref().name).await)
    }
}
