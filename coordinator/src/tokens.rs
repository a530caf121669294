//! API tokens: what lets a caller speak for a tenant. Of a secret only the sha256 is kept.

mod bootstrap;
mod keys;
mod rows;
mod secret;

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{access::Role, ids::TenantId};

pub use bootstrap::{BootstrapError, bootstrap};
pub use keys::Keys;
pub use rows::{NewToken, create, list, revoke};
pub use secret::Secret;
use secret::SecretDigest;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(pub Uuid);

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Order of creation, the key of pages.
    pub number: i64,
    /// For whom it speaks.
    pub tenant: TenantId,
    /// That tenant's name.
    pub tenant_name: String,
    /// What it lets its bearer do.
    pub role: Role,
    /// What people call it.
    pub description: String,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it stops being valid by itself.
    pub expire_time: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoke_time: Option<DateTime<Utc>>,
}

impl Token {
    /// `tenants/{tenant}/tokens/{token}`.
    pub fn name(&self) -> String {
        format!("tenants/{}/tokens/{}", self.tenant_name, self.id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}
