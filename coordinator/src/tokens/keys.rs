//! The tokens that callers show, each looked up once in a few seconds and not in every call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::PgPool;

use super::{SecretDigest, Token, rows};
use crate::{db::DbError, fresh::Fresh};

/// A token that another coordinator revoked is refused after this time at the latest.
const KEEP: Duration = Duration::from_secs(3);

/// Tokens by the digests of their secrets.
#[derive(Debug)]
pub struct Keys {
    pool: PgPool,
    fresh: Fresh<SecretDigest, Arc<Token>>,
}

impl Keys {
    /// Keys that have read nothing yet.
    pub fn new(pool: PgPool) -> Arc<Self> {
        Arc::new(Self { pool, fresh: Fresh::new(KEEP) })
    }

    /// The token with this secret, as it was a few seconds ago at most. What is not known is asked for each time.
    pub async fn find(&self, digest: SecretDigest) -> Result<Option<Arc<Token>>, DbError> {
        let now = Instant::now();
        if let Some(token) = self.fresh.get(&digest, now) {
            return Ok(Some(token));
        }
        let Some(token) = rows::by_digest(&self.pool, digest).await?.map(Arc::new) else { return Ok(None) };
        self.fresh.put(digest, token.clone(), now);
        Ok(Some(token))
    }

    /// Something was changed here.
    pub fn changed(&self) {
        self.fresh.clear();
    }
}
