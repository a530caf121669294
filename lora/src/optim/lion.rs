//! Lion (arXiv:2302.06675), equal to bitsandbytes' and lion-pytorch's: a signed update, weight decay decoupled.

use super::state::{Buffer, State, StatePlan};
use super::sweep::{Elements, Rule, Sweep};
use super::{Optimizer, Parameter, Update};

/// Lion; its only state is an average of the gradient.
#[derive(Clone, Debug)]
pub struct Lion {
    beta1: f64,
    beta2: f64,
    sweep: Sweep,
    plan: StatePlan,
}

/// The scalars of one step.
struct Factors {
    clip: f32,
    decay: f32,
    beta1: f32,
    first: f32,
    beta2: f32,
    second: f32,
    lr: f32,
}

impl Lion {
    /// Lion over these tensors: `beta1` mixes average and gradient for the sign, `beta2` decays the average.
    pub fn new(beta1: f64, beta2: f64, parameters: &[Parameter]) -> Self {
        let floats = vec![Buffer::like_weights("exp_avg", parameters)];
        Self { beta1, beta2, sweep: Sweep::new(parameters), plan: StatePlan { floats, codes: Vec::new() } }
    }
}

impl Optimizer for Lion {
    fn plan(&self) -> &StatePlan {
        &self.plan
    }

    fn step(&self, update: Update, gradient: &[f32], from: &State, to: &mut State) -> bool {
        let factors = |rule: Rule| {
            let lr = rule.lr * update.share;
            Factors {
                clip: update.clip,
                decay: (1.0 - lr * rule.weight_decay) as f32,
                beta1: self.beta1 as f32,
                first: (1.0 - self.beta1) as f32,
                beta2: self.beta2 as f32,
                second: (1.0 - self.beta2) as f32,
                lr: lr as f32,
            }
        };
        self.sweep.step(gradient, from, to, factors, lion)
    }
}

/// `w·(1 − lr·λ) − lr·sign(β₁·m + (1 − β₁)·g)`, then `m ← β₂·m + (1 − β₂)·g`.
fn lion(f: &Factors, e: Elements<'_, 1>) -> bool {
    let len = e.gradient.len();
    let (g, w, [m]) = (&e.gradient[..len], &e.weights[..len], e.moments.map(|moment| &moment[..len]));
    let (w_to, [m_to]) = (&mut e.new_weights[..len], e.new_moments.map(|moment| &mut moment[..len]));
    let mut finite = true;
    for i in 0..len {
        let g = g[i] * f.clip;
        let w = w[i] * f.decay - f.lr * sign(m[i] * f.beta1 + f.first * g);
        finite &= w.is_finite();
        w_to[i] = w;
        m_to[i] = m[i] * f.beta2 + f.second * g;
    }
    finite
}

/// −1, 0 or 1; f32::signum has no 0.
fn sign(x: f32) -> f32 {
    f32::from(u8::from(x > 0.0)) - f32::from(u8::from(x < 0.0))
}
