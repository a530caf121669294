//! The scheduler alone: how long a decision takes, and what a week of its decisions comes to.

pub mod decision;
pub mod draws;
pub mod scene;
pub mod simulation;
