//! Stochastic gradient descent with momentum, equal to `torch.optim.SGD` (dampening 0, no Nesterov).

use super::state::{Buffer, State, StatePlan};
use super::sweep::{Elements, Rule, Sweep};
use super::{Optimizer, Parameter, Update};

/// SGD; weight decay is coupled (added to the gradient), as torch has it.
#[derive(Clone, Debug)]
pub struct Sgd {
    momentum: f64,
    sweep: Sweep,
    plan: StatePlan,
}

/// The scalars of one step.
struct Factors {
    clip: f32,
    decay: f32,
    momentum: f32,
    lr: f32,
}

impl Sgd {
    /// SGD over these tensors; with a momentum of 0 it keeps no state.
    pub fn new(momentum: f64, parameters: &[Parameter]) -> Self {
        let buffer = || Buffer::like_weights("momentum_buffer", parameters);
        let floats = if momentum == 0.0 { Vec::new() } else { vec![buffer()] };
        Self { momentum, sweep: Sweep::new(parameters), plan: StatePlan { floats, codes: Vec::new() } }
    }
}

impl Optimizer for Sgd {
    fn plan(&self) -> &StatePlan {
        &self.plan
    }

    fn step(&self, update: Update, gradient: &[f32], from: &State, to: &mut State) -> bool {
        let factors = |rule: Rule| Factors {
            clip: update.clip,
            decay: rule.weight_decay as f32,
            momentum: self.momentum as f32,
            lr: (rule.lr * update.share) as f32,
        };
        if self.momentum == 0.0 {
            self.sweep.step(gradient, from, to, factors, plain)
        } else {
            self.sweep.step(gradient, from, to, factors, with_momentum)
        }
    }
}

/// `w − lr·(g + λ·w)`.
fn plain(f: &Factors, e: Elements<'_, 0>) -> bool {
    let mut finite = true;
    for ((w_to, w), g) in e.new_weights.iter_mut().zip(e.weights).zip(e.gradient) {
        *w_to = w - f.lr * (g * f.clip + f.decay * w);
        finite &= w_to.is_finite();
    }
    finite
}

/// `b ← μ·b + g + λ·w`, then `w − lr·b`; torch's first b, which is g alone, is the same from a b of zero.
fn with_momentum(f: &Factors, e: Elements<'_, 1>) -> bool {
    let len = e.gradient.len();
    let (g, w, [b]) = (&e.gradient[..len], &e.weights[..len], e.moments.map(|moment| &moment[..len]));
    let (w_to, [b_to]) = (&mut e.new_weights[..len], e.new_moments.map(|moment| &mut moment[..len]));
    let mut finite = true;
    for i in 0..len {
        let b = b[i] * f.momentum + (g[i] * f.clip + f.decay * w[i]);
        let w = w[i] - f.lr * b;
        finite &= w.is_finite();
        w_to[i] = w;
        b_to[i] = b;
    }
    finite
}
