//! What is kept for how long, and how many of it at most.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Nothing is forgotten sooner: whoever acts on what has just ended still finds it.
const SHORTEST: Duration = Duration::from_secs(3600);

/// What is kept for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
#[group(skip)]
pub struct Retention {
    /// Events are kept at least this long after their job ended.
    #[arg(id = "keep_events", long = "keep-events", env = "LORAFLEET_KEEP_EVENTS", default_value = "90d",
          value_parser = humantime::parse_duration)]
    pub events: Duration,

    /// Metric points are kept at least this long after their job ended.
    #[arg(id = "keep_points", long = "keep-points", env = "LORAFLEET_KEEP_POINTS", default_value = "90d",
          value_parser = humantime::parse_duration)]
    pub points: Duration,

    /// Of jobs that ended this long ago at most about 2,000 points stay, and all evaluations.
    #[arg(id = "keep_whole_points", long = "keep-whole-points", env = "LORAFLEET_KEEP_WHOLE_POINTS", default_value = "7d",
          value_parser = humantime::parse_duration)]
    pub whole_points: Duration,

    /// Jobs and sweeps are kept this long after their end. Their files in the store are not touched.
    #[arg(id = "keep_jobs", long = "keep-jobs", env = "LORAFLEET_KEEP_JOBS", default_value = "365d",
          value_parser = humantime::parse_duration)]
    pub jobs: Duration,

    /// Workers that are gone are listed for this long.
    #[arg(id = "keep_workers", long = "keep-workers", env = "LORAFLEET_KEEP_WORKERS", default_value = "30d",
          value_parser = humantime::parse_duration)]
    pub workers: Duration,

    /// Where there are more events than this, by Postgres' estimate, the oldest are dropped before their time, those of
    /// weeks with a live job excepted.
    #[arg(long = "most-events", env = "LORAFLEET_MOST_EVENTS")]
    pub most_events: Option<u64>,

    /// As --most-events, for metric points.
    #[arg(long = "most-points", env = "LORAFLEET_MOST_POINTS")]
    pub most_points: Option<u64>,

    /// Where there are more ended jobs than this, those that ended first are forgotten before their time.
    #[arg(long = "most-jobs", env = "LORAFLEET_MOST_JOBS")]
    pub most_jobs: Option<u64>,

    /// The leader looks this often for what is past its time.
    #[arg(id = "housekeeping", long = "housekeeping", env = "LORAFLEET_HOUSEKEEPING", default_value = "5m",
          value_parser = humantime::parse_duration)]
    pub every: Duration,
}

impl Retention {
    /// What one field alone cannot tell.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let times = [
            ("--keep-events", self.events),
            ("--keep-points", self.points),
            ("--keep-whole-points", self.whole_points),
            ("--keep-jobs", self.jobs),
            ("--keep-workers", self.workers),
        ];
        for (flag, time) in times {
            // So that Postgres can subtract it from now.
            if time < SHORTEST || time > DAY * 365_000 {
                return Err(format!("{flag} {time:?} must be between 1 hour and 1000 years"));
            }
        }
        if self.every.is_zero() {
            return Err("--housekeeping must be above 0".to_owned());
        }
        Ok(())
    }
}
