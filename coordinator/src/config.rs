//! The coordinator's configuration: flags, each with its environment variable, loopback by default.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use lorafleet_telemetry::LogFormat;

use crate::{db::DbConfig, housekeeping::Retention, leader::LeaderConfig, silence::Patience};

/// Runs jobs on a fleet of workers: the API, the queue and the scheduler of lorafleet.
#[derive(Clone, Debug, Parser)]
#[command(name = "lorafleet-coordinator", version, about, args_override_self = true)]
pub struct Config {
    /// Where the gRPC API listens.
    #[arg(long, env = "LORAFLEET_LISTEN", default_value = "127.0.0.1:7400")]
    pub listen: SocketAddr,

    /// Postgres; a transaction-mode PgBouncer (1.21 or later) may stand in between.
    #[arg(long, env = "LORAFLEET_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// Postgres past any pooler, for migrations: their lock belongs to a session. Default: --database-url.
    #[arg(long, env = "LORAFLEET_DATABASE_DIRECT_URL", hide_env_values = true)]
    pub database_direct_url: Option<String>,

    /// Connections to Postgres at most.
    #[arg(long, env = "LORAFLEET_DATABASE_CONNECTIONS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: u32,

    /// How long to try to reach Postgres at the start, as `30s` or `500ms`.
    #[arg(long, env = "LORAFLEET_DATABASE_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    pub database_timeout: Duration,

    /// The object store's root: file:///path, s3://bucket/prefix, gs://…, az://…. Workers are told the same URL.
    #[arg(long, env = "LORAFLEET_STORE", hide_env_values = true)]
    pub store: String,

    /// Where Prometheus finds the metrics at /metrics; port 0 chooses a free one.
    #[arg(long, env = "LORAFLEET_METRICS_LISTEN", default_value = "127.0.0.1:7401")]
    pub metrics_listen: SocketAddr,

    /// A worker that is silent for this long loses its work.
    #[arg(long, env = "LORAFLEET_LEASE", default_value = "15s", value_parser = humantime::parse_duration)]
    pub lease: Duration,

    /// A gang whose members all fall silent at once is waited for this long (or a lease, if that is longer): it may
    /// only be cut off, and train on.
    #[arg(long, env = "LORAFLEET_GANG_SILENCE", default_value = "60s", value_parser = humantime::parse_duration)]
    pub gang_silence: Duration,

    /// Workers send a heartbeat this often; at most a third of the lease.
    #[arg(long, env = "LORAFLEET_HEARTBEAT", default_value = "2s", value_parser = humantime::parse_duration)]
    pub heartbeat: Duration,

    /// Rows are looked at this often, hint or not.
    #[arg(long, env = "LORAFLEET_POLL", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub poll: Duration,

    /// A gang that has not loaded base and data within this time is taken apart.
    #[arg(long, env = "LORAFLEET_LOAD_LIMIT", default_value = "30m", value_parser = humantime::parse_duration)]
    pub load_limit: Duration,

    /// A job that could use more workers than it needs waits this long, so that others may share them.
    #[arg(long, env = "LORAFLEET_GATHER", default_value = "300ms", value_parser = humantime::parse_duration)]
    pub gather: Duration,

    /// Ask a token of every call. Without this, who shows none may do everything, in the tenant `default`.
    #[arg(long, env = "LORAFLEET_REQUIRE_TOKENS")]
    pub require_tokens: bool,

    /// Holds the token of a first admin; a file that is not there is made, with a new one.
    #[arg(long, env = "LORAFLEET_BOOTSTRAP_TOKEN", value_name = "FILE")]
    pub bootstrap_token: Option<PathBuf>,

    /// What is kept for how long.
    #[command(flatten)]
    pub keep: Retention,

    /// Threads that serve.
    #[arg(long, env = "LORAFLEET_COORDINATOR_THREADS", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,

    /// How logs look: `human` or `json`.
    #[arg(long, env = "LORAFLEET_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
}

impl Config {
    /// What one field alone cannot tell.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.heartbeat.is_zero() || self.poll.is_zero() {
            return Err("--heartbeat and --poll must be above 0".to_owned());
        }
        if self.heartbeat * 3 > self.lease {
            return Err(format!(
                "--heartbeat {:?} is more than a third of --lease {:?}: one late heartbeat would end a lease",
                self.heartbeat, self.lease
            ));
        }
        if self.poll > self.lease / 3 {
            return Err(format!("--poll {:?} is more than a third of --lease {:?}", self.poll, self.lease));
        }
        self.keep.check()
    }

    /// How to reach Postgres.
    pub fn db(&self) -> DbConfig {
        DbConfig {
            url: self.database_url.clone(),
            direct_url: self.database_direct_url.clone(),
            max_connections: self.database_connections,
            connect_timeout: self.database_timeout,
        }
    }

    /// What is kept for how long.
    pub fn retention(&self) -> Retention {
        self.keep
    }

    /// How to schedule.
    pub fn leader(&self) -> LeaderConfig {
        LeaderConfig {
            patience: Patience { lease: self.lease, gang: self.gang_silence },
            poll: self.poll,
            load_limit: self.load_limit,
            gather: self.gather,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Config {
        let needed = ["lorafleet-coordinator", "--database-url", "postgres://x", "--store", "memory://"];
        Config::try_parse_from(needed.iter().chain(more)).expect("valid flags")
    }

    #[test]
    fn durations_are_read_and_others_refused() {
        assert_eq!(parse(&["--poll", "500ms"]).poll, Duration::from_millis(500));
        assert_eq!(parse(&["--lease", "2h"]).lease, Duration::from_secs(7200));
        for wrong in ["15", "s", "99999999999999999999h"] {
            let flags = ["x", "--database-url", "postgres://x", "--store", "memory://", "--lease", wrong];
            assert!(Config::try_parse_from(flags).is_err(), "{wrong} is no duration");
        }
    }

    #[test]
    fn defaults_fit_together_and_listen_on_loopback() {
        let config = parse(&[]);
        assert_eq!(config.check(), Ok(()));
        assert!(config.listen.ip().is_loopback() && config.metrics_listen.ip().is_loopback());
        assert!(parse(&["--heartbeat", "10s"]).check().is_err());
    }
}
