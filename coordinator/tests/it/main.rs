//! The coordinator over a real Postgres and real gRPC on loopback, with simulated workers.

mod bed;
mod pair;
mod worker;

mod cancel;
mod checkpoints;
mod cuts;
mod dependencies;
mod elastic;
mod fencing;
mod housekeeping;
mod jobs_api;
mod leases;
mod life;
mod lines;
mod outages;
mod pause;
mod plans;
mod pooler;
mod quotas;
mod race;
mod reclaim;
mod retries;
mod sharing;
mod silence;
mod sweeps;
mod tenants;
mod tokens;
mod usage;
mod watch;
