//! The worker: takes assignments from the coordinator and trains them, alone or as a member of a gang.
//!
//! [`agent`] speaks with the coordinator, [`run`] is one attempt from start to end, [`collective`] is how the members
//! of a gang sum their gradients. Nothing here knows a database, and training does not wait for the coordinator.

#![forbid(unsafe_code)]

pub mod agent;
pub mod background;
pub mod base_cache;
pub mod classify;
pub mod collective;
pub mod config;
pub mod generate;
pub mod health;
pub mod logits;
pub mod merge;
pub mod resources;
pub mod run;
pub mod serve;
pub mod telemetry;
