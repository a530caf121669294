//! What this machine's matrix products reach, for the shapes of a model: the yardstick of a training step.

use std::time::{Duration, Instant};

use crate::flops::FlopCounter;
use crate::linear::FrozenLinear;
use crate::model::Transformer;
use crate::ops::Scope;
use crate::ops::pool::Pool;

/// Shortest measurement of one product.
const SHORTEST: Duration = Duration::from_millis(60);

/// Linear layers of one shape, as they were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasuredShape {
    /// Width of their input.
    pub in_features: usize,
    /// Width of their output.
    pub out_features: usize,
    /// How many the model has.
    pub count: usize,
    /// Tokens of one product.
    pub rows: usize,
}

/// Measures the frozen products of a model, forward and backward, for `rows` tokens at a time; for about `time` in all.
///
/// Returns the operations per second, and the shapes: each is measured by itself, the best of several runs, and weighed
/// by how many layers have it.
pub fn product_rate(model: &Transformer, rows: usize, time: Duration) -> (f64, Vec<MeasuredShape>) {
    let mut layers: Vec<(&FrozenLinear, MeasuredShape)> = Vec::new();
    for linear in model.frozen() {
        let FrozenLinear { in_features, out_features, .. } = *linear;
        match layers.iter_mut().find(|(l, _)| (l.in_features, l.out_features) == (in_features, out_features))
        {
            Some((_, shape)) => shape.count += 1,
            None => {
                // The head sees fewer rows at a time: its results are large.
                let rows = rows.min((9 << 20) / out_features).max(96);
                layers.push((linear, MeasuredShape { in_features, out_features, count: 1, rows }));
            }
        }
    }
    let (pool, flops) = (Pool::default(), FlopCounter::new());
    let scope = Scope { pool: &pool, flops: &flops };
    let each = (time / (2 * layers.len().max(1)) as u32).max(SHORTEST);
    let (mut work, mut seconds) = (0.0, 0.0);
    for (linear, MeasuredShape { in_features, out_features, count, rows }) in &layers {
        let x: Vec<f32> = (0..rows * in_features).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut y = vec![0.0; rows * out_features];
        let mut dx = vec![0.0; rows * in_features];
        let forward = best(each, || linear.project(&x, &mut y, scope));
        let backward = best(each, || linear.project_back(&y, &mut dx, scope));
        seconds += *count as f64 * (forward + backward);
        work += 4.0 * (count * rows * in_features * out_features) as f64;
    }
    (work / seconds, layers.into_iter().map(|(_, shape)| shape).collect())
}

/// Seconds of the fastest of the runs that fit into that time.
fn best(time: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < time || best.is_infinite() {
        let before = Instant::now();
        run();
        best = best.min(before.elapsed().as_secs_f64());
    }
    best
}
