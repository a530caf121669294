//! A start that is subtracted (PiSSA, OLoRA) ⇄ further ranks of a plain LoRA, which any reader understands.
//!
//! `W + s·(B·A − B₀·A₀) = W + s·[B, −B₀]·[A; A₀]`: rank 2r with the same scale, the base's weights as they are.

use crate::params::{AdaptedModule, Layout, ModuleSpec};

/// The layout with twice every rank; scales, magnitudes and whole tensors stay.
fn doubled_layout(layout: &Layout) -> Layout {
    let mut doubled = Layout::new();
    for m in layout.modules() {
        doubled.push_module(&ModuleSpec {
            module: &m.module,
            kind: m.kind,
            in_features: m.in_features,
            out_features: m.out_features,
            rank: 2 * m.rank,
            scale: m.scale,
            magnitude: m.magnitude.is_some(),
        });
    }
    for tensor in layout.whole() {
        doubled.push_whole(&tensor.name, &tensor.shape);
    }
    doubled
}

/// Writes `weights` and the start as one plain adapter of twice the rank.
pub(super) fn write_out(layout: &Layout, weights: &[f32], start: &[f32]) -> (Layout, Vec<f32>) {
    let doubled = doubled_layout(layout);
    let mut all = vec![0.0; doubled.len()];
    for (from, to) in layout.modules().iter().zip(doubled.modules()) {
        let (a, second) = all[to.a.clone()].split_at_mut(from.a.len());
        a.copy_from_slice(&weights[from.a.clone()]);
        second.copy_from_slice(&start[from.a.clone()]);
        let pairs = weights[from.b.clone()]
            .chunks_exact(from.rank)
            .zip(start[from.b.clone()].chunks_exact(from.rank));
        for (row, (b, b0)) in all[to.b.clone()].chunks_exact_mut(to.rank).zip(pairs) {
            row[..from.rank].copy_from_slice(b);
            row[from.rank..].iter_mut().zip(b0).for_each(|(x, b0)| *x = -b0);
        }
    }
    for (from, to) in rest(layout).into_iter().zip(rest(&doubled)) {
        all[to].copy_from_slice(&weights[from]);
    }
    (doubled, all)
}

/// The weights and the start of a layout from what [`write_out`] wrote.
pub(super) fn read_back(layout: &Layout, doubled: &Layout, all: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut weights, mut start) = (vec![0.0; layout.len()], vec![0.0; layout.len()]);
    for (to, from) in layout.modules().iter().zip(doubled.modules()) {
        let (a, a0) = all[from.a.clone()].split_at(to.a.len());
        weights[to.a.clone()].copy_from_slice(a);
        start[to.a.clone()].copy_from_slice(a0);
        for (r, row) in all[from.b.clone()].chunks_exact(from.rank).enumerate() {
            let place = to.b.start + r * to.rank..to.b.start + (r + 1) * to.rank;
            weights[place.clone()].copy_from_slice(&row[..to.rank]);
            start[place].iter_mut().zip(&row[to.rank..]).for_each(|(x, b0)| *x = -b0);
        }
    }
    for (to, from) in rest(layout).into_iter().zip(rest(doubled)) {
        weights[to].copy_from_slice(&all[from]);
    }
    (weights, start)
}

/// Places of what has no rank: magnitudes, whole tensors.
fn rest(layout: &Layout) -> Vec<std::ops::Range<usize>> {
    let magnitude = |m: &AdaptedModule| m.magnitude.clone();
    let whole = layout.whole().iter().map(|tensor| tensor.place.clone());
    layout.modules().iter().filter_map(magnitude).chain(whole).collect()
}

/// The layout whose tensors a written-out adapter has.
pub(super) fn written_layout(layout: &Layout) -> Layout {
    doubled_layout(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::noise;
    use crate::params::ModuleKind;

    #[test]
    fn what_is_written_out_is_read_back_and_says_the_same() {
        let mut layout = Layout::new();
        layout.push_module(&ModuleSpec {
            module: "q",
            kind: ModuleKind::Linear,
            in_features: 7,
            out_features: 5,
            rank: 2,
            scale: 0.5,
            magnitude: true,
        });
        layout.push_whole("head.weight", &[3, 2]);
        layout.push("v", 7, 4, 3, 1.0);
        let (weights, start) = (noise(layout.len(), 1), noise(layout.len(), 2));
        let (doubled, all) = write_out(&layout, &weights, &start);
        assert_eq!(doubled, written_layout(&layout));
        let (again, start_again) = read_back(&layout, &doubled, &all);
        assert_eq!(again, weights);
        for (one, two) in layout.modules().iter().zip(doubled.modules()) {
            assert_eq!(start_again[one.a.clone()], start[one.a.clone()]);
            assert_eq!(start_again[one.b.clone()], start[one.b.clone()]);
            let product = |m: &AdaptedModule, values: &[f32], o: usize, i: usize| -> f32 {
                let term =
                    |r: usize| values[m.b.start + o * m.rank + r] * values[m.a.start + r * m.in_features + i];
                (0..m.rank).map(term).sum()
            };
            for (o, i) in [(0, 0), (3, 6), (2, 4)] {
                let difference = product(one, &weights, o, i) - product(one, &start, o, i);
                assert!((product(two, &all, o, i) - difference).abs() < 1e-5);
            }
        }
    }
}
