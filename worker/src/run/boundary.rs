//! What belongs to a finished step: the evaluation that is due, its verdict, the point, the checkpoint.
//!
//! A step is recorded as a whole or not at all: until the evaluation's sums are known nothing is written down, and
//! after that nothing can fail. So members that were parted within it are apart by one position, and the one that is
//! behind gets the state from the one that is ahead.

use lorafleet_failpoint::reach;
use tracing::info;

use super::{end::Halt, generation::Training, member::Holds};

impl Training<'_, '_> {
    /// Completes the record of the last step, if it is not complete. Every member calls it, with the same state.
    pub fn record(&mut self) -> Result<(), Halt> {
        let Holds::Unrecorded(point) = &self.member.holds else { return Ok(()) };
        let mut point = (**point).clone();
        let (step, total, every) =
            (point.step, self.member.parts.total_steps, self.member.parts.job.eval.every);
        let due = every > 0 && step.is_multiple_of(every) || step == total;
        let evaluation = if due { self.evaluate()? } else { None };
        reach("between-evaluation-and-record", step)?;
        if let Some(evaluation) = evaluation {
            self.report_evaluation(step, &evaluation);
            self.judge(evaluation.figure(self.member.parts.job.eval.metric));
            point.eval_loss = evaluation.sums.mean_loss();
            point.eval_scores.clone_from(&evaluation.scores);
            self.member.evaluated = Some((step, evaluation));
        }
        if self.member.is_over() {
            // With the record, so that whoever is as far holds the same weights.
            self.member.trainer.adopt_best();
        }
        self.member.run.reporter.point(point);
        self.member.holds = Holds::Recorded;
        Ok(())
    }

    /// Takes note of an evaluation; the last one that the job's patience allows is told about.
    fn judge(&mut self, figure: f64) {
        let member = &mut *self.member;
        member.trainer.judge(figure);
        let (step, total) = (member.trainer.step(), member.parts.total_steps);
        if !member.trainer.is_exhausted() || step >= total {
            return;
        }
        let eval = &member.parts.job.eval;
        let best = member.trainer.best().map_or("never defined".to_owned(), |best| {
            format!("best at step {}, with {:.4}", best.step, best.figure)
        });
        let message = format!(
            "training ends after step {step} of {total}: the evaluation's {} was {best}, and has not got better in {} \
             evaluations (eval.patience)",
            eval.metric.name(),
            eval.patience
        );
        info!(step, "stopped early");
        member.tell("stopped-early", "stopped-early", &message);
    }

    /// Begins to write a checkpoint where one is due: by the steps, or since the evaluation was the best so far. The
    /// result is a checkpoint of its own.
    pub fn checkpoint(&mut self) {
        let member = &mut *self.member;
        let (step, rule) = (member.trainer.step(), member.parts.job.checkpoint);
        let best = rule.best && member.trainer.best().is_some_and(|best| best.step == step);
        let due = step > 0 && rule.every > 0 && step.is_multiple_of(rule.every);
        let begun = member.checkpointed == step || member.is_over();
        if (due || best) && !begun && self.collective.index() == 0 {
            member.checkpointed = step;
            member.checkpoints.begin(member.trainer.freeze(), best);
        }
    }
}
