//! Matrix products `C = [add +] alpha · Σ A·B`, many at once, split between threads by rows and column panels.

use rayon::prelude::*;

use super::kernel::{Out, PANEL, Panel, ROWS, Term};
use crate::flops::FlopCounter;

/// A `[k, n]` matrix laid out for the kernel: panels of [`PANEL`] columns, the last one padded with zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    panels: Vec<f32>,
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs a row-major `[k, n]` matrix.
    pub fn rows(data: &[f32], k: usize, n: usize) -> Self {
        assert_eq!(data.len(), k * n, "a [{k}, {n}] matrix");
        let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        panels.par_chunks_mut((k * PANEL).max(1)).enumerate().for_each(|(p, panel)| {
            let cols = (n - p * PANEL).min(PANEL);
            for (row, line) in panel.chunks_exact_mut(PANEL).enumerate() {
                line[..cols].copy_from_slice(&data[row * n + p * PANEL..][..cols]);
            }
        });
        Self { panels, k, n }
    }

    /// Packs the transpose of a row-major `[n, k]` matrix.
    pub fn transposed(data: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(data.len(), k * n, "a [{n}, {k}] matrix");
        let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        panels.par_chunks_mut((k * PANEL).max(1)).enumerate().for_each(|(p, panel)| {
            for (col, row) in data[p * PANEL * k..].chunks_exact(k.max(1)).take(PANEL).enumerate() {
                for (depth, &x) in row.iter().enumerate() {
                    panel[depth * PANEL + col] = x;
                }
            }
        });
        Self { panels, k, n }
    }

    /// Reads row `row`, of length n.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            out.copy_from_slice(&self.panels[(panel * self.k + row) * PANEL..][..out.len()]);
        }
    }
}

/// The left factor of a term, `[m, k]` with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    data: &'a [f32],
    row: usize,
    depth: usize,
}

impl<'a> Left<'a> {
    /// Row-major, `stride` apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: stride, depth: 1 }
    }

    /// One value everywhere.
    pub fn constant(value: &'a [f32; 1]) -> Self {
        Self { data: value, row: 0, depth: 0 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: 1, depth: stride }
    }
}

/// The right factor of a term, `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Row-major, `stride` apart.
    Rows { data: &'a [f32], stride: usize },
    /// Packed in panels.
    Packed(&'a Packed),
}

#[derive(Clone, Copy)]
struct Summand<'a> {
    left: Left<'a>,
    right: Right<'a>,
    k: usize,
}

impl Summand<'_> {
    /// Checks that the factors hold all that an `[m, n]` result reads.
    fn check(&self, m: usize, n: usize) {
        let Self { left, right, k } = *self;
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        assert!(
            left.data.len() > (m - 1) * left.row + (k - 1) * left.depth,
            "left factor of a product too short"
        );
        match right {
            Right::Rows { data, stride } => {
                assert!(
                    stride >= n && data.len() >= (k - 1) * stride + n,
                    "right factor of a product too short"
                );
            }
            Right::Packed(packed) => {
                assert!(packed.k == k && packed.n == n, "packed factor of another shape")
            }
        }
    }

    fn term(&self, row: usize, panel: usize) -> Term {
        let (b, b_k) = match self.right {
            Right::Rows { data, stride } => (data.as_ptr().wrapping_add(panel * PANEL), stride),
            Right::Packed(packed) => (packed.panels.as_ptr().wrapping_add(panel * packed.k * PANEL), PANEL),
        };
        let a = self.left.data.as_ptr().wrapping_add(row * self.left.row);
        Term { k: self.k, a, a_row: self.left.row, a_k: self.left.depth, b, b_k }
    }
}

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
        // A narrow panel does not fill the registers.
        let width = self.n.clamp(PANEL / 2, PANEL);
        let per_row = 2 * self.depth() * width;
        let rows = (TASK_FLOPS / per_row.max(1)).clamp(4 * ROWS, self.m.max(4 * ROWS)) / ROWS * ROWS;
        // With few rows the reading of the right factor is what costs.
        let per_panel = per_row * self.m.clamp(8, rows.max(8));
        (rows, (TASK_FLOPS / per_panel.max(1)).max(1))
    }
}

/// Operations of one task: about 15 µs of one core.
const TASK_FLOPS: usize = 1_500_000;
/// Below this, products run on the calling thread: about 3 µs.
const SERIAL_FLOPS: usize = 300_000;

struct Task<'p, 'a> {
    product: &'p Shared<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// A product whose destination is known by address, so that tasks can write disjoint parts of it.
struct Shared<'a> {
    summands: Vec<Summand<'a>>,
    n: usize,
    out: Out,
}

// SAFETY: the pointers in `out` come from a `&mut` and a `&` that outlive the run, and tasks write disjoint elements.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl Task<'_, '_> {
    fn run(&self) {
        let Shared { summands, n, out } = self.product;
        for panel in self.panels.clone() {
            let empty = Term { k: 0, a: std::ptr::null(), a_row: 0, a_k: 0, b: std::ptr::null(), b_k: 0 };
            let mut terms = [empty; MOST_TERMS];
            for (term, summand) in terms.iter_mut().zip(summands) {
                *term = summand.term(self.rows.start, panel);
            }
            let at = self.rows.start * out.row + panel * PANEL * out.col;
            let add = if out.add.is_null() { out.add } else { out.add.wrapping_add(at) };
            let out = Out { add, c: out.c.wrapping_add(at), ..*out };
            let cols = (n - panel * PANEL).min(PANEL);
            let panel = Panel { terms: &terms[..summands.len()], rows: self.rows.len(), cols, out };
            // SAFETY: `Summand::check` and the asserts of the constructors have checked every extent; tasks are disjoint.
            unsafe { panel.compute() };
        }
    }
}

/// Runs independent products side by side.
pub(crate) fn run<'a>(products: impl IntoIterator<Item = Product<'a>>, flops: &FlopCounter) {
    let mut work = 0;
    let mut shared = Vec::new();
    for product in products {
        flops.product(product.m, product.n, product.depth());
        work += 2 * product.m * product.n * product.depth();
        let split = product.split();
        let c = product.out.as_mut_ptr();
        let add = match product.add {
            Some(add) => add.as_ptr(),
            None if product.accumulated => c.cast_const(),
            None => std::ptr::null(),
        };
        let out = Out { alpha: product.alpha, add, c, row: product.row, col: product.col };
        shared.push((Shared { summands: product.summands, n: product.n, out }, product.m, split));
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
    assert!(stride >= n && out.len() >= (m - 1) * stride + n, "destination of a product too short");
    for panel in 0..n.div_ceil(PANEL) {
        let c = out.as_mut_ptr().wrapping_add(panel * PANEL);
        let add = if accumulate { c.cast_const() } else { std::ptr::null() };
        let out = Out { alpha, add, c, row: stride, col: 1 };
        let cols = (n - panel * PANEL).min(PANEL);
        // SAFETY: the extents were checked above, and `out` is borrowed mutably.
        unsafe { Panel { terms: &[summand.term(0, panel)], rows: m, cols, out }.compute() };
    }
}
