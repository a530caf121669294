//! Why a job waits, as one sentence.

use std::{fmt, sync::Arc, time::Duration};

use super::Labels;

/// Why a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The whole fleet, or all of it that matches the selector, could not hold it.
    TooSmall {
        /// Members that it needs.
        needs: usize,
        /// Workers that there are.
        has: usize,
        /// What it asks of them.
        selector: Arc<Labels>,
    },
    /// Its tenant may not run so many workers.
    Quota {
        /// Members that it needs.
        needs: usize,
        /// Workers that its tenant runs.
        runs: usize,
        /// Workers that its tenant may run.
        may: usize,
    },
    /// It is next, and workers are busy.
    Busy {
        /// Members that it needs.
        needs: usize,
        /// What it asks of them.
        selector: Arc<Labels>,
    },
    /// Running jobs give workers back for it.
    GivenBack {
        /// How many.
        workers: usize,
    },
    /// Jobs of a lower priority go back to the queue for it.
    Preempting {
        /// How many.
        jobs: usize,
    },
    /// Another job, which comes first, waits for workers.
    Turn {
        /// Members that the other one needs.
        earlier: usize,
    },
    /// It could use more workers than it needs, and others may come.
    Moment,
}

/// Why a job waits, where it stands, and when it may start: the words that its user reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words<'a> {
    /// Why.
    pub reason: &'a Reason,
    /// Its place in the queue, from 1.
    pub position: usize,
    /// When it may start, from now.
    pub estimate: Option<Duration>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { needs, has, selector } if selector.is_empty() => {
                write!(f, "needs {}, the fleet has {}", workers(*needs), number(*has))
            }
            Self::TooSmall { needs, has: 0, selector } => {
                write!(f, "needs {} with {selector}, the fleet has none", workers(*needs))
            }
            Self::TooSmall { needs, has, selector } => {
                write!(f, "needs {} with {selector}, the fleet has {has}", workers(*needs))
            }
            Self::Quota { needs, runs, may } => {
                write!(f, "needs {}, its tenant may run {may} and runs {runs}", workers(*needs))
            }
            Self::Busy { needs, selector } if selector.is_empty() => {
                write!(f, "waits for {} to be free", workers(*needs))
            }
            Self::Busy { needs, selector } => {
                write!(f, "waits for {} with {selector} to be free", workers(*needs))
            }
            Self::GivenBack { workers: n } => {
                write!(f, "waits for {} that running jobs give back", workers(*n))
            }
            Self::Preempting { jobs: 1 } => {
                write!(f, "waits for a job of lower priority to go back to the queue")
            }
            Self::Preempting { jobs } => {
                write!(f, "waits for {jobs} jobs of lower priority to go back to the queue")
            }
            Self::Turn { earlier } => {
                write!(f, "waits its turn: an earlier job waits for {}", workers(*earlier))
            }
            Self::Moment => write!(f, "starts in a moment"),
        }
    }
}

/// One sentence; the place is rounded the more the further behind it is, so that the words of a long queue seldom
/// change.
impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if matches!(self.reason, Reason::Moment) {
            return Ok(());
        }
        match rounded(self.position) {
            place if place == self.position => write!(f, "; it is number {place} in the queue")?,
            place => write!(f, "; it is about number {place} in the queue")?,
        }
        match self.estimate.map(|estimate| estimate.as_secs().div_ceil(60)) {
            None => Ok(()),
            Some(0..=1) => write!(f, " and may start within a minute"),
            Some(minutes @ 2..=90) => {
                write!(f, " and may start in about {} minutes", rounded_minutes(minutes))
            }
            Some(minutes) => write!(f, " and may start in about {} hours", minutes.div_ceil(60)),
        }
    }
}

/// To one digit from 20 on.
fn rounded(position: usize) -> usize {
    let mut unit = 1;
    while position / unit >= 20 {
        unit *= 10;
    }
    position.div_ceil(unit) * unit
}

/// To 2 up to 10, to 5 up to 30, to 15 above.
fn rounded_minutes(minutes: u64) -> u64 {
    let unit = match minutes {
        0..=10 => 2,
        11..=30 => 5,
        _ => 15,
    };
    minutes.div_ceil(unit) * unit
}

fn workers(n: usize) -> String {
    if n == 1 { "a worker".to_owned() } else { format!("{n} workers") }
}

fn number(fleet: usize) -> String {
    if fleet == 0 { "no workers".to_owned() } else { fleet.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_rounded_the_more_the_further_behind_they_are() {
        assert_eq!(
            [1, 9, 19, 20, 21, 99, 199, 1234, 100_000].map(rounded),
            [1, 9, 19, 20, 30, 100, 200, 1300, 100_000]
        );
    }

    #[test]
    fn words_name_what_is_waited_for_the_place_and_the_time() {
        let zone_a: Arc<Labels> = Arc::new([("zone", "a")].into_iter().collect());
        let say = |reason: &Reason, position, seconds: Option<u64>| {
            Words { reason, position, estimate: seconds.map(Duration::from_secs) }.to_string()
        };
        let busy = Reason::Busy { needs: 2, selector: zone_a.clone() };
        assert_eq!(
            say(&busy, 3, Some(500)),
            "waits for 2 workers with zone=a to be free; it is number 3 in the queue and may start in about 10 minutes"
        );
        assert_eq!(
            say(&Reason::TooSmall { needs: 1, has: 0, selector: zone_a }, 1, None),
            "needs a worker with zone=a, the fleet has none; it is number 1 in the queue"
        );
        assert_eq!(say(&Reason::Moment, 1, None), "starts in a moment");
        assert!(say(&Reason::Turn { earlier: 1 }, 1234, Some(7000)).ends_with(
            "waits for a worker; it is about number 1300 in the queue and may start in about 2 hours"
        ));
        assert!(say(&Reason::Preempting { jobs: 2 }, 1, Some(10)).contains("2 jobs of lower priority"));
        assert!(say(&Reason::Quota { needs: 2, runs: 7, may: 8 }, 1, None).contains("may run 8 and runs 7"));
    }
}
