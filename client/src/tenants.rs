//! The calls about tenants and their tokens, for admins.

use pbjson_types::FieldMask;

use crate::{
    client::{Client, Line, PAGE, pages},
    error::ClientError,
    pb::{self, tenants_client::TenantsClient},
};

impl Client {
    /// Makes a tenant of this name with the weight and quotas of `settings`. Not tried again: a second try could not tell
    /// its own tenant from another's.
    ///
    /// # Errors
    /// `Invalid`; `Refused` when there is one of that name; `Denied`.
    pub async fn create_tenant(&self, name: &str, settings: pb::Tenant) -> Result<pb::Tenant, ClientError> {
        let tenant_id = name.strip_prefix("tenants/").unwrap_or(name).to_owned();
        let request = pb::CreateTenantRequest { tenant_id, tenant: Some(settings) };
        self.once(request, |line, request| async move { tenants(line).create_tenant(request).await }).await
    }

    /// One tenant.
    ///
    /// # Errors
    /// `NotFound`; `Denied`.
    pub async fn get_tenant(&self, name: &str) -> Result<pb::Tenant, ClientError> {
        let request = pb::GetTenantRequest { name: name.to_owned() };
        self.unary(request, |line, request| async move { tenants(line).get_tenant(request).await }).await
    }

    /// All tenants, in the order of their creation.
    ///
    /// # Errors
    /// `Denied`, and those of any call.
    pub async fn list_tenants(&self) -> Result<Vec<pb::Tenant>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListTenantsRequest { page_size: PAGE, page_token };
            async {
                let call = |line, request| async move { tenants(line).list_tenants(request).await };
                let page = self.unary(request, call).await?;
                Ok((page.tenants, page.next_page_token))
            }
        })
        .await
    }

    /// Changes the fields of a tenant that `fields` names, as they are in `tenant`.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Denied`.
    pub async fn update_tenant(
        &self,
        tenant: pb::Tenant,
        fields: Vec<String>,
    ) -> Result<pb::Tenant, ClientError> {
        let request =
            pb::UpdateTenantRequest { tenant: Some(tenant), update_mask: Some(FieldMask { paths: fields }) };
        self.unary(request, |line, request| async move { tenants(line).update_tenant(request).await }).await
    }

    /// Deletes a tenant without jobs, and its tokens.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when it has jobs; `Denied`.
    pub async fn delete_tenant(&self, name: &str) -> Result<(), ClientError> {
        let request = pb::DeleteTenantRequest { name: name.to_owned() };
        let call = |line, request| async move { tenants(line).delete_tenant(request).await };
        self.once(request, call).await.map(drop)
    }

    /// Makes a token for a tenant; its secret is in the answer, and never shown again. Not tried again: an answer that was
    /// lost leaves a token that nobody knows.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Denied`.
    pub async fn create_token(
        &self,
        tenant: &str,
        token: pb::Token,
    ) -> Result<pb::CreateTokenResponse, ClientError> {
        let request = pb::CreateTokenRequest { parent: tenant.to_owned(), token: Some(token) };
        self.once(request, |line, request| async move { tenants(line).create_token(request).await }).await
    }

    /// The tokens of a tenant (`tenants/-`: of all), in the order of their creation.
    ///
    /// # Errors
    /// `NotFound`, `Denied`.
    pub async fn list_tokens(&self, tenant: &str) -> Result<Vec<pb::Token>, ClientError> {
        pages(usize::MAX, |page_token| {
            let request = pb::ListTokensRequest { parent: tenant.to_owned(), page_size: PAGE, page_token };
            async {
                let call = |line, request| async move { tenants(line).list_tokens(request).await };
                let page = self.unary(request, call).await?;
                Ok((page.tokens, page.next_page_token))
            }
        })
        .await
    }

    /// Ends a token's validity.
    ///
    /// # Errors
    /// `NotFound`, `Denied`.
    pub async fn revoke_token(&self, name: &str) -> Result<pb::Token, ClientError> {
        let request = pb::RevokeTokenRequest { name: name.to_owned() };
        self.unary(request, |line, request| async move { tenants(line).revoke_token(request).await }).await
    }
}

fn tenants(line: Line) -> TenantsClient<Line> {
    TenantsClient::new(line)
}
