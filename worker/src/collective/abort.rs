//! The handle that ends a collective from any thread: the first failure wins, and everybody learns that one.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::CollectiveError;

type Hook = Box<dyn FnOnce(&CollectiveError) + Send>;
type Ending = Box<dyn FnOnce(CollectiveError) -> CollectiveError + Send>;

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
    /// Ends the network, and may find out more about the failure.
    ending: Option<Ending>,
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
        let (ending, hooks) = {
            let mut state = self.lock();
            if state.failing {
                return self.told(state).unwrap_or(error);
            }
            state.failing = true;
            (state.ending.take(), std::mem::take(&mut state.hooks))
        };
        let error = match ending {
            Some(ending) => ending(error),
            None => error,
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

    /// Runs `hook` in the thread that fails first, once the peers have been told; at once if that has happened.
    pub fn on_failure(&self, hook: impl FnOnce(&CollectiveError) + Send + 'static) {
        let mut state = self.lock();
        if !state.failing {
            state.hooks.push(Box::new(hook));
            return;
        }
        if let Some(failure) = self.told(state) {
            hook(&failure);
        }
    }

    /// What ends the network: runs before all hooks, and returns what they and everybody else are told.
    pub(super) fn on_ending(&self, ending: impl FnOnce(CollectiveError) -> CollectiveError + Send + 'static) {
        let mut state = self.lock();
        if !state.failing {
            state.ending = Some(Box::new(ending));
            return;
        }
        if let Some(failure) = self.told(state) {
            ending(failure);
        }
    }

    fn told(&self, state: MutexGuard<'_, State>) -> Option<CollectiveError> {
        let told = self.0.failed.wait_while(state, |state| state.failure.is_none());
        told.unwrap_or_else(PoisonError::into_inner).failure.clone()
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

    #[test]
    fn the_ending_may_know_better_and_comes_first() {
        let abort = Abort::new();
        let (told, hear) = std::sync::mpsc::channel();
        abort.on_failure(move |failure| told.send(failure.clone()).unwrap());
        let better = CollectiveError::Local("what it really was".into());
        let found = better.clone();
        abort.on_ending(move |_| found);
        assert_eq!(abort.fail(CollectiveError::Local("at first sight".into())), better);
        assert_eq!(hear.recv().unwrap(), better);
        assert_eq!(abort.failure(), Some(better));
    }
}
