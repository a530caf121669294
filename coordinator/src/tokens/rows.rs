//! Every statement about tokens.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{SecretDigest, Token, TokenId};
use crate::{access::Role, db::DbError, ids::TenantId};

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken<'a> {
    /// Name of the tenant for which it speaks.
    pub tenant: &'a str,
    /// What it lets its bearer do.
    pub role: Role,
    /// What people call it.
    pub description: &'a str,
    /// When it stops being valid by itself.
    pub expire_time: Option<DateTime<Utc>>,
    /// Of its secret.
    pub digest: SecretDigest,
}

struct Row {
    token_id: Uuid,
    number: i64,
    tenant_id: Uuid,
    tenant: String,
    role: String,
    description: String,
    create_time: DateTime<Utc>,
    expire_time: Option<DateTime<Utc>>,
    revoke_time: Option<DateTime<Utc>>,
}

// The statement reads columns in one order everywhere; the macro checks each use against the schema.
macro_rules! select_token {
    ($tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "select t.token_id, t.number, t.tenant_id, o.name as tenant, t.role, t.description, t.create_time,
                    t.expire_time, t.revoke_time
             from api_tokens t join tenants o on o.tenant_id = t.tenant_id " + $tail
            $(, $argument)*
        )
    };
}

/// The token with this secret, revoked ones as well.
pub async fn by_digest(pool: &PgPool, digest: SecretDigest) -> Result<Option<Token>, DbError> {
    let row = select_token!("where t.sha256 = $1", &digest.0[..]).fetch_optional(pool).await?;
    row.map(Row::token).transpose()
}

/// At most `limit` tokens after number `after`, in order of creation; of one tenant, or of all.
pub async fn list(
    pool: &PgPool,
    tenant: Option<TenantId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Token>, DbError> {
    let rows = select_token!(
        "where t.number > $1 and ($2::uuid is null or t.tenant_id = $2) order by t.number limit $3",
        after,
        tenant.map(|tenant| tenant.0),
        i64::from(limit),
    );
    rows.fetch_all(pool).await?.into_iter().map(Row::token).collect()
}

/// Makes a token. `None` when there is no such tenant, or a token with this secret.
pub async fn create(pool: &PgPool, new: NewToken<'_>) -> Result<Option<Token>, DbError> {
    let made = sqlx::query!(
        "insert into api_tokens (token_id, tenant_id, role, description, sha256, expire_time)
         select $1, tenant_id, $3, $4, $5, $6 from tenants where name = $2 for key share
         on conflict (sha256) do nothing",
        Uuid::now_v7(),
        new.tenant,
        new.role.as_str(),
        new.description,
        &new.digest.0[..],
        new.expire_time,
    )
    .execute(pool)
    .await?;
    if made.rows_affected() == 0 { Ok(None) } else { by_digest(pool, new.digest).await }
}

/// Revokes a token of a tenant, unless it is; `None` when there is no such token.
pub async fn revoke(pool: &PgPool, tenant: &str, token: TokenId) -> Result<Option<Token>, DbError> {
    let digest = sqlx::query_scalar!(
        "update api_tokens t set revoke_time = coalesce(t.revoke_time, now()) from tenants o
         where t.token_id = $1 and o.tenant_id = t.tenant_id and o.name = $2 returning t.sha256",
        token.0,
        tenant,
    )
    .fetch_optional(pool)
    .await?;
    match digest.and_then(|digest| digest.try_into().ok()) {
        Some(digest) => by_digest(pool, SecretDigest(digest)).await,
        None => Ok(None),
    }
}

// === impl Row ===

impl Row {
    fn token(self) -> Result<Token, DbError> {
        let role = Role::parse(&self.role).ok_or_else(|| DbError::Data(format!("role {}", self.role)))?;
        Ok(Token {
            id: TokenId(self.token_id),
            number: self.number,
            tenant: TenantId(self.tenant_id),
            tenant_name: self.tenant,
            role,
            description: self.description,
            create_time: self.create_time,
            expire_time: self.expire_time,
            revoke_time: self.revoke_time,
        })
    }
}
