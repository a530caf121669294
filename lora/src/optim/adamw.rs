//! AdamW (arXiv:1711.05101), equal to `torch.optim.AdamW`, as one pass over the flat buffers.

use rayon::prelude::*;

use crate::exact::CHUNK;
use crate::params::State;

/// AdamW's settings.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The scalars of one step, rounded to f32 once, as torch does when it meets f32 tensors.
#[derive(Clone, Copy)]
struct Factors {
    clip: f32,
    decay: f32,
    first: f32,
    beta2: f32,
    second: f32,
    root: f32,
    eps: f32,
    step_size: f32,
}

impl AdamW {
    fn factors(&self, step: u64, lr: f64, clip: f32) -> Factors {
        // libm's pow, not the platform's: the same bits on every machine.
        let correction1 = 1.0 - libm::pow(self.beta1, step as f64);
        let correction2 = 1.0 - libm::pow(self.beta2, step as f64);
        Factors {
            clip,
            decay: (1.0 - lr * self.weight_decay) as f32,
            first: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            second: (1.0 - self.beta2) as f32,
            root: correction2.sqrt() as f32,
            eps: self.eps as f32,
            step_size: (lr / correction1) as f32,
        }
    }

    /// Writes the state after one more step into `to`, from the state `from` and the mean gradient, which is multiplied
    /// by `clip` first. Returns whether every new weight is finite; `to` counts only then.
    pub fn step(&self, lr: f64, clip: f32, gradient: &[f32], from: &State, to: &mut State) -> bool {
        let factors = self.factors(from.step + 1, lr, clip);
        to.step = from.step + 1;
        let read = from
            .weights
            .par_chunks(CHUNK)
            .zip(from.first.par_chunks(CHUNK))
            .zip(from.second.par_chunks(CHUNK));
        let write = to
            .weights
            .par_chunks_mut(CHUNK)
            .zip(to.first.par_chunks_mut(CHUNK))
            .zip(to.second.par_chunks_mut(CHUNK));
        read.zip(write)
            .zip(gradient.par_chunks(CHUNK))
            .map(|((((w, m), v), ((w_to, m_to), v_to)), g)| update(factors, g, (w, m, v), (w_to, m_to, v_to)))
            .reduce(|| true, |a, b| a & b)
    }
}

/// The update, element by element: only IEEE add, multiply, divide and square root, in torch's order.
///
/// `w·(1 − lr·λ)`, `m + (1 − β₁)(g − m)`, `β₂·v + (1 − β₂)·g·g`, then `w − (lr / c₁)·m / (√v / √c₂ + ε)`.
fn update(
    f: Factors,
    g: &[f32],
    from: (&[f32], &[f32], &[f32]),
    to: (&mut [f32], &mut [f32], &mut [f32]),
) -> bool {
    let len = g.len();
    // Slices of one length, said once: the loop then needs no bounds checks and becomes vector code.
    let (w, m, v) = (&from.0[..len], &from.1[..len], &from.2[..len]);
    let (w_to, m_to, v_to) = (&mut to.0[..len], &mut to.1[..len], &mut to.2[..len]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_follow_the_formula() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let mut state = State::zeros(1);
        state.weights[0] = 0.5;
        let (mut w, mut m, mut v) = (0.5f64, 0.0f64, 0.0f64);
        for (step, g) in (1..).zip([0.3f64, -0.2, 0.7]) {
            let mut next = State::zeros(1);
            assert!(adamw.step(0.01, 1.0, &[g as f32], &state, &mut next));
            state = next;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (c1, c2) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
            w = w * (1.0 - 0.01 * 0.1) - 0.01 / c1 * m / ((v / c2).sqrt() + 1e-8);
            assert!(
                (f64::from(state.weights[0]) - w).abs() < 1e-6,
                "step {step}: {} is not {w}",
                state.weights[0]
            );
            assert_eq!(state.step, step as u64);
        }
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let len = 3 * CHUNK + 17;
        let gradient: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let states: Vec<State> = [1, 2, 3]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut to = State::zeros(len);
                assert!(pool.install(|| adamw.step(1e-3, 0.5, &gradient, &State::zeros(len), &mut to)));
                to
            })
            .into();
        assert!(states[0] == states[1] && states[1] == states[2]);
    }

    #[test]
    fn a_weight_that_is_not_finite_is_reported() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let mut to = State::zeros(1);
        assert!(!adamw.step(f64::INFINITY, 1.0, &[1.0], &State::zeros(1), &mut to));
    }
}
