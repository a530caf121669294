//! The Tenants service: tenants and their tokens, from requests to rows and back.

mod read;

use std::sync::Arc;

use lorafleet_proto::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, error::ApiError, page::Page};
use crate::{
    access::{Caller, Refusal, Role},
    convert,
    db::within,
    ids::TenantId,
    tenants::{self, DEFAULT_TENANT, DeleteTenantError, Tenant},
    tokens::{self, NewToken, Secret, Token},
};

/// The service.
#[derive(Debug)]
pub struct TenantsService {
    pub(super) services: Services,
}

/// A job that says no tenant belongs to the caller's; one that says another needs a caller who speaks for all. `path` is
/// where the request holds the job.
pub(super) fn fill_tenant(spec: &mut pb::JobSpec, caller: &Caller, path: &str) -> Result<(), ApiError> {
    if spec.tenant.is_empty() {
        caller.tenant_name().clone_into(&mut spec.tenant);
    }
    if caller.may_name(&spec.tenant) {
        return Ok(());
    }
    Err(ApiError::Refused(Refusal::OtherTenant {
        field: format!("{path}.tenant"),
        own: caller.tenant_name().to_owned(),
        other: spec.tenant.clone(),
    }))
}

/// The tenant was there when the jobs were checked, and was not when they were stored.
pub(super) fn tenant_gone(field: &str) -> ApiError {
    ApiError::Precondition {
        message: format!("{field}: its tenant was deleted at this moment"),
        reason: "TENANT_DELETED",
    }
}

fn not_found(tenant: &str) -> ApiError {
    ApiError::NotFound { what: format!("tenants/{tenant}"), reason: "TENANT_NOT_FOUND" }
}

impl Services {
    /// The tenant whose jobs a list is about: the one that is named (empty: any), or the caller's own.
    pub(super) async fn tenant_filter(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Option<TenantId>, ApiError> {
        if name.is_empty() {
            return Ok(caller.scope());
        }
        if !caller.may_name(name) {
            return Err(not_found(name));
        }
        let tenant = within(self.tenants.find(name)).await?.ok_or_else(|| not_found(name))?;
        Ok(Some(tenant.id))
    }

    /// The tenant of a job that stands in the request's field `path`.
    pub(super) async fn tenant_of(&self, spec: &pb::JobSpec, path: &str) -> Result<Arc<Tenant>, ApiError> {
        within(self.tenants.find(&spec.tenant)).await?.ok_or_else(|| {
            ApiError::field(format!("{path}.tenant"), format!("there is no tenant `{}`", spec.tenant))
        })
    }
}

impl TenantsService {
    async fn create(&self, request: pb::CreateTenantRequest) -> Result<pb::Tenant, ApiError> {
        let name = read::own_name("tenant_id", &request.tenant_id)?;
        let settings = read::settings(&request.tenant.unwrap_or_default(), "tenant")?;
        let created = within(tenants::create(&self.services.pool, name, &settings)).await?;
        self.services.tenants.changed();
        created
            .map(message)
            .ok_or_else(|| ApiError::Exists { what: format!("tenants/{name}"), reason: "TENANT_EXISTS" })
    }

    async fn get(&self, name: &str) -> Result<pb::Tenant, ApiError> {
        let name = read::name("name", name)?;
        let tenant = within(tenants::get(&self.services.pool, name)).await?;
        tenant.map(message).ok_or_else(|| not_found(name))
    }

    async fn list(&self, request: pb::ListTenantsRequest) -> Result<pb::ListTenantsResponse, ApiError> {
        let page = Page::read(request.page_size, &request.page_token, "tenants")?;
        let after = page.after_number()?.unwrap_or(0);
        let mut tenants = within(tenants::list(&self.services.pool, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut tenants, |tenant| tenant.number.to_string());
        Ok(pb::ListTenantsResponse { tenants: tenants.into_iter().map(message).collect(), next_page_token })
    }

    async fn update(&self, request: pb::UpdateTenantRequest) -> Result<pb::Tenant, ApiError> {
        let new = request.tenant.ok_or_else(|| ApiError::field("tenant", "is required"))?;
        let name = read::name("tenant.name", &new.name)?.to_owned();
        let change = read::change(new, &request.update_mask.unwrap_or_default().paths)?;
        let changed = within(tenants::update(&self.services.pool, &name, |settings| change.apply(settings)));
        let changed = changed.await?;
        self.services.tenants.changed();
        changed.map(message).ok_or_else(|| not_found(&name))
    }

    async fn delete(&self, name: &str) -> Result<pbjson_types::Empty, ApiError> {
        let name = read::name("name", name)?;
        if name == DEFAULT_TENANT {
            return Err(ApiError::Precondition {
                message: format!(
                    "tenant {DEFAULT_TENANT} cannot be deleted: it has the jobs of callers without a token"
                ),
                reason: "TENANT_IS_DEFAULT",
            });
        }
        let done = within(tenants::delete(&self.services.pool, name)).await;
        self.services.tenants.changed();
        self.services.tokens.changed();
        done.map_err(|error| match error {
            DeleteTenantError::NotFound => not_found(name),
            DeleteTenantError::HasJobs => ApiError::Precondition {
                message: format!(
                    "tenant {name} has jobs, and their history is kept: revoke its tokens, or set its max_queued to 0"
                ),
                reason: "TENANT_HAS_JOBS",
            },
            DeleteTenantError::Db(error) => error.into(),
        })?;
        Ok(pbjson_types::Empty {})
    }

    async fn create_token(
        &self,
        request: pb::CreateTokenRequest,
    ) -> Result<pb::CreateTokenResponse, ApiError> {
        let tenant = read::name("parent", &request.parent)?;
        let asked = request.token.ok_or_else(|| ApiError::field("token", "is required"))?;
        let role = Role::from_message(asked.role()).ok_or_else(|| {
            ApiError::field("token.role", "is required: viewer, submitter, operator or admin")
        })?;
        let secret = Secret::random();
        let new = NewToken {
            tenant,
            role,
            description: read::description("token.description", &asked.description)?,
            expire_time: read::expire_time("token.expire_time", asked.expire_time.as_ref())?,
            digest: secret.digest(),
        };
        let made = within(tokens::create(&self.services.pool, new)).await?;
        let token = made.ok_or_else(|| not_found(tenant))?;
        tracing::info!(token = token.name(), %role, "token made");
        Ok(pb::CreateTokenResponse { token: Some(token_message(token)), secret: secret.reveal().to_owned() })
    }

    async fn list_tokens(&self, request: pb::ListTokensRequest) -> Result<pb::ListTokensResponse, ApiError> {
        let list = format!("{}/tokens", request.parent);
        let page = Page::read(request.page_size, &request.page_token, list)?;
        let after = page.after_number()?.unwrap_or(0);
        let pool = &self.services.pool;
        let tenant = match request.parent.as_str() {
            "tenants/-" => None,
            parent => {
                let name = read::name("parent", parent)?;
                Some(within(tenants::get(pool, name)).await?.ok_or_else(|| not_found(name))?.id)
            }
        };
        let mut tokens = within(tokens::list(pool, tenant, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut tokens, |token| token.number.to_string());
        Ok(pb::ListTokensResponse {
            tokens: tokens.into_iter().map(token_message).collect(),
            next_page_token,
        })
    }

    async fn revoke_token(&self, name: &str) -> Result<pb::Token, ApiError> {
        let (tenant, token) = read::token_name("name", name)?;
        let revoked = within(tokens::revoke(&self.services.pool, tenant, token)).await?;
        self.services.tokens.changed();
        let missing = || ApiError::NotFound { what: name.to_owned(), reason: "TOKEN_NOT_FOUND" };
        let token = revoked.ok_or_else(missing)?;
        tracing::info!(token = token.name(), "token revoked");
        Ok(token_message(token))
    }
}

fn message(tenant: Tenant) -> pb::Tenant {
    let quotas = tenant.settings.quotas;
    pb::Tenant {
        name: format!("tenants/{}", tenant.name),
        weight: tenant.settings.weight,
        max_workers: quotas.max_workers,
        max_queued: quotas.max_queued,
        max_worker_seconds: quotas.max_worker_seconds,
        window_seconds: quotas.window.as_secs(),
        max_stored_bytes: quotas.max_stored_bytes,
        create_time: Some(convert::timestamp(tenant.create_time)),
    }
}

fn token_message(token: Token) -> pb::Token {
    pb::Token {
        name: token.name(),
        role: pb::TokenRole::from(token.role).into(),
        description: token.description,
        create_time: Some(convert::timestamp(token.create_time)),
        expire_time: token.expire_time.map(convert::timestamp),
        revoke_time: token.revoke_time.map(convert::timestamp),
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, ApiError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl pb::tenants_server::Tenants for TenantsService {
    async fn create_tenant(&self, request: Request<pb::CreateTenantRequest>) -> Answer<pb::Tenant> {
        answer(self.create(request.into_inner()).await)
    }

    async fn get_tenant(&self, request: Request<pb::GetTenantRequest>) -> Answer<pb::Tenant> {
        answer(self.get(&request.get_ref().name).await)
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Answer<pb::ListTenantsResponse> {
        answer(self.list(request.into_inner()).await)
    }

    async fn update_tenant(&self, request: Request<pb::UpdateTenantRequest>) -> Answer<pb::Tenant> {
        answer(self.update(request.into_inner()).await)
    }

    async fn delete_tenant(&self, request: Request<pb::DeleteTenantRequest>) -> Answer<pbjson_types::Empty> {
        answer(self.delete(&request.get_ref().name).await)
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Answer<pb::CreateTokenResponse> {
        answer(self.create_token(request.into_inner()).await)
    }

    async fn list_tokens(&self, request: Request<pb::ListTokensRequest>) -> Answer<pb::ListTokensResponse> {
        answer(self.list_tokens(request.into_inner()).await)
    }

    async fn revoke_token(&self, request: Request<pb::RevokeTokenRequest>) -> Answer<pb::Token> {
        answer(self.revoke_token(&request.get_ref().name).await)
    }
}
