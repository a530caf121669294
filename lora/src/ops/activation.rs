//! Activations of the MLP, gated (arXiv:2002.05202) or plain; the result is made again in the backward pass.

use candle_core::Tensor;
use lorafleet_spec::base::Activation;
use rayon::prelude::*;

use super::simd::{exp, sigmoid, vectorized};
use super::special::{erf, tanh};
use super::{OpError, Scope, TASK, into_vec, matrix, task_rows, view};

const OP: &str = "activation";

/// What the MLP's first layers gave.
#[derive(Debug)]
pub(crate) enum Inner {
    /// `act = f(up)`, `up` `[T, M]`.
    Plain(Tensor),
    /// `act = f(gate) · up`, both `[T, M]`.
    Gated { gate: Tensor, up: Tensor },
    /// The same from one matrix `[T, 2M]`: in each row first the gate, then up.
    Fused(Tensor),
}

impl Inner {
    /// Gives its buffers back.
    pub fn recycle(self, scope: Scope) -> Result<(), OpError> {
        match self {
            Self::Plain(x) | Self::Fused(x) => scope.pool.recycle(x),
            Self::Gated { gate, up } => {
                scope.pool.recycle(gate)?;
                scope.pool.recycle(up)
            }
        }
    }
}

/// Forward: → `act` `[T, M]`.
pub(crate) fn forward(inner: &Inner, kind: Activation, scope: Scope) -> Result<Tensor, OpError> {
    match inner {
        Inner::Plain(up) => {
            let columns = up.dim(1)?;
            let up = view(OP, up)?;
            let mut act = scope.pool.take(up.len());
            act.par_chunks_mut(TASK)
                .zip(up.par_chunks(TASK))
                .for_each(|(act, up)| with_kind!(kind, plain_forward(up, act)));
            matrix(act, columns)
        }
        Inner::Gated { gate, up } => {
            let columns = gate.dim(1)?;
            let (gate, up) = (view(OP, gate)?, view(OP, up)?);
            let mut act = scope.pool.take(gate.len());
            act.par_chunks_mut(TASK)
                .zip(gate.par_chunks(TASK))
                .zip(up.par_chunks(TASK))
                .for_each(|((act, gate), up)| with_kind!(kind, gated_forward(gate, up, act)));
            matrix(act, columns)
        }
        Inner::Fused(both) => {
            let columns = both.dim(1)? / 2;
            let both = view(OP, both)?;
            let mut act = scope.pool.take(both.len() / 2);
            let rows = task_rows(columns);
            act.par_chunks_mut(rows * columns).zip(both.par_chunks(2 * rows * columns)).for_each(
                |(act, both)| {
                    for (act, both) in act.chunks_exact_mut(columns).zip(both.chunks_exact(2 * columns)) {
                        let (gate, up) = both.split_at(columns);
                        with_kind!(kind, gated_forward(gate, up, act));
                    }
                },
            );
            matrix(act, columns)
        }
    }
}

/// What [`backward`] returns, each in the place of an argument.
#[derive(Debug)]
pub(crate) struct Backward {
    /// Gradients of what went in, laid out alike.
    pub d: Inner,
    /// The forward's result again, in `dact`'s place: the same bits.
    pub act: Tensor,
}

/// Backward: from what went in and the gradient `dact` `[T, M]` of the result.
pub(crate) fn backward(inner: Inner, kind: Activation, dact: Tensor) -> Result<Backward, OpError> {
    let columns = dact.dim(1)?;
    let mut act = into_vec(OP, dact)?;
    let d = match inner {
        Inner::Plain(up) => {
            let mut up = into_vec(OP, up)?;
            act.par_chunks_mut(TASK)
                .zip(up.par_chunks_mut(TASK))
                .for_each(|(act, up)| with_kind!(kind, plain_backward(up, act)));
            Inner::Plain(matrix(up, columns)?)
        }
        Inner::Gated { gate, up } => {
            let (mut gate, mut up) = (into_vec(OP, gate)?, into_vec(OP, up)?);
            act.par_chunks_mut(TASK)
                .zip(gate.par_chunks_mut(TASK))
                .zip(up.par_chunks_mut(TASK))
                .for_each(|((act, gate), up)| with_kind!(kind, gated_backward(gate, up, act)));
            Inner::Gated { gate: matrix(gate, columns)?, up: matrix(up, columns)? }
        }
        Inner::Fused(both) => {
            let mut both = into_vec(OP, both)?;
            let rows = task_rows(columns);
            act.par_chunks_mut(rows * columns).zip(both.par_chunks_mut(2 * rows * columns)).for_each(
                |(act, both)| {
                    let rows = act.chunks_exact_mut(columns).zip(both.chunks_exact_mut(2 * columns));
                    for (act, both) in rows {
                        let (gate, up) = both.split_at_mut(columns);
                        with_kind!(kind, gated_backward(gate, up, act));
                    }
                },
            );
            Inner::Fused(matrix(both, 2 * columns)?)
        }
    };
    Ok(Backward { d, act: matrix(act, columns)? })
}

/// The pooler's `tanh(x)`, in `x`'s place.
pub(crate) fn tanh_forward(x: Tensor) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let mut x = into_vec(OP, x)?;
    x.par_chunks_mut(TASK).for_each(tanh_values);
    matrix(x, columns)
}

/// The gradient of its argument from the result `y` and the result's gradient `dy`, in `dy`'s place.
pub(crate) fn tanh_backward(y: &Tensor, dy: Tensor) -> Result<Tensor, OpError> {
    let columns = y.dim(1)?;
    let (y, mut dy) = (view(OP, y)?, into_vec(OP, dy)?);
    dy.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(dy, y)| tanh_gradients(y, dy));
    matrix(dy, columns)
}

/// One activation function.
trait Function {
    /// `f(x)`.
    fn value(x: f32) -> f32;
    /// `f(x)`, the same bits, and `f'(x)`.
    fn both(x: f32) -> (f32, f32);
}

/// `x · sigmoid(x)`.
struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        let y = x * s;
        (y, s + y * (1.0 - s))
    }
}

/// `x · Φ(x)` (arXiv:1606.08415).
struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * (0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }
    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        /// 1/√(2π)
        const DENSITY: f32 = 0.398_942_3;
        let phi = 0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2);
        (x * phi, phi + x * (DENSITY * exp(-0.5 * x * x)))
    }
}

/// `½x · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
struct GeluTanh;

/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let t = tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
        x * (0.5 + 0.5 * t)
    }
    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let t = tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
        let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
        (x * (0.5 + 0.5 * t), (0.5 + 0.5 * t) + 0.5 * x * (1.0 - t * t) * inner)
    }
}

/// `max(x, 0)`.
struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        (Self::value(x), if x > 0.0 { 1.0 } else { 0.0 })
    }
}

/// Calls the loop that is compiled for that activation.
macro_rules! with_kind {
    ($kind:expr, $name:ident($($arg:expr),*)) => {
        match $kind {
            Activation::Silu => silu::$name($($arg),*),
            Activation::Gelu => gelu::$name($($arg),*),
            Activation::GeluTanh => gelu_tanh::$name($($arg),*),
            Activation::Relu => relu::$name($($arg),*),
        }
    };
}
use with_kind;

/// The loops over values, for one activation.
macro_rules! loops {
    ($module:ident, $function:ident) => {
        mod $module {
            use super::*;

            vectorized! {
                pub(super) fn plain_forward(up: &[f32], act: &mut [f32]) {
                    for (act, &up) in act.iter_mut().zip(up) {
                        *act = $function::value(up);
                    }
                }
            }

            vectorized! {
                pub(super) fn gated_forward(gate: &[f32], up: &[f32], act: &mut [f32]) {
                    for ((act, &gate), &up) in act.iter_mut().zip(gate).zip(up) {
                        *act = $function::value(gate) * up;
                    }
                }
            }

            vectorized! {
                pub(super) fn plain_backward(up: &mut [f32], act: &mut [f32]) {
                    for (up, act) in up.iter_mut().zip(act) {
                        let (value, slope) = $function::both(*up);
                        *up = *act * slope;
                        *act = value;
                    }
                }
            }

            vectorized! {
                pub(super) fn gated_backward(gate: &mut [f32], up: &mut [f32], act: &mut [f32]) {
                    for ((gate, up), act) in gate.iter_mut().zip(up).zip(act) {
                        let (value, slope) = $function::both(*gate);
                        let (u, d) = (*up, *act);
                        *act = value * u;
                        *up = d * value;
                        *gate = d * u * slope;
                    }
                }
            }
        }
    };
}

loops!(silu, Silu);
loops!(gelu, Gelu);
loops!(gelu_tanh, GeluTanh);
loops!(relu, Relu);

vectorized! {
    fn tanh_values(x: &mut [f32]) {
        for x in x {
            *x = tanh(*x);
        }
    }
}

vectorized! {
    fn tanh_gradients(y: &[f32], dy: &mut [f32]) {
        for (dy, y) in dy.iter_mut().zip(y) {
            *dy *= 1.0 - y * y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, close, noise, same_on_threads, scoped, values, weigh};

    const KINDS: [Activation; 4] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    /// By the definition, in f64.
    fn plain(x: f32, kind: Activation) -> f64 {
        let x = f64::from(x);
        match kind {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu => x.max(0.0),
        }
    }

    /// Values in ±4, none so near 0 that a difference would straddle relu's kink.
    fn spread(len: usize, seed: u64) -> Vec<f32> {
        noise(len, seed).iter().map(|x| if x.abs() < 0.01 { 0.5 } else { 4.0 * x }).collect()
    }

    #[test]
    fn gated_gradients() {
        let (t, m) = (200, 90);
        let (gate, up, dy) = (spread(t * m, 12), noise(t * m, 13), noise(t * m, 14));
        let tensor = |x: &[f32], columns| matrix(x.to_vec(), columns).unwrap();
        let rows = gate.chunks(m).zip(up.chunks(m));
        let both: Vec<f32> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
        for kind in KINDS {
            let separate = || Inner::Gated { gate: tensor(&gate, m), up: tensor(&up, m) };
            let fused = || Inner::Fused(tensor(&both, 2 * m));
            let definition = |gate: &[f32], up: &[f32]| -> Vec<f32> {
                gate.iter().zip(up).map(|(g, u)| (plain(*g, kind) * f64::from(*u)) as f32).collect()
            };
            let act = same_on_threads(|| scoped(|s| values(&forward(&separate(), kind, s).unwrap())));
            close(&act, &definition(&gate, &up), 2e-6);
            assert_eq!(act, scoped(|s| values(&forward(&fused(), kind, s).unwrap())), "{kind:?}");
            let both_back = |inner: Inner| {
                let back = backward(inner, kind, tensor(&dy, m)).unwrap();
                assert_eq!(values(&back.act), act, "the result made again has the same bits");
                match back.d {
                    Inner::Gated { gate, up } => [values(&gate), values(&up)].concat(),
                    Inner::Fused(both) => {
                        let both = values(&both);
                        let part = |at: usize| both.chunks(m).skip(at).step_by(2).flatten().copied();
                        part(0).chain(part(1)).collect()
                    }
                    Inner::Plain(_) => panic!("it was gated"),
                }
            };
            let d = same_on_threads(|| both_back(separate()));
            assert_eq!(d, same_on_threads(|| both_back(fused())), "{kind:?}");
            let (dgate, dup) = d.split_at(t * m);
            check_gradient("gate", &gate, dgate, |gate| weigh(&definition(gate, &up), &dy));
            check_gradient("up", &up, dup, |up| weigh(&definition(&gate, up), &dy));
        }
    }

    #[test]
    fn plain_gradients() {
        let (t, m) = (200, 90);
        let (up, dy) = (spread(t * m, 15), noise(t * m, 16));
        let tensor = |x: &[f32]| matrix(x.to_vec(), m).unwrap();
        for kind in KINDS {
            let definition = |up: &[f32]| -> Vec<f32> { up.iter().map(|x| plain(*x, kind) as f32).collect() };
            let act = same_on_threads(|| {
                scoped(|s| values(&forward(&Inner::Plain(tensor(&up)), kind, s).unwrap()))
            });
            close(&act, &definition(&up), 2e-6);
            let d = same_on_threads(|| {
                let back = backward(Inner::Plain(tensor(&up)), kind, tensor(&dy)).unwrap();
                assert_eq!(values(&back.act), act);
                let Inner::Plain(d) = back.d else { panic!("it was plain") };
                values(&d)
            });
            check_gradient("up", &up, &d, |up| weigh(&definition(up), &dy));
        }
    }

    #[test]
    fn pooler_gradient() {
        let (x, dy) = (noise(40 * 30, 17), noise(40 * 30, 18));
        let tensor = |x: &[f32]| matrix(x.to_vec(), 30).unwrap();
        let tanh = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| libm::tanh(f64::from(*x)) as f32).collect() };
        let y = same_on_threads(|| values(&tanh_forward(tensor(&x)).unwrap()));
        close(&y, &tanh(&x), 1e-6);
        let d = same_on_threads(|| values(&tanh_backward(&tensor(&y), tensor(&dy)).unwrap()));
        check_gradient("x", &x, &d, |x| weigh(&tanh(x), &dy));
    }
}
