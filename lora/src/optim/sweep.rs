//! One pass over the flat buffers, cut where the rule changes and into pieces for threads: the cut never changes a bit.

use std::array;
use std::ops::Range;

use rayon::prelude::*;

use super::Parameter;
use super::state::{State, written};
use crate::exact::CHUNK;

/// The cuts of an elementwise pass.
#[derive(Clone, Debug)]
pub(super) struct Sweep {
    /// Peak learning rate and weight decay of each rule.
    rules: Vec<Rule>,
    /// Places side by side, each of one rule.
    cuts: Vec<(Range<usize>, usize)>,
}

/// By what a run of weights is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rule {
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// One piece of a pass: slices of one length.
pub(super) struct Elements<'a, const N: usize> {
    /// The mean gradient.
    pub gradient: &'a [f32],
    /// The weights, and the optimizer's buffers.
    pub weights: &'a [f32],
    pub moments: [&'a [f32]; N],
    /// Their successors.
    pub new_weights: &'a mut [f32],
    pub new_moments: [&'a mut [f32]; N],
}

impl Sweep {
    pub fn new(parameters: &[Parameter]) -> Self {
        let (mut rules, mut runs) = (Vec::<Rule>::new(), Vec::<(Range<usize>, usize)>::new());
        for parameter in parameters {
            let rule = Rule { lr: parameter.lr, weight_decay: parameter.weight_decay };
            let number = rules.iter().position(|known| *known == rule).unwrap_or_else(|| {
                rules.push(rule);
                rules.len() - 1
            });
            match runs.last_mut() {
                Some((run, last)) if *last == number && run.end == parameter.place.start => {
                    run.end = parameter.place.end;
                }
                _ => runs.push((parameter.place.clone(), number)),
            }
        }
        let cut = |(run, rule): (Range<usize>, usize)| {
            let end = run.end;
            run.step_by(CHUNK).map(move |start| (start..end.min(start + CHUNK), rule))
        };
        Self { rules, cuts: runs.into_iter().flat_map(cut).collect() }
    }

    /// Writes the state after one more step: `update` gets the factors of each piece's rule, made once by `factors`.
    /// Returns whether it always said true.
    pub fn step<F: Sync, const N: usize>(
        &self,
        gradient: &[f32],
        from: &State,
        to: &mut State,
        factors: impl Fn(Rule) -> F,
        update: impl Fn(&F, Elements<'_, N>) -> bool + Sync,
    ) -> bool {
        to.step = from.step + 1;
        let factors: Vec<F> = self.rules.iter().map(|rule| factors(*rule)).collect();
        let moments: [&[f32]; N] = from.floats();
        let mut new_weights = to.weights.as_mut_slice();
        let mut new_moments: [&mut [f32]; N] = written(&mut to.floats);
        let pieces: Vec<(&F, Elements<'_, N>)> = self
            .cuts
            .iter()
            .map(|(place, rule)| {
                let elements = Elements {
                    gradient: &gradient[place.clone()],
                    weights: &from.weights[place.clone()],
                    moments: array::from_fn(|i| &moments[i][place.clone()]),
                    new_weights: take(&mut new_weights, place.len()),
                    new_moments: new_moments.each_mut().map(|buffer| take(buffer, place.len())),
                };
                (&factors[*rule], elements)
            })
            .collect();
        pieces
            .into_par_iter()
            .map(|(factors, elements)| update(factors, elements))
            .reduce(|| true, |a, b| a & b)
    }
}

/// The next `len` values of a buffer.
pub(super) fn take<'a, T>(buffer: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    buffer.split_off_mut(..len).expect("places lie side by side within the buffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(place: Range<usize>, lr: f64) -> Parameter {
        Parameter { key: format!("{place:?}"), shape: vec![place.len()], place, lr, weight_decay: 0.0 }
    }

    #[test]
    fn neighbours_of_one_rule_are_one_run() {
        let parameters =
            [parameter(0..5, 1.0), parameter(5..CHUNK + 9, 1.0), parameter(CHUNK + 9..CHUNK + 20, 2.0)];
        let sweep = Sweep::new(&parameters);
        assert_eq!(sweep.cuts, [(0..CHUNK, 0), (CHUNK..CHUNK + 9, 0), (CHUNK + 9..CHUNK + 20, 1)]);
        assert_eq!(sweep.rules.len(), 2);
    }
}
