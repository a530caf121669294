//! The optimizers behind one trait, the course of the learning rate, clipping, and the state that a step changes.

pub mod adamw;
pub mod adamw_8bit;
pub mod clip;
mod dynamic_map;
pub mod file;
pub mod lion;
pub mod rules;
pub mod schedule;
pub mod sgd;
pub mod state;
mod sweep;

use std::fmt::Debug;
use std::ops::Range;

use state::{State, StatePlan};

/// One trained tensor: where it lies in the flat buffers, and the rule by which it is updated.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its key in files.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its place in every flat buffer.
    pub place: Range<usize>,
    /// Its peak learning rate.
    pub lr: f64,
    /// Its weight decay.
    pub weight_decay: f64,
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Share of the peak learning rate: see [`schedule::LearningRate`].
    pub share: f64,
    /// Factor of the gradient: see [`clip::coefficient`].
    pub clip: f32,
    /// The step as the bias correction of moments counts it, from 1.
    pub count: u64,
}

/// What makes new weights of a gradient.
///
/// An optimizer has no state of its own: what it remembers lies in the buffers of a [`State`], which it describes by
/// its [`StatePlan`], so that a state can be written, read, hashed and compared whoever made it. An update uses IEEE
/// add, multiply, divide and square root only, in one order, whatever the number of threads: every member of a gang
/// computes the same bits.
pub trait Optimizer: Send + Sync + Debug {
    /// The buffers it keeps beside the weights; all zero before the first step.
    fn plan(&self) -> &StatePlan;

    /// Writes the state after one more step into `to`, from the state `from` and the mean gradient. Returns whether
    /// every new weight is finite; `to` counts only then. It may have held anything before.
    fn step(&self, update: Update, gradient: &[f32], from: &State, to: &mut State) -> bool;
}

#[cfg(test)]
mod tests;
