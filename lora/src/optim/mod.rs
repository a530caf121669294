//! The optimizer: its update, the course of its learning rate, and clipping.

pub mod adamw;
pub mod clip;
pub mod schedule;
