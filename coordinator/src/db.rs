//! The way to Postgres: a small pool that a transaction-mode pooler may stand before, migrations, kinds of errors.

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, sleep};

/// No call to Postgres may take longer than this, waiting for a connection included.
pub const DEADLINE: Duration = Duration::from_secs(10);

const NOT_NULL_VIOLATION: &str = "23502";

/// A connection that was idle for longer is asked for a sign of life before it is used.
const TRUSTED: Duration = Duration::from_millis(500);

/// An open transaction. None stays open while anything but Postgres is waited for.
pub type Tx = Transaction<'static, Postgres>;

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Away, restarting, out of connections, or in conflict with another writer: trying again may help.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// It did not answer in time.
    #[error("the database did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// A statement is wrong, or a rule of the schema was broken.
    #[error("the database refused a statement: {0}")]
    Statement(#[source] sqlx::Error),
    /// A row holds what this program never writes.
    #[error("the database holds {0}, which this coordinator does not understand")]
    Data(String),
}

/// Where Postgres is and how to speak to it.
#[derive(Clone, Debug)]
pub struct DbConfig {
    /// URL; a transaction-mode pooler (PgBouncer 1.21 or later) is fine.
    pub url: String,
    /// URL of Postgres itself, past any pooler: for migrations, whose lock belongs to a session.
    pub direct_url: Option<String>,
    /// Connections at most.
    pub max_connections: u32,
    /// How long to retry at the start.
    pub connect_timeout: Duration,
}

/// The coordinator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A URL that is none.
    #[error("the database URL is not valid: {0}")]
    Url(#[source] sqlx::Error),
    /// Postgres stayed away.
    #[error(
        "Postgres could not be reached within {waited:?}: {source}. Is it running, and is --database-url right?"
    )]
    Away {
        /// How long it was tried.
        waited: Duration,
        /// The last error.
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("the database schema could not be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// Connects, retrying with a message while Postgres is away, then brings the schema up to date. Several coordinators
/// may do this at once.
pub async fn connect(config: &DbConfig) -> Result<PgPool, StartError> {
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections)
        .min_connections(0)
        .idle_timeout(Duration::from_secs(60))
        .acquire_timeout(Duration::from_secs(5))
        // A connection that was used just now needs no question whether it lives.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options(&config.url)?);
    let direct = config.direct_url.as_deref().unwrap_or(&config.url);
    let mut connection = connect_patiently(&options(direct)?, config.connect_timeout).await?;
    // Not `run`, which takes an `Acquire<'_>`: this future must be `Send` for any lifetime, to be spawned.
    sqlx::migrate!("../migrations").run_direct(None, &mut connection, false).await?;
    Ok(pool)
}

/// Runs a call to Postgres under [`DEADLINE`].
pub async fn within<T, E: From<DbError>>(call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(DEADLINE, call).await.unwrap_or_else(|_| Err(DbError::Deadline.into()))
}

/// Whether Postgres answers.
pub async fn answers(pool: &PgPool) -> bool {
    let ask = async { sqlx::query_scalar!("select 1").fetch_one(pool).await.map_err(DbError::from) };
    within(ask).await.is_ok()
}

/// Text as Postgres can hold it: without NUL, and not longer than `limit` bytes.
pub fn text(text: &str, limit: usize) -> String {
    let mut clean = text.replace('\0', "\u{fffd}");
    if clean.len() > limit {
        let cut = (0..=limit).rev().find(|i| clean.is_char_boundary(*i)).unwrap_or(0);
        clean.truncate(cut);
        clean.push('…');
    }
    clean
}

fn options(url: &str) -> Result<PgConnectOptions, StartError> {
    let options = PgConnectOptions::from_str(url).map_err(StartError::Url)?;
    // No start-up parameter but what poolers know; failed statements are reported by their callers.
    Ok(options.application_name("lorafleet-coordinator").extra_float_digits(None).disable_statement_logging())
}

async fn connect_patiently(
    options: &PgConnectOptions,
    patience: Duration,
) -> Result<sqlx::PgConnection, StartError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(250);
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(5), options.connect()).await;
        let source = match attempt {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::PoolTimedOut,
        };
        if start.elapsed() + pause > patience {
            return Err(StartError::Away { waited: patience, source });
        }
        tracing::warn!(error = %source, retry_in = ?pause, "postgres not reachable");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

// === impl DbError ===

impl DbError {
    /// Trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline)
    }

    /// The same for one of several callers whose work failed together.
    pub fn of_all(&self) -> Self {
        match self {
            Self::Unavailable(error) => Self::Unavailable(sqlx::Error::Protocol(error.to_string())),
            Self::Deadline => Self::Deadline,
            Self::Statement(error) => Self::Statement(sqlx::Error::Protocol(error.to_string())),
            Self::Data(what) => Self::Data(what.clone()),
        }
    }

    /// The unique index or key that a statement would have broken.
    pub fn unique_violation(&self) -> Option<&str> {
        match self {
            Self::Statement(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                error.constraint()
            }
            _ => None,
        }
    }

    /// The column that a statement would have left without a value.
    pub fn null_violation(&self) -> Option<&str> {
        match self {
            Self::Statement(sqlx::Error::Database(error)) => {
                let postgres = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
                postgres.column().filter(|_| postgres.code() == NOT_NULL_VIOLATION)
            }
            _ => None,
        }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let transient = match &error {
            sqlx::Error::Database(error) => error.code().is_some_and(|code| is_transient(&code)),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        };
        if transient { Self::Unavailable(error) } else { Self::Statement(error) }
    }
}

/// SQLSTATEs that pass: connection lost (08), out of resources (53), shutting down or starting (57P), read-only after
/// a failover (25006), conflicts with other writers (40, 55P03), a prepared statement that the pooler's server does not
/// know (26000).
fn is_transient(code: &str) -> bool {
    code.starts_with("08")
        || code.starts_with("53")
        || code.starts_with("57P")
        || code.starts_with("40")
        || code == "55P03"
        || code == "25006"
        || code == "26000"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_into_postgres() {
        assert_eq!(text("a\0b", 100), "a\u{fffd}b");
        assert_eq!(text("äöü", 3), "ä…");
    }

    #[test]
    fn restarts_and_conflicts_are_transient_and_broken_rules_are_not() {
        assert!(["57P01", "53300", "40P01", "08006"].iter().all(|code| is_transient(code)));
        assert!(["23505", "42601", "23514"].iter().all(|code| !is_transient(code)));
    }
}
