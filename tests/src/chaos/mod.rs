//! The fault suite: fleets of real processes, faults drawn from a seed, and what must hold after each run.

pub mod check;
pub mod client;
pub mod clock;
pub mod defect;
pub mod disk;
pub mod effect;
pub mod inject;
pub mod job;
pub mod kind;
pub mod legal;
pub mod memory;
pub mod netns;
pub mod plan;
pub mod postgres;
pub mod proxy;
pub mod random;
pub mod record;
pub mod recovery;
pub mod rig;
pub mod run;
pub mod suite;
pub mod tally;
