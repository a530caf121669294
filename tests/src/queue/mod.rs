//! Speed of the queue: real coordinator, real Postgres, real gRPC; workers that do nothing.

pub mod figures;
pub mod history;
pub mod idle;
pub mod noop;
pub mod peers;
pub mod restart;
pub mod rig;
pub mod soak;
pub mod throughput;
