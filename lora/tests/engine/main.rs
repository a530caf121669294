//! Tests of the whole engine: against PEFT's numbers, for determinism, and on the example base.

mod determinism;
mod errors;
mod evaluation;
mod fixtures;
mod merge;
mod parity;
