//! Group commit: what comes while a batch is being written goes together in the next one, so that many callers wait for
//! one statement and one flush of the log. Nobody waits for a batch to fill.

use std::{fmt, sync::Arc};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::db::{DbError, within};

/// Batches that are written at once: while one waits for the disk, the next is made.
const LANES: usize = 2;
/// Most items of one batch.
const BATCH: usize = 256;
/// Items that wait for a batch; callers beyond them wait for room.
const WAITING: usize = 4096;

type Waiter<T, R> = (T, oneshot::Sender<Result<R, DbError>>);

/// Where callers bring their items; clones are the same one.
pub struct Group<T, R> {
    waiting: mpsc::Sender<Waiter<T, R>>,
}

impl<T: Send + 'static, R: Send + 'static> Group<T, R> {
    /// A group whose batches `write` carries out: one result an item, in their order. It ends when its last clone is
    /// dropped.
    pub fn new<W, F>(write: W) -> Self
    where
        W: Fn(Vec<T>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Vec<Result<R, DbError>>, DbError>> + Send + 'static,
    {
        let (waiting, items) = mpsc::channel(WAITING);
        let items = Arc::new(Mutex::new(items));
        for _ in 0..LANES {
            tokio::spawn(lane(Arc::clone(&items), write.clone()));
        }
        Self { waiting }
    }

    /// Brings an item, and waits until its batch is written. A caller that stops waiting does not take it back.
    ///
    /// # Errors
    /// That of its batch, or its own.
    pub async fn bring(&self, item: T) -> Result<R, DbError> {
        let (sender, answer) = oneshot::channel();
        let gone = || DbError::Unavailable(sqlx::Error::WorkerCrashed);
        self.waiting.send((item, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn lane<T, R, W, F>(items: Arc<Mutex<mpsc::Receiver<Waiter<T, R>>>>, write: W)
where
    W: Fn(Vec<T>) -> F,
    F: Future<Output = Result<Vec<Result<R, DbError>>, DbError>>,
{
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if items.lock().await.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let (items, waiters): (Vec<T>, Vec<_>) = batch.drain(..).unzip();
        match within(write(items)).await {
            Ok(results) => {
                for (waiter, result) in waiters.into_iter().zip(results) {
                    // A caller that is gone needs no answer.
                    let _ = waiter.send(result);
                }
            }
            Err(error) => {
                for waiter in waiters {
                    let _ = waiter.send(Err(error.of_all()));
                }
            }
        }
    }
}

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<T, R> fmt::Debug for Group<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("room", &self.waiting.capacity()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn what_comes_meanwhile_goes_together_and_each_gets_its_own_answer() {
        let batches = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&batches);
        let group = Group::new(move |items: Vec<usize>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                let one = |item| if item == 7 { Err(DbError::Data("seven".into())) } else { Ok(item * 2) };
                Ok(items.into_iter().map(one).collect())
            }
        });
        let answers = join_all((0..100).map(|item| group.bring(item))).await;
        for (item, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(double) => assert_eq!(double, item * 2),
                Err(error) => assert_eq!((item, error.to_string().contains("seven")), (7, true)),
            }
        }
        assert!(batches.load(Ordering::Relaxed) < 50, "{batches:?}");
    }

    #[tokio::test]
    async fn a_batch_that_fails_fails_for_all_in_it() {
        let group: Group<u8, ()> = Group::new(|_| async { Err(DbError::Deadline) });
        let answers = join_all((0..3).map(|item| group.bring(item))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(DbError::is_transient)));
    }
}
