//! The handle that ends a collective from any thread: the first failure wins, and everybody learns that one.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::CollectiveError;

type Hook = Box<dyn FnOnce(&CollectiveError) + Send>;

/// Ends a collective from any thread, also one that is still being joined. Cheap to clone.
#[derive(Clone, Default)]
pub struct Abort(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    failed: Condvar,
}

#[derive(Default)]
struct State {
    /// A first failure is being told to the peers; it counts for everybody else only when they have been told.
    failing: bool,
    failure: Option<CollectiveError>,
    hooks: Vec<Hook>,
}

impl Abort {
    /// A handle that is not bound to a collective yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the collective: an operation under way returns [`CollectiveError::Aborted`], peers are told `reason`.
    pub fn abort(&self, reason: &str) {
        self.fail(CollectiveError::Aborted { reason: reason.to_owned() });
    }

    /// The failure that ended the collective, if one did.
    pub fn failure(&self) -> Option<CollectiveError> {
        self.lock().failure.clone()
    }

    /// Records a failure unless there is one, runs the hooks, and returns the one that counts. Until the hooks are
    /// done nobody sees the failure, so that nobody closes a line on which peers are still being told.
    pub(crate) fn fail(&self, error: CollectiveError) -> CollectiveError {
        let hooks = {
            let mut state = self.lock();
            if state.failing {
                let told = self.0.failed.wait_while(state, |state| state.failure.is_none());
                return told.unwrap_or_else(PoisonError::into_inner).failure.clone().unwrap_or(error);
            }
            state.failing = true;
            std::mem::take(&mut state.hooks)
        };
        for hook in hooks {
            hook(&error);
        }
        self.lock().failure = Some(error.clone());
        self.0.failed.notify_all();
        error
    }

    /// Waits for a failure, at most this long.
    pub(crate) fn wait(&self, patience: Duration) -> Option<CollectiveError> {
        let waited = self.0.failed.wait_timeout_while(self.lock(), patience, |state| state.failure.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.failure.clone()
    }

    /// Runs `hook` in the thread that fails first; at once if that has happened.
    pub(crate) fn on_failure(&self, hook: impl FnOnce(&CollectiveError) + Send + 'static) {
        let mut state = self.lock();
        if !state.failing {
            state.hooks.push(Box::new(hook));
            return;
        }
        let told = self.0.failed.wait_while(state, |state| state.failure.is_none());
        let failure = told.unwrap_or_else(PoisonError::into_inner).failure.clone();
        if let Some(failure) = failure {
            hook(&failure);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-written here.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_first_failure_wins_and_hooks_run_once() {
        let abort = Abort::new();
        let runs = Arc::new(AtomicU32::new(0));
        let count = runs.clone();
        abort.on_failure(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        abort.abort("first");
        abort.abort("second");
        assert_eq!(abort.failure(), Some(CollectiveError::Aborted { reason: "first".into() }));
        let count = runs.clone();
        abort.on_failure(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}
