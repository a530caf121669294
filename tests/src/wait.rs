//! Waiting for a condition, with an end.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Tries `condition` until it gives a value; an error that names `what` after `deadline`.
pub async fn until<T, F, Fut>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = String::new();
    loop {
        match condition().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("; last error: {error:#}"),
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}{last}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
