//! Tests of the whole engine: against PEFT's numbers, for determinism, and on the example base.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails, its helpers too")]

mod determinism;
mod errors;
mod evaluation;
mod fixtures;
mod merging;
mod parity;
mod training;
