//! The head of a classifier: one token of each sequence, an optional dense layer with its activation, and the classes.

use candle_core::Tensor;
use lorafleet_spec::base::HeadActivation;

use super::ModelError;
use super::batch::Labels;
use super::columns::width;
use super::parameters::NormId;
use super::pass::Pass;
use super::projection::{Lows, Projection};
use crate::linear::Into;
use crate::ops::activation::{tanh_backward, tanh_forward};
use crate::ops::{cross_entropy, into_vec, matrix, view};

const OP: &str = "classifier";

/// A classifier's head.
#[derive(Debug)]
pub(crate) struct ClassifierHead {
    /// Of the last block's output.
    pub norm: Option<NormId>,
    /// The dense layer before the last one, and what it goes through.
    pub dense: Option<(Projection, HeadActivation)>,
    /// The last layer.
    pub output: Projection,
    /// Its outputs: classes, or 1 for a score.
    pub labels: usize,
}

/// Sequences on their way to logits.
struct Forwarded {
    normed: Option<(Tensor, Tensor)>,
    dense: Option<(Tensor, Lows)>,
    logits: Tensor,
    lows: Lows,
}

impl ClassifierHead {
    /// Logits or scores of each sequence, from its row of `x` `[S, H]`: `[S, labels]`.
    pub fn logits(&self, x: &Tensor, pass: &Pass) -> Result<Vec<f32>, ModelError> {
        Ok(into_vec(OP, self.forward(x, pass)?.logits)?)
    }

    /// The loss, summed over the sequences: cross-entropy of classes, or the squared error of scores.
    pub fn loss(&self, x: &Tensor, labels: &Labels, pass: &Pass) -> Result<f64, ModelError> {
        let mut logits = into_vec(OP, self.forward(x, pass)?.logits)?;
        self.loss_of(&mut logits, labels)
    }

    /// As [`ClassifierHead::loss`]; the gradients of what is trained of the head, at their places, and that of `x`.
    pub fn loss_and_gradient(
        &self,
        x: Tensor,
        labels: &Labels,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<(f64, Tensor), ModelError> {
        let Forwarded { normed, dense, logits, lows } = self.forward(&x, pass)?;
        let mut d = into_vec(OP, logits)?;
        let loss = self.loss_of(&mut d, labels)?;
        let d = matrix(d, self.labels)?;
        let h = normed.as_ref().map_or(&x, |(h, _)| h);
        let input = dense.as_ref().map_or(h, |(act, _)| act);
        let mut d = back(&self.output, d, &lows, input, gradients, pass)?;
        if let (Some((layer, activation)), Some((act, lows))) = (&self.dense, &dense) {
            d = activate_backward(*activation, d, act)?;
            d = back(layer, d, lows, h, gradients, pass)?;
        }
        if let (Some(norm), Some((_, stats))) = (self.norm, &normed) {
            d = pass.norm(norm).backward(&x, stats, &d, None, gradients, pass.scope)?;
        }
        Ok((loss, d))
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Forwarded, ModelError> {
        let normed = self.norm.map(|norm| pass.norm(norm).forward(x, None, pass.scope)).transpose()?;
        let h = normed.as_ref().map_or(x, |(h, _)| h);
        let dense = match &self.dense {
            Some((layer, activation)) => {
                let (y, lows) = layer.forward_one(h, None, pass)?;
                Some((activate(*activation, y)?, lows))
            }
            None => None,
        };
        let (logits, lows) = self.output.forward_one(dense.as_ref().map_or(h, |(act, _)| act), None, pass)?;
        Ok(Forwarded { normed, dense, logits, lows })
    }

    /// The loss; its gradient takes the logits' place.
    fn loss_of(&self, logits: &mut [f32], labels: &Labels) -> Result<f64, ModelError> {
        match labels {
            Labels::Classes(classes) => {
                if let Some((index, class)) =
                    classes.iter().enumerate().find(|(_, class)| **class as usize >= self.labels)
                {
                    let message = format!("is of class {class}, but the model knows {}", self.labels);
                    return Err(ModelError::Example { index, message });
                }
                Ok(cross_entropy::forward_backward(logits, self.labels, classes, None))
            }
            Labels::Scores(scores) if self.labels == 1 => Ok(squared_error(logits, scores)),
            Labels::Scores(_) => Err(ModelError::Task("scores need a model with one output")),
            Labels::Tokens { .. } | Labels::Nothing => {
                Err(ModelError::Task("a classifier predicts a class or a score for each example, not tokens"))
            }
        }
    }
}

/// From the gradient of a layer's result to that of its input, and the layer's own gradients to their places.
fn back(
    layer: &Projection,
    d: Tensor,
    lows: &Lows,
    input: &Tensor,
    gradients: &mut [f32],
    pass: &Pass,
) -> Result<Tensor, ModelError> {
    let (dx, reduced) = layer.backward_input(&[&d], lows, true, pass)?;
    if layer.is_trained(pass) {
        layer.backward_weights(&[&d], lows, reduced, input, gradients, Into::Overwrite, pass)?;
    }
    pass.scope.pool.recycle(d)?;
    Ok(dx.expect("the gradient of the input was asked for"))
}

/// Sum over sequences of `(prediction - score)²`, and its gradient in the predictions' place.
fn squared_error(predictions: &mut [f32], scores: &[f32]) -> f64 {
    let mut loss = 0.0;
    for (prediction, score) in predictions.iter_mut().zip(scores) {
        let off = f64::from(*prediction) - f64::from(*score);
        loss += off * off;
        *prediction = 2.0 * (*prediction - score);
    }
    loss
}

fn activate(activation: HeadActivation, y: Tensor) -> Result<Tensor, ModelError> {
    match activation {
        HeadActivation::Tanh => Ok(tanh_forward(y)?),
        HeadActivation::Relu => {
            let (columns, mut y) = (width(&y)?, into_vec(OP, y)?);
            y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
            Ok(matrix(y, columns)?)
        }
    }
}

/// The gradient before the activation, from its result.
fn activate_backward(activation: HeadActivation, d: Tensor, act: &Tensor) -> Result<Tensor, ModelError> {
    match activation {
        HeadActivation::Tanh => Ok(tanh_backward(act, d)?),
        HeadActivation::Relu => {
            let (columns, mut d) = (width(&d)?, into_vec(OP, d)?);
            d.iter_mut().zip(&*view(OP, act)?).for_each(|(d, y)| *d = if *y > 0.0 { *d } else { 0.0 });
            Ok(matrix(d, columns)?)
        }
    }
}
