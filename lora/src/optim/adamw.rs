//! AdamW (arXiv:1711.05101), equal to `torch.optim.AdamW`, as one pass over the flat buffers.

use super::state::{Buffer, State, StatePlan};
use super::sweep::{Elements, Rule, Sweep};
use super::{Optimizer, Parameter, Update};

/// AdamW's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// AdamW with both moments in f32.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: Settings,
    sweep: Sweep,
    plan: StatePlan,
}

/// The scalars of one step, rounded to f32 once, as torch does when it meets f32 tensors.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub clip: f32,
    pub decay: f32,
    pub beta1: f32,
    pub first: f32,
    pub beta2: f32,
    pub second: f32,
    pub root: f32,
    pub eps: f32,
    pub step_size: f32,
}

impl Settings {
    pub(super) fn factors(&self, update: Update, rule: Rule) -> Factors {
        // libm's pow, not the platform's: the same bits on every machine.
        let correction1 = 1.0 - libm::pow(self.beta1, update.count as f64);
        let correction2 = 1.0 - libm::pow(self.beta2, update.count as f64);
        let lr = rule.lr * update.share;
        Factors {
            clip: update.clip,
            decay: (1.0 - lr * rule.weight_decay) as f32,
            beta1: self.beta1 as f32,
            first: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            second: (1.0 - self.beta2) as f32,
            root: correction2.sqrt() as f32,
            eps: self.eps as f32,
            step_size: (lr / correction1) as f32,
        }
    }
}

impl AdamW {
    /// AdamW over these tensors.
    pub fn new(settings: Settings, parameters: &[Parameter]) -> Self {
        let floats = ["exp_avg", "exp_avg_sq"].map(|name| Buffer::like_weights(name, parameters)).into();
        Self { settings, sweep: Sweep::new(parameters), plan: StatePlan { floats, codes: Vec::new() } }
    }
}

impl Optimizer for AdamW {
    fn plan(&self) -> &StatePlan {
        &self.plan
    }

    fn step(&self, update: Update, gradient: &[f32], from: &State, to: &mut State) -> bool {
        let factors = |rule| self.settings.factors(update, rule);
        self.sweep.step(gradient, from, to, factors, adamw)
    }
}

/// The update, element by element: only IEEE add, multiply, divide and square root, in torch's order.
///
/// `w·(1 − lr·λ)`, `m + (1 − β₁)(g − m)`, `β₂·v + (1 − β₂)·g·g`, then `w − (lr / c₁)·m / (√v / √c₂ + ε)`.
pub(super) fn adamw(f: &Factors, e: Elements<'_, 2>) -> bool {
    let len = e.gradient.len();
    // Slices of one length, said once: the loop then needs no bounds checks and becomes vector code.
    let (g, w, [m, v]) = (&e.gradient[..len], &e.weights[..len], e.moments.map(|moment| &moment[..len]));
    let (w_to, [m_to, v_to]) = (&mut e.new_weights[..len], e.new_moments.map(|moment| &mut moment[..len]));
    let mut finite = true;
    for i in 0..len {
        let g = g[i] * f.clip;
        let m = m[i] + f.first * (g - m[i]);
        let v = v[i] * f.beta2 + f.second * g * g;
        let denominator = v.sqrt() / f.root + f.eps;
        let w = w[i] * f.decay - f.step_size * m / denominator;
        finite &= w.is_finite();
        w_to[i] = w;
        m_to[i] = m;
        v_to[i] = v;
    }
    finite
}
