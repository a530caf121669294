//! The one way in which a call to the coordinator is tried again: exponential waits with jitter, up to an end.

use std::{future::Future, time::Duration};

use tonic::{Code, Status};

/// Waits that grow from `first` by doubling up to `longest`, each shortened by up to half at random.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The wait before the next try; `random` in [0, 1).
    pub(crate) fn wait(&mut self, random: f64) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(1.0 - random / 2.0)
    }
}

/// A random number in [0, 1), good enough for jitter.
pub(crate) fn jitter() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 11) as f64 / (1u64 << 53) as f64
}

/// Whether the coordinator may be asked again: it was not there, or went away before it answered.
pub(crate) fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // A connection that breaks under a call surfaces as UNKNOWN or INTERNAL with the transport's error as its
        // source, and as CANCELLED when the server resets the stream; a status that the server sent has no source.
        Code::Unknown | Code::Internal | Code::Cancelled => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// Tries in all; with the waits below, an absent coordinator is given about 15 seconds.
const TRIES: u32 = 8;

/// Runs an idempotent call until it succeeds, fails for good, or has been tried `TRIES` times.
pub(crate) async fn idempotent<T, F>(call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    retried(Backoff::new(Duration::from_millis(200), Duration::from_secs(5)), call).await
}

async fn retried<T, F>(mut backoff: Backoff, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    for _ in 1..TRIES {
        match call().await {
            Err(status) if is_transient(&status) => {
                tracing::debug!(%status, "call failed, will be tried again");
                tokio::time::sleep(backoff.wait(jitter())).await;
            }
            other => return other,
        }
    }
    call().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick() -> Backoff {
        Backoff::new(Duration::from_micros(1), Duration::from_micros(1))
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        let waits: Vec<_> = (0..3).map(|_| backoff.wait(0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 3]);
        assert_eq!(backoff.wait(0.5), Duration::from_millis(2250));
    }

    #[test]
    fn only_absence_is_transient() {
        assert!(is_transient(&Status::unavailable("gone")));
        assert!(!is_transient(&Status::internal("bug")));
        assert!(!is_transient(&Status::not_found("no")));
    }

    #[tokio::test]
    async fn a_call_is_tried_until_it_is_answered() {
        let mut left = 3;
        let answer = retried(quick(), || {
            left -= 1;
            std::future::ready(if left == 0 { Ok(7) } else { Err(Status::unavailable("starting")) })
        })
        .await;
        assert_eq!(answer.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_call_is_not_tried_forever() {
        let mut tries = 0;
        let answer: Result<(), _> = retried(quick(), || {
            tries += 1;
            std::future::ready(Err(Status::unavailable("gone")))
        })
        .await;
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
        assert_eq!(tries, TRIES);
    }
}
