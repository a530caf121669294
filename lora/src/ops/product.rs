//! Matrix products `C = [add +] alpha · Σ A·B`, many at once, split between threads by rows and column panels.

mod factors;
mod rounding;
mod task;
#[cfg(test)]
mod tests;

use factors::Summand;
pub(crate) use factors::{Left, Right};
use rayon::prelude::*;
use rounding::Rounded;
use task::{Shared, Task};

use super::kernel::{Carry, Out, PANEL, Panel, ROWS};
use crate::flops::FlopCounter;

/// Most terms of one product: q, k and v, each with its adapter and the start that is subtracted from it.
const MOST_TERMS: usize = 9;

/// One product, its result `[m, n]`.
pub(crate) struct Product<'a> {
    m: usize,
    n: usize,
    summands: Vec<Summand<'a>>,
    alpha: f32,
    add: Option<&'a [f32]>,
    accumulated: bool,
    out: &'a mut [f32],
    row: usize,
    col: usize,
}

impl<'a> Product<'a> {
    /// A row-major result, `m` rows of `n`, that is overwritten.
    pub fn new(out: &'a mut [f32], m: usize, n: usize) -> Self {
        assert_eq!(out.len(), m * n, "destination of a product");
        let summands = Vec::with_capacity(2);
        Self { m, n, summands, alpha: 1.0, add: None, accumulated: false, out, row: n, col: 1 }
    }

    /// A result whose transpose, `n` rows of `m`, is written row-major.
    pub fn transposed(out: &'a mut [f32], m: usize, n: usize) -> Self {
        Self { row: 1, col: m, ..Self::new(out, m, n) }
    }

    /// Adds a term `left · right`, summed over `k`.
    pub fn term(mut self, left: Left<'a>, right: Right<'a>, k: usize) -> Self {
        let summand = Summand { left, right, k };
        summand.check(self.m, self.n);
        assert!(self.summands.len() < MOST_TERMS, "terms of a product");
        self.summands.push(summand);
        self
    }

    /// Multiplies the sum of the terms.
    pub fn scaled(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Adds to what the destination holds, instead of overwriting it.
    pub fn accumulated(mut self, accumulated: bool) -> Self {
        self.accumulated = accumulated;
        self
    }

    /// Adds a matrix with the result's layout.
    pub fn plus(mut self, add: &'a [f32]) -> Self {
        assert!(add.len() == self.out.len() && !self.accumulated, "addend of a product");
        self.add = Some(add);
        self
    }

    fn depth(&self) -> usize {
        self.summands.iter().map(|s| s.k).sum()
    }

    /// Rows and panels of one task, so that a task is worth handing to a thread and threads share the work evenly.
    fn split(&self) -> (usize, usize) {
        let panels = self.n.div_ceil(PANEL).max(1);
        if self.summands.iter().any(Summand::unpacked) {
            // Each task unpacks its panel itself: many rows to a task, but enough tasks for all threads.
            let parts = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(panels);
            let rows = self.m.div_ceil(parts).max(FEWEST_UNPACKED_ROWS);
            return (rows.next_multiple_of(ROWS), 1);
        }
        // A narrow panel does not fill the registers.
        let width = self.n.clamp(PANEL / 2, PANEL);
        let words: usize = self.summands.iter().map(Summand::words).sum();
        let per_row = 2 * words * width;
        let rows = (TASK_FLOPS / per_row.max(1)).clamp(4 * ROWS, self.m.max(4 * ROWS)) / ROWS * ROWS;
        // With few rows the reading of the right factor is what costs.
        let per_panel = per_row * self.m.clamp(8, rows.max(8));
        (rows, (TASK_FLOPS / per_panel.max(1)).max(1))
    }

    fn share(self, rounded: &[Rounded]) -> Shared<'a> {
        let c = self.out.as_mut_ptr();
        let add = match self.add {
            Some(add) => add.as_ptr(),
            None if self.accumulated => c.cast_const(),
            None => std::ptr::null(),
        };
        let factors = self.summands.iter().map(|summand| summand.factor(rounded)).collect();
        let out = Out { alpha: self.alpha, add, c, row: self.row, col: self.col };
        Shared { factors, n: self.n, out }
    }
}

/// Operations of one task: about 15 µs of one core.
const TASK_FLOPS: usize = 1_500_000;
/// Below this, products run on the calling thread: about 3 µs.
const SERIAL_FLOPS: usize = 300_000;
/// Tasks at least for each thread, so that the last ones do not leave threads waiting long.
const TASKS_PER_THREAD: usize = 6;
/// Rows at least of a task that unpacks its right factor: fewer would not pay for it.
const FEWEST_UNPACKED_ROWS: usize = 96;

/// Runs independent products side by side.
pub(crate) fn run<'a>(products: impl IntoIterator<Item = Product<'a>>, flops: &FlopCounter) {
    let products: Vec<Product> = products.into_iter().collect();
    let rounded = rounding::round(products.iter().flat_map(|p| p.summands.iter().map(|s| (s, p.m))));
    let mut work = 0;
    let mut shared = Vec::with_capacity(products.len());
    for product in products {
        flops.product(product.m, product.n, product.depth());
        work += 2 * product.m * product.n * product.depth();
        let (m, split) = (product.m, product.split());
        shared.push((product.share(&rounded), m, split));
    }
    let mut tasks = Vec::new();
    for (product, m, (rows, panels)) in &shared {
        for first in (0..product.n.div_ceil(PANEL)).step_by(*panels) {
            let last = (first + panels).min(product.n.div_ceil(PANEL));
            for row in (0..*m).step_by(*rows) {
                tasks.push(Task { product, rows: row..(row + rows).min(*m), panels: first..last });
            }
        }
    }
    if work <= SERIAL_FLOPS {
        tasks.iter().for_each(Task::run);
    } else {
        tasks.par_iter().with_max_len(1).for_each(Task::run);
    }
    rounding::give_back(rounded);
}

/// One product of one term on the calling thread, without any allocation: `out[m, n] = [out +] left · right`.
///
/// `out`'s rows are `stride` apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn serial(
    out: &mut [f32],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    left: Left,
    right: Right,
    alpha: f32,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let summand = Summand { left, right, k };
    summand.check(m, n);
    assert!(!summand.unpacked() && !summand.pairs(), "serial products read f32 as it lies");
    assert!(stride >= n && out.len() >= (m - 1) * stride + n, "destination of a product too short");
    let factor = summand.factor(&[]);
    for panel in 0..n.div_ceil(PANEL) {
        let c = out.as_mut_ptr().wrapping_add(panel * PANEL);
        let add = if accumulate { c.cast_const() } else { std::ptr::null() };
        let out = Out { alpha, add, c, row: stride, col: 1 };
        let (terms, cols) = ([factor.term(0, panel)], (n - panel * PANEL).min(PANEL));
        // SAFETY: the extents were checked above, and `out` is borrowed mutably.
        unsafe { Panel { terms: &terms, rows: m, cols, out, carry: Carry::NONE }.compute() };
    }
}
