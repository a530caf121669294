//! What is kept for jobs that are next and cannot start yet, so that those which overtake them do not delay them.
//!
//! The first job that lacks workers gets a reservation: the time at which enough of the running jobs will have ended, and
//! the workers that it will need of those that are free already. A later job may start on workers that are not kept, or
//! on kept ones if it ends before that time.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Place,
    free::{Free, Want},
};

/// Jobs that get a reservation in one decision; their workers are of different classes.
const MAX_RESERVATIONS: usize = 16;

/// What is kept.
pub(super) struct Reserved<'a> {
    /// The workers kept, with their slots.
    kept: Option<Free<'a>>,
    /// When the first of the reservations begins; none while one of them has no known time.
    until: Option<Duration>,
    /// Classes that a job with a reservation waits for.
    waited_for: Vec<bool>,
    count: usize,
}

impl<'a> Reserved<'a> {
    /// Nothing, in a fleet with so many classes.
    pub(super) fn new(classes: usize) -> Self {
        Self { kept: None, until: None, waited_for: vec![false; classes], count: 0 }
    }

    /// Whether a job with a reservation waits for workers that this one could use.
    pub(super) fn concerns(&self, want: &Want) -> bool {
        self.count > 0 && want.classes.iter().any(|class| self.waited_for[*class as usize])
    }

    /// Whether there may be one more.
    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_RESERVATIONS
    }

    /// Reserves `min` workers: from those that are free, but for what `releases` bring beyond the need at the time when
    /// there are enough of them. Returns that time.
    pub(super) fn reserve(
        &mut self,
        min: usize,
        want: &Want,
        free: &mut Free<'a>,
        releases: impl Iterator<Item = (Duration, u32)>,
    ) -> Option<Duration> {
        let here = free.count(want);
        let mut at = None;
        let mut coming = BTreeSet::new();
        for (time, worker) in releases {
            if at.is_some_and(|at| time > at) {
                break;
            }
            if free.matches(worker, want) && !free.is_free(worker) {
                coming.insert(worker);
            }
            if here + coming.len() >= min {
                at = Some(time);
            }
        }
        let kept = if at.is_some() { min.saturating_sub(coming.len()) } else { min };
        let places = free.take(kept, want, &[]);
        self.until = if self.count == 0 { at } else { self.until.min(at) };
        self.kept.get_or_insert_with(|| free.emptied()).put_back(&places);
        self.count += 1;
        want.classes.iter().for_each(|class| self.waited_for[*class as usize] = true);
        at
    }

    /// Whether a job may find [places](Self::overtake) before those that wait for kept workers.
    pub(super) fn may_overtake(
        &self,
        min: usize,
        run_estimate: Option<Duration>,
        want: &Want,
        free: &Free<'_>,
    ) -> bool {
        let here = free.count(want);
        let (kept, until) = (|| self.kept.as_ref().map_or(0, |kept| kept.count(want)), self.until);
        here >= min
            || (run_estimate.zip(until).is_some_and(|(run, until)| run <= until) && here + kept() >= min)
    }

    /// Places for a job that [may overtake](Self::may_overtake): free ones, or kept ones if it is over by the time when
    /// they are needed.
    pub(super) fn overtake(&mut self, min: usize, want: &Want, free: &mut Free<'_>) -> Option<Vec<Place>> {
        if free.count(want) >= min {
            return Some(free.take(min, want, &[]));
        }
        let kept = self.kept.as_mut()?;
        if kept.count(want) >= min {
            return Some(kept.take(min, want, &[]));
        }
        let mut places = free.take(min, want, &[]);
        let free_ones = places.len();
        places.extend(kept.take(min - free_ones, want, &places));
        if places.len() == min {
            return Some(places);
        }
        // A worker with several slots was counted on both sides.
        kept.put_back(&places.split_off(free_ones));
        free.put_back(&places);
        None
    }

    /// Workers that are kept.
    pub(super) fn kept(&self) -> usize {
        self.kept.as_ref().map_or(0, Free::total)
    }
}
