//! Who makes a call: for which tenant it speaks, and what it sees.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::{ids::TenantId, tenants::DEFAULT_TENANT, tokens::Token};

/// One who was let in. The gate puts it beside every request.
#[derive(Clone, Debug)]
pub struct Caller(Option<Arc<Token>>);

impl Caller {
    /// One who showed no token where none is asked for: everything is allowed.
    pub fn anyone() -> Self {
        Self(None)
    }

    /// One who showed a valid token.
    pub fn bearer(token: Arc<Token>) -> Self {
        Self(Some(token))
    }

    /// Who makes this request.
    ///
    /// # Errors
    /// No gate stands before the service: nobody may pass then.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| {
            Status::internal("the call came past the gate; the coordinator is put together wrongly")
        })
    }

    /// Name of the tenant that a job without one belongs to.
    pub fn tenant_name(&self) -> &str {
        self.0.as_ref().map_or(DEFAULT_TENANT, |token| &token.tenant_name)
    }

    /// The tenant to which all that it sees belongs; `None`: it sees everything.
    pub fn scope(&self) -> Option<TenantId> {
        let token = self.0.as_ref()?;
        (!token.role.sees_all_tenants()).then_some(token.tenant)
    }

    /// Whether it may speak of a tenant, by name.
    pub fn may_name(&self, tenant: &str) -> bool {
        self.scope().is_none() || self.tenant_name() == tenant
    }
}
