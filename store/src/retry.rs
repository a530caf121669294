//! How long the store is waited for: attempts with a deadline each, exponential backoff with full jitter, an end.

use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use object_store::path::Path;
use tokio::time::Instant;

use crate::StoreError;

/// When an operation is tried again.
///
/// `object_store` repeats a single HTTP request a few times by itself; this is for outages that last longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at most, the first included.
    pub attempts: u32,
    /// The longest first pause; each later one may be twice as long as the one before it.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long one attempt may take.
    pub attempt_limit: Duration,
    /// No new attempt begins after this long.
    pub total_limit: Duration,
}

impl Default for Retry {
    /// Outlasts about a minute of outage.
    fn default() -> Retry {
        Retry {
            attempts: 10,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(15),
            attempt_limit: Duration::from_secs(120),
            total_limit: Duration::from_secs(180),
        }
    }
}

impl Retry {
    /// One attempt.
    pub fn never() -> Retry {
        Retry { attempts: 1, ..Retry::default() }
    }

    /// The pause after the given number of attempts; `random` is uniform in [0, 1].
    fn pause(&self, attempts: u32, random: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(20);
        self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause).mul_f64(random)
    }

    /// Runs `operation` until it succeeds, fails for good, or the patience ends.
    pub(crate) async fn run<T, F>(
        &self,
        action: &'static str,
        path: &Path,
        mut operation: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut tries = Tries::new(self);
        loop {
            let reason = match tokio::time::timeout(self.attempt_limit, operation()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(object_store::Error::NotFound { .. })) => {
                    return Err(StoreError::NotFound { path: path.clone() });
                }
                Ok(Err(error)) if !is_transient(&error) => {
                    return Err(StoreError::Refused { action, path: path.clone(), source: error });
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", self.attempt_limit.as_secs()),
            };
            if !tries.again(action, path, &reason).await {
                let attempts = tries.made;
                return Err(StoreError::Unavailable { action, path: path.clone(), attempts, reason });
            }
        }
    }

    /// Runs an operation that has deadlines and retries of its own inside, again from its start while it says that the
    /// store is unavailable.
    pub(crate) async fn run_whole<T, F>(
        &self,
        action: &'static str,
        path: &Path,
        mut operation: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = Tries::new(self);
        loop {
            match operation().await {
                Err(error) if error.is_transient() => {
                    if !tries.again(action, path, &error.to_string()).await {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }
}

/// How often an operation was tried, and since when.
struct Tries<'a> {
    retry: &'a Retry,
    start: Instant,
    made: u32,
}

impl<'a> Tries<'a> {
    fn new(retry: &'a Retry) -> Self {
        Self { retry, start: Instant::now(), made: 0 }
    }

    /// After a failed try: pauses before the next; false when there is none.
    async fn again(&mut self, action: &'static str, path: &Path, reason: &str) -> bool {
        self.made += 1;
        let pause = self.retry.pause(self.made, random());
        if self.made >= self.retry.attempts || self.start.elapsed() + pause > self.retry.total_limit {
            return false;
        }
        tracing::warn!(action, %path, attempts = self.made, reason, "store unavailable, trying again");
        tokio::time::sleep(pause).await;
        true
    }
}

/// Whether another attempt may end otherwise.
fn is_transient(error: &object_store::Error) -> bool {
    // Whatever is not sorted into a more exact kind: connections, timeouts, 5xx, throttling, disk errors.
    matches!(error, object_store::Error::Generic { .. } | object_store::Error::JoinError { .. })
}

/// Uniform in [0, 1]: the keys of a new hash map are drawn from the system's randomness.
fn random() -> f64 {
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    bits as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn generic() -> object_store::Error {
        object_store::Error::Generic { store: "test", source: "down".into() }
    }

    fn path() -> Path {
        Path::from("a/b")
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let retry = Retry::default();
        assert_eq!(retry.pause(1, 1.0), Duration::from_millis(200));
        assert_eq!(retry.pause(3, 1.0), Duration::from_millis(800));
        assert_eq!(retry.pause(u32::MAX, 1.0), retry.longest_pause);
        assert_eq!(retry.pause(5, 0.0), Duration::ZERO);
        assert!((0..100).map(|_| random()).all(|r| (0.0..=1.0).contains(&r)));
    }

    /// Quick ones, so that tests do not wait.
    fn quick() -> Retry {
        let pause = Duration::from_millis(1);
        Retry {
            first_pause: pause,
            longest_pause: pause,
            attempt_limit: Duration::from_secs(20),
            ..Retry::default()
        }
    }

    #[tokio::test]
    async fn outlasts_an_outage_but_not_for_ever() {
        let tries = Cell::new(0);
        let result = quick()
            .run("read", &path(), || {
                tries.set(tries.get() + 1);
                let up = tries.get() > 3;
                async move { if up { Ok(7) } else { Err(generic()) } }
            })
            .await;
        assert_eq!((result.unwrap(), tries.get()), (7, 4));
        let error = quick().run("read", &path(), || async { Err::<(), _>(generic()) }).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(matches!(error, StoreError::Unavailable { attempts: 10, .. }), "{error}");
    }

    #[tokio::test]
    async fn an_attempt_has_a_deadline_and_a_refusal_is_final() {
        let retry = Retry { attempt_limit: Duration::from_millis(1), ..Retry::never() };
        let error = retry.run("read", &path(), std::future::pending::<object_store::Result<()>>).await;
        assert!(error.unwrap_err().to_string().contains("no answer"));
        let denied = || object_store::Error::PermissionDenied { path: "a/b".into(), source: "no".into() };
        let tries = Cell::new(0);
        let error = quick()
            .run("read", &path(), || {
                tries.set(tries.get() + 1);
                async { Err::<(), _>(denied()) }
            })
            .await;
        assert!(matches!(error, Err(StoreError::Refused { .. })));
        assert_eq!(tries.get(), 1);
    }
}
