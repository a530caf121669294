//! Whether a running member is ahead of the rows: a pure rule.
//!
//! A failover to a replica that lagged forgets the last commits: generations, places, attempts. Whoever runs what the
//! rows do not know yet is not stale, and goes on. What the rows ended on purpose is, whatever its number.

use crate::{ids::Fence, job::JobState};

/// What the rows say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The job's state.
    pub state: JobState,
    /// The fence of its live or last attempt.
    pub fence: Fence,
    /// The claimed place, if the claimed attempt is the row's.
    pub place: KnownPlace,
}

/// What the rows say about a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownPlace {
    /// Nothing.
    Unknown,
    /// The claimant holds it.
    Mine {
        /// What it loaded is known.
        ready: bool,
    },
    /// Somebody else holds it.
    Other {
        /// That is a worker of the claimant's name that is gone: the same process, known under another id before.
        predecessor: bool,
    },
    /// Its holder's part is over.
    Ended,
}

/// What to do about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The rows know it, or know better in a way that the worker will be told: nothing to do.
    Known,
    /// It is stale: the worker must stop.
    Stale,
    /// The claimed attempt is not known: it becomes the job's live one, and its gang goes on.
    Attempt,
    /// The claimed generation is not known: the gang goes on in one above both.
    Generation,
    /// The place is not known, or not as this worker's; the generation need not change for it.
    Place,
}

/// Judges the claim of a member that says it is in the generation under `claimed`; generation 0 while it loads.
pub fn judge(claimed: &Fence, known: &Known) -> Verdict {
    let row = &known.fence;
    if known.state.is_terminal() || claimed.attempt < row.attempt {
        return Verdict::Stale;
    }
    if claimed.attempt > row.attempt {
        return Verdict::Attempt;
    }
    if known.state != JobState::Running {
        // That the attempt has ended is what the rows know.
        return Verdict::Stale;
    }
    let ahead = claimed.generation > row.generation
        || (claimed.generation == row.generation && claimed.generation_id != row.generation_id);
    match known.place {
        // Whoever got its place meanwhile, not knowing of it, has come less far.
        _ if ahead => Verdict::Generation,
        KnownPlace::Ended | KnownPlace::Other { predecessor: false } => Verdict::Stale,
        KnownPlace::Unknown | KnownPlace::Other { predecessor: true } => Verdict::Place,
        KnownPlace::Mine { ready: false } if claimed.generation > 0 => Verdict::Place,
        KnownPlace::Mine { .. } => Verdict::Known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: KnownPlace = KnownPlace::Mine { ready: true };

    fn fence(attempt: u32, generation: u32, id: &str) -> Fence {
        Fence { attempt, generation, generation_id: id.into() }
    }

    fn verdict(claimed: Fence, state: JobState, row: Fence, place: KnownPlace) -> Verdict {
        judge(&claimed, &Known { state, fence: row, place })
    }

    #[test]
    fn what_the_rows_know_or_ended_is_not_ahead() {
        use JobState::{Cancelled, Queued, Running, Succeeded};
        let row = || fence(2, 3, "x");
        for (claimed, state, place, expected) in [
            (fence(2, 3, "x"), Running, MINE, Verdict::Known),
            // The worker has not been told of the newest generation yet.
            (fence(2, 2, "w"), Running, MINE, Verdict::Known),
            (fence(2, 3, "x"), Running, KnownPlace::Ended, Verdict::Stale),
            (fence(2, 2, "w"), Running, KnownPlace::Ended, Verdict::Stale),
            (fence(2, 3, "x"), Running, KnownPlace::Other { predecessor: false }, Verdict::Stale),
            (fence(1, 9, "x"), Running, KnownPlace::Unknown, Verdict::Stale),
            (fence(2, 4, "y"), Queued, KnownPlace::Ended, Verdict::Stale),
            (fence(3, 1, "y"), Succeeded, KnownPlace::Unknown, Verdict::Stale),
            (fence(3, 1, "y"), Cancelled, KnownPlace::Unknown, Verdict::Stale),
        ] {
            assert_eq!(
                verdict(claimed.clone(), state, row(), place),
                expected,
                "{claimed} {state:?} {place:?}"
            );
        }
    }

    #[test]
    fn what_the_rows_forgot_goes_on() {
        use JobState::{Queued, Running};
        let row = || fence(2, 3, "x");
        for (claimed, state, place, expected) in [
            (fence(2, 4, "y"), Running, MINE, Verdict::Generation),
            (fence(2, 3, "y"), Running, MINE, Verdict::Generation),
            (fence(2, 4, "y"), Running, KnownPlace::Unknown, Verdict::Generation),
            (fence(2, 4, "y"), Running, KnownPlace::Ended, Verdict::Generation),
            (fence(2, 4, "y"), Running, KnownPlace::Other { predecessor: true }, Verdict::Generation),
            (fence(2, 3, "y"), Running, KnownPlace::Other { predecessor: false }, Verdict::Generation),
            (fence(2, 0, ""), Running, KnownPlace::Unknown, Verdict::Place),
            (fence(2, 2, "w"), Running, KnownPlace::Unknown, Verdict::Place),
            (fence(2, 2, "w"), Running, KnownPlace::Mine { ready: false }, Verdict::Place),
            (fence(2, 3, "x"), Running, KnownPlace::Other { predecessor: true }, Verdict::Place),
            (fence(3, 1, "y"), Running, KnownPlace::Unknown, Verdict::Attempt),
            (fence(3, 1, "y"), Queued, KnownPlace::Unknown, Verdict::Attempt),
            (fence(3, 0, ""), Queued, KnownPlace::Unknown, Verdict::Attempt),
        ] {
            assert_eq!(
                verdict(claimed.clone(), state, row(), place),
                expected,
                "{claimed} {state:?} {place:?}"
            );
        }
        assert_eq!(verdict(fence(1, 1, "y"), Queued, fence(0, 0, ""), KnownPlace::Unknown), Verdict::Attempt);
    }

    #[test]
    fn one_that_still_loads_is_known_before_it_is_ready() {
        let loading = KnownPlace::Mine { ready: false };
        let claim = fence(1, 0, "");
        assert_eq!(verdict(claim, JobState::Running, fence(1, 0, ""), loading), Verdict::Known);
    }
}
