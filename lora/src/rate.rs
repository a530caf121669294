//! What this machine's matrix products reach, for the shapes of a model: the yardstick of a training step.

use std::time::{Duration, Instant};

use crate::flops::FlopCounter;
use crate::linear::FrozenLinear;
use crate::model::Transformer;
use crate::ops::Scope;
use crate::ops::pool::Pool;

/// Shortest measurement of one product.
const SHORTEST: Duration = Duration::from_millis(60);

/// Operations per second of the frozen products of a model, forward and backward, for `rows` tokens at a time.
///
/// Each of the shapes that the model has is measured by itself, the best of several runs, for about `time` in all; they
/// are weighed by how many of the model's layers have that shape.
pub fn product_rate(model: &Transformer, rows: usize, time: Duration) -> f64 {
    let mut shapes: Vec<(&FrozenLinear, f64)> = Vec::new();
    for linear in model.frozen() {
        let shape = |l: &FrozenLinear| (l.in_features, l.out_features);
        match shapes.iter_mut().find(|(known, _)| shape(known) == shape(linear)) {
            Some((_, count)) => *count += 1.0,
            None => shapes.push((linear, 1.0)),
        }
    }
    let (pool, flops) = (Pool::default(), FlopCounter::new());
    let scope = Scope { pool: &pool, flops: &flops };
    let each = (time / (2 * shapes.len().max(1)) as u32).max(SHORTEST);
    let (mut work, mut seconds) = (0.0, 0.0);
    for (linear, count) in shapes {
        // The head sees fewer rows at a time: its results are large.
        let rows = rows.min((9 << 20) / linear.out_features).max(96);
        let x: Vec<f32> = (0..rows * linear.in_features).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut y = vec![0.0; rows * linear.out_features];
        let mut dx = vec![0.0; rows * linear.in_features];
        let forward = best(each, || linear.project(&x, &mut y, scope));
        let backward = best(each, || linear.project_back(&y, &mut dx, scope));
        seconds += count * (forward + backward);
        work += count * 4.0 * (rows * linear.in_features * linear.out_features) as f64;
    }
    work / seconds
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
