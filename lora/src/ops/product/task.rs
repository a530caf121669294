//! What one thread computes at a time of a product: some rows of some panels.

use std::cell::RefCell;
use std::ops::Range;

use super::MOST_TERMS;
use super::factors::Factor;
use crate::ops::aligned::Aligned;
use crate::ops::kernel::{Carry, Out, PANEL, Panel, Term};

/// Lines of right factors that are unpacked at once: 192 KB, which a second-level cache holds beside the left factor.
/// Most sums are no longer than this, and then no chain is interrupted.
const LINES: usize = 768;

/// A product whose destination is known by address, so that tasks can write disjoint parts of it.
pub(super) struct Shared<'a> {
    pub factors: Vec<Factor<'a>>,
    pub n: usize,
    pub out: Out,
}

// SAFETY: the pointers in `out` come from a `&mut` and a `&` that outlive the run, and tasks write disjoint elements;
// those in the factors come from `&` and from rounded factors that outlive it.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

/// Rows of some panels of a product.
pub(super) struct Task<'p, 'a> {
    pub product: &'p Shared<'a>,
    pub rows: Range<usize>,
    pub panels: Range<usize>,
}

/// A thread's working memory.
#[derive(Default)]
struct Scratch {
    /// Unpacked lines.
    lines: Aligned,
    /// Sums of chains that go on.
    sums: Aligned,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Task<'_, '_> {
    /// Computes it.
    pub fn run(&self) {
        if !self.product.factors.iter().any(|factor| factor.unpacked) {
            return self.panels.clone().for_each(|panel| self.in_place(panel));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.lines.reserve(LINES * PANEL);
            scratch.sums.reserve(self.rows.len() * PANEL);
            self.panels.clone().for_each(|panel| self.unpacked(panel, scratch));
        });
    }

    fn in_place(&self, panel: usize) {
        let mut terms = [Term::EMPTY; MOST_TERMS];
        for (term, factor) in terms.iter_mut().zip(&self.product.factors) {
            *term = factor.term(self.rows.start, panel);
        }
        self.compute(panel, &terms[..self.product.factors.len()], Carry::NONE);
    }

    /// Unpacks as many lines as the scratch holds, goes on with every chain, and so on.
    fn unpacked(&self, panel: usize, scratch: &mut Scratch) {
        let cols = self.cols(panel);
        let mut terms = [Term::EMPTY; MOST_TERMS];
        let (mut count, mut used) = (0, 0);
        let mut carry = Carry::NONE;
        // By address, since terms point to lines while others are written.
        let (sums, base) = (scratch.sums.as_mut_ptr(), scratch.lines.as_mut_ptr());
        for factor in &self.product.factors {
            if !factor.unpacked {
                terms[count] = factor.term(self.rows.start, panel);
                count += 1;
                continue;
            }
            let mut done = 0;
            while done < factor.k {
                if used == LINES {
                    self.compute(panel, &terms[..count], Carry { to: sums, ..carry });
                    carry.from = sums;
                    (count, used) = (0, 0);
                }
                let len = (LINES - used).min(factor.k - done);
                // SAFETY: inside the scratch, and no other slice covers these lines.
                let lines = unsafe { std::slice::from_raw_parts_mut(base.add(used * PANEL), len * PANEL) };
                factor.unpack(panel, cols, done, len, lines);
                terms[count] = factor.part(self.rows.start, done, len, lines);
                (count, used, done) = (count + 1, used + len, done + len);
            }
        }
        self.compute(panel, &terms[..count], carry);
    }

    fn cols(&self, panel: usize) -> usize {
        (self.product.n - panel * PANEL).min(PANEL)
    }

    fn compute(&self, panel: usize, terms: &[Term], carry: Carry) {
        let out = self.product.out;
        let at = self.rows.start * out.row + panel * PANEL * out.col;
        let add = if out.add.is_null() { out.add } else { out.add.wrapping_add(at) };
        let out = Out { add, c: out.c.wrapping_add(at), ..out };
        let panel = Panel { terms, rows: self.rows.len(), cols: self.cols(panel), out, carry };
        // SAFETY: `Summand::check` and the asserts of the constructors have checked every extent; tasks are disjoint;
        // what is carried lies in this thread's scratch, which has as many rows.
        unsafe { panel.compute() };
    }
}
