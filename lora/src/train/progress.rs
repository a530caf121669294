//! How the job's evaluations went: the best one so far, and whether to go on. Part of the state, the same on every member.

use std::collections::HashMap;
use std::sync::Arc;

use lorafleet_spec::job::{EvalSpec, Metric};

use super::Trainer;
use crate::optim::file::Scalar;

/// What tells the better of two evaluations, and when to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judge {
    metric: Metric,
    min_delta: f64,
    /// Evaluations without a better one after which training stops; 0: never.
    patience: u32,
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// The step after which it was made.
    pub step: u64,
    /// The figure that is compared.
    pub figure: f64,
}

/// How the evaluations went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub best: Option<Best>,
    /// Evaluations since the best one, or since the start.
    pub since: u32,
}

const BEST_STEP: &str = "best_step";
const BEST_FIGURE: &str = "best_figure";
const SINCE: &str = "evaluations_since_best";

impl Judge {
    pub fn new(eval: &EvalSpec) -> Self {
        Self { metric: eval.metric, min_delta: eval.min_delta, patience: eval.patience }
    }

    /// Whether a figure is better than the best one by more than `min_delta`. One that is not a number never is.
    fn is_better(&self, figure: f64, best: Option<Best>) -> bool {
        let gain = |best: Best| {
            if self.metric.lower_is_better() { best.figure - figure } else { figure - best.figure }
        };
        figure.is_finite() && best.is_none_or(|best| gain(best) > self.min_delta)
    }
}

impl Progress {
    fn judge(&mut self, judge: &Judge, step: u64, figure: f64) -> bool {
        let better = judge.is_better(figure, self.best);
        if better {
            *self = Self { best: Some(Best { step, figure }), since: 0 };
        } else {
            self.since = self.since.saturating_add(1);
        }
        better
    }

    /// As numbers in the optimizer's file; none before the first evaluation.
    pub fn scalars(&self) -> Vec<(&'static str, Scalar)> {
        let mut scalars = Vec::new();
        if let Some(Best { step, figure }) = self.best {
            scalars.push((BEST_STEP, Scalar::Integer(step as i64)));
            scalars.push((BEST_FIGURE, Scalar::Real(figure)));
        }
        if self.since > 0 {
            scalars.push((SINCE, Scalar::Integer(self.since.into())));
        }
        scalars
    }

    /// What [`Progress::scalars`] wrote; the name of a number that cannot be.
    pub fn from_scalars(mut scalars: HashMap<String, Scalar>) -> Result<Self, String> {
        let best = match (scalars.remove(BEST_STEP), scalars.remove(BEST_FIGURE)) {
            (Some(Scalar::Integer(step)), Some(Scalar::Real(figure))) if step > 0 => {
                Some(Best { step: step as u64, figure })
            }
            (None, None) => None,
            _ => return Err(BEST_STEP.to_owned()),
        };
        let since = match scalars.remove(SINCE) {
            None => 0,
            Some(Scalar::Integer(since)) => u32::try_from(since).map_err(|_| SINCE.to_owned())?,
            Some(Scalar::Real(_)) => return Err(SINCE.to_owned()),
        };
        match scalars.into_keys().min() {
            Some(unknown) => Err(unknown),
            None => Ok(Self { best, since }),
        }
    }
}

impl Trainer {
    /// Takes note of the evaluation after the current step, by the figure that the job compares; where it has none (a
    /// correlation that is not defined), NaN. True when it is the best so far; its weights are then kept, if the job's
    /// result is to be those.
    ///
    /// Every member calls it with the same figure at the same step.
    pub fn judge(&mut self, figure: f64) -> bool {
        let step = self.step();
        let better = self.progress.judge(&self.judge, step, figure);
        if better && self.keeps_best {
            let weights = &self.states.current().weights;
            match Arc::get_mut(&mut self.best_weights) {
                Some(best) => best.clone_from(weights),
                // The ones before are still being written.
                None => self.best_weights = Arc::new(weights.clone()),
            }
        }
        better
    }

    /// The best evaluation so far.
    pub fn best(&self) -> Option<Best> {
        self.progress.best
    }

    /// Whether evaluations have not got better for as long as the job's patience lasts: training ends before its last
    /// step.
    pub fn is_exhausted(&self) -> bool {
        self.judge.patience > 0 && self.progress.since >= self.judge.patience
    }

    /// Makes the best evaluation's weights the current ones, if the job's result is to be those; the step stays. Returns
    /// the step that the weights are of.
    pub fn adopt_best(&mut self) -> u64 {
        let step = self.step();
        match self.progress.best {
            Some(best) if self.keeps_best && best.step != step && !self.best_weights.is_empty() => {
                let (current, spare) = self.states.current_and_spare();
                spare.clone_from(current);
                spare.weights.copy_from_slice(&self.best_weights);
                self.states.adopt();
                best.step
            }
            _ => step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(metric: Metric, min_delta: f64) -> Judge {
        Judge { metric, min_delta, patience: 2 }
    }

    #[test]
    fn only_a_gain_beyond_the_margin_counts() {
        let mut progress = Progress::default();
        let loss = judge(Metric::Loss, 0.1);
        let better: Vec<bool> = [(10, 2.0), (20, 1.95), (30, 1.85), (40, f64::NAN), (50, 1.9)]
            .map(|(step, figure)| progress.judge(&loss, step, figure))
            .into();
        assert_eq!(better, [true, false, true, false, false]);
        assert_eq!(progress, Progress { best: Some(Best { step: 30, figure: 1.85 }), since: 2 });
        let mut progress = Progress::default();
        let accuracy = judge(Metric::Accuracy, 0.0);
        assert!(progress.judge(&accuracy, 1, 0.5) && progress.judge(&accuracy, 2, 0.6));
        assert!(!progress.judge(&accuracy, 3, 0.6));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let map = |progress: &Progress| {
            progress.scalars().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        for progress in [
            Progress::default(),
            Progress { best: None, since: 1 },
            Progress { best: Some(Best { step: 3, figure: 0.5 }), since: 0 },
        ] {
            assert_eq!(Progress::from_scalars(map(&progress)).unwrap(), progress);
        }
        let odd = HashMap::from([("other".to_owned(), Scalar::Integer(1))]);
        assert_eq!(Progress::from_scalars(odd).unwrap_err(), "other");
    }
}
