//! Attention's backward pass cut into units of work, by the sequences' lengths alone, and their sums added in one order.

use std::ops::Range;

use rayon::prelude::*;

use super::Scatter;
use super::backward::BLOCK;
use super::mask::{Heads, Mask, Span};
use crate::ops::Scope;
use crate::ops::add::add;

/// Some queries of some heads that share the keys and values of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub span: usize,
    pub kv: usize,
    pub heads: Range<usize>,
    pub queries: Range<usize>,
}

/// Units that a pass is cut into at least, where it has enough pairs of query and key.
const UNITS: usize = 32;
/// Least pairs that are worth a unit of their own: about 80 µs of one core.
const LEAST_PAIRS: usize = 8 * 1024;

/// One unit with the memory of its sums: its own where others add to the same keys.
struct Work<'m> {
    unit: Unit,
    cost: usize,
    partial: Option<&'m mut [f32]>,
}

/// Runs `f(unit, [dk, dv])` for all units; `f` adds a unit's sums `[keys, D]`, which go to `to`, `[T, K·D]` each.
pub(crate) fn units(
    spans: &[Span],
    heads: Heads,
    mask: Mask,
    scope: Scope,
    f: impl Fn(&Unit, [&mut [f32]; 2]) + Sync,
    to: &[Scatter],
) {
    let groups = cut(spans, heads, mask);
    let dim = heads.head_dim;
    let sums = |unit: &Unit| 2 * spans[unit.span].keys.len() * dim;
    let shared = |group: &&Vec<(Unit, usize)>| group.len() > 1;
    let len = groups.iter().filter(shared).flatten().map(|(unit, _)| sums(unit)).sum();
    let mut partials = scope.pool.take(len);
    let mut work = Vec::new();
    let mut rest = &mut partials[..];
    for group in &groups {
        for (unit, cost) in group {
            let partial = (group.len() > 1).then(|| {
                let (partial, after) = std::mem::take(&mut rest).split_at_mut(sums(unit));
                rest = after;
                partial
            });
            work.push(Work { unit: unit.clone(), cost: *cost, partial });
        }
    }
    // The dearest first, so that threads end together.
    work.sort_by_key(|work| std::cmp::Reverse(work.cost));
    work.into_par_iter().with_max_len(1).for_each(|Work { unit, partial, .. }| match partial {
        Some(partial) => run(&unit, partial, &f),
        None => {
            let mut own = scope.pool.take(sums(&unit));
            run(&unit, &mut own, &f);
            write(&own, &spans[unit.span], unit.kv, heads, to);
            scope.pool.put(own);
        }
    });
    add_up(&groups, &mut partials, spans, heads, to, sums);
    scope.pool.put(partials);
}

fn run(unit: &Unit, sums: &mut [f32], f: &impl Fn(&Unit, [&mut [f32]; 2])) {
    sums.fill(0.0);
    let (dk, dv) = sums.split_at_mut(sums.len() / 2);
    f(unit, [dk, dv]);
}

/// Adds the units of each group in their order, and writes the sums.
fn add_up(
    groups: &[Vec<(Unit, usize)>],
    partials: &mut [f32],
    spans: &[Span],
    heads: Heads,
    to: &[Scatter],
    sums: impl Fn(&Unit) -> usize + Sync,
) {
    let mut parts = Vec::new();
    let mut rest = partials;
    for group in groups.iter().filter(|group| group.len() > 1) {
        let unit = &group[0].0;
        let (part, after) = rest.split_at_mut(group.len() * sums(unit));
        rest = after;
        parts.push((unit, part));
    }
    parts.into_par_iter().with_max_len(1).for_each(|(unit, part)| {
        let (first, others) = part.split_at_mut(sums(unit));
        for other in others.chunks_exact(first.len()) {
            add(first, other);
        }
        write(first, &spans[unit.span], unit.kv, heads, to);
    });
}

/// Writes the finished sums of one key/value head of one sequence.
fn write(sums: &[f32], span: &Span, kv: usize, heads: Heads, to: &[Scatter]) {
    let dim = heads.head_dim;
    for (sums, to) in sums.chunks_exact((sums.len() / 2).max(1)).zip(to) {
        for (token, row) in span.keys.clone().zip(sums.chunks_exact(dim)) {
            // SAFETY: one unit or one group alone owns this (token, key/value head).
            unsafe { to.write(token * heads.kv_columns() + kv * dim, row, 1.0) };
        }
    }
}

/// The units of each (sequence, key/value head), with their costs.
fn cut(spans: &[Span], heads: Heads, mask: Mask) -> Vec<Vec<(Unit, usize)>> {
    let all = |span: &Span| span.pairs(0..span.queries.len(), mask);
    let most = (spans.iter().map(all).sum::<usize>() * heads.heads / UNITS).max(LEAST_PAIRS);
    let mut groups = Vec::new();
    for (index, span) in spans.iter().enumerate().filter(|(_, span)| !span.queries.is_empty()) {
        for kv in 0..heads.kv_heads {
            let group = kv * heads.group()..(kv + 1) * heads.group();
            let unit = |heads, queries| Unit { span: index, kv, heads, queries };
            let pairs = all(span);
            if pairs * group.len() <= most {
                groups.push(vec![(unit(group.clone(), 0..span.queries.len()), pairs * group.len())]);
                continue;
            }
            let queries = span.cut(most, BLOCK, mask);
            let one = |head: usize| {
                let cost = |queries: &Range<usize>| span.pairs(queries.clone(), mask);
                queries.iter().map(move |q| (unit(head..head + 1, q.clone()), cost(q)))
            };
            groups.push(group.clone().flat_map(one).collect());
        }
    }
    groups
}
