//! The fault suite: fleets of real processes, faults drawn from a seed, and what must hold after each run.

pub mod clock;
pub mod netns;
pub mod postgres;
pub mod proxy;
