//! Left factors rounded to bf16, once for all products that read them.

use std::cell::RefCell;

use rayon::prelude::*;

use super::factors::Summand;
use crate::ops::{bf16, task_rows};

/// A left factor in words of two bf16.
pub(super) struct Rounded {
    /// Address, stride and length of its rows.
    of: (usize, usize, usize),
    words: Vec<f32>,
}

thread_local! {
    /// Buffers of earlier products, so that their memory need not be asked for again.
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Rounds the left factors of those summands that multiply pairs; each comes with its count of rows.
pub(super) fn round<'s, 'a: 's>(summands: impl Iterator<Item = (&'s Summand<'a>, usize)>) -> Vec<Rounded> {
    let mut all: Vec<Rounded> = Vec::new();
    for (summand, m) in summands.filter(|(summand, m)| summand.pairs() && summand.k > 0 && *m > 0) {
        let of = key(summand);
        if let Some(known) = all.iter_mut().find(|known| known.of == of) {
            if known.words.len() < m * bf16::words(summand.k) {
                round_rows(summand, m, &mut known.words);
            }
            continue;
        }
        let mut words = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
        round_rows(summand, m, &mut words);
        all.push(Rounded { of, words });
    }
    all
}

fn round_rows(summand: &Summand, m: usize, words: &mut Vec<f32>) {
    let (left, k) = (summand.left, summand.k);
    assert_eq!(left.depth, 1, "only rows of bf16 can be multiplied");
    let width = bf16::words(k);
    words.resize(m * width, 0.0);
    let rows = task_rows(k);
    let chunk = |(i, chunk): (usize, &mut [f32])| {
        for (row, out) in (i * rows..).zip(chunk.chunks_exact_mut(width)) {
            bf16::round_row(&left.data[row * left.row..][..k], out);
        }
    };
    if m <= rows {
        chunk((0, words));
    } else {
        words.par_chunks_mut(rows * width).enumerate().for_each(chunk);
    }
}

fn key(summand: &Summand) -> (usize, usize, usize) {
    (summand.left.data.as_ptr() as usize, summand.left.row, summand.k)
}

/// Keeps the buffers for later products on this thread.
pub(super) fn give_back(rounded: Vec<Rounded>) {
    if !rounded.is_empty() {
        FREE.with(|free| free.borrow_mut().extend(rounded.into_iter().map(|r| r.words)));
    }
}

impl Rounded {
    /// The words of a summand's left factor.
    pub fn find<'r>(all: &'r [Self], summand: &Summand) -> &'r [f32] {
        let of = key(summand);
        all.iter().find(|rounded| rounded.of == of).map_or(&[], |rounded| &rounded.words)
    }
}
