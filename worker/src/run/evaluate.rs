//! Evaluation as the gang's work: cut by the spec, shared by index, summed exactly.

use lorafleet_lora::train::EvalSums;
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{data::Example, sampler};
use tracing::info;

use super::{end::End, steps::Training};

impl Training<'_> {
    /// The loss of data.eval under the current adapter; nothing without data.eval. Every member calls it at the same
    /// boundary and gets the same sums.
    pub fn evaluate(&mut self) -> Result<Option<EvalSums>, End> {
        let Some(data) = &self.prepared.eval else { return Ok(None) };
        let train = &self.prepared.job.train;
        let batches = cut(&data.examples, train.global_batch, train.micro_batches, train.micro_tokens);
        let (index, world_size) = (self.collective.index() as usize, self.collective.world_size() as usize);
        let mut sums = EvalSums::default();
        for mine in sampler::share(batches.len(), index, world_size) {
            self.run.check()?;
            sums.add(self.trainer.evaluate(&batches[mine])?);
        }
        let mut buffer = [sums.loss, sums.labelled_tokens];
        self.collective.all_reduce_i64(&mut buffer)?;
        let [loss, labelled_tokens] = buffer;
        Ok(Some(EvalSums { loss, labelled_tokens }))
    }

    /// Puts an evaluation into the job's history.
    pub fn report_evaluation(&self, step: u64, sums: EvalSums) {
        let Some(loss) = sums.mean_loss() else { return };
        info!(step, loss, tokens = sums.labelled_tokens, "evaluated");
        if self.collective.index() == 0 {
            let message =
                format!("step {step}: evaluation loss {loss:.4} over {} tokens", sums.labelled_tokens);
            self.run.reporter.event("evaluated", &message);
        }
    }

    /// Reports the evaluation before the first step, as the point of step 0.
    pub fn report_evaluation_before(&self, sums: EvalSums) {
        self.report_evaluation(0, sums);
        let (fence, eval_loss) = (self.run.fence(), sums.mean_loss());
        let pb::Fence { attempt, generation, .. } = fence;
        self.run.reporter.point(pb::MetricPoint { eval_loss, attempt, generation, ..Default::default() });
    }
}

/// The evaluation set in batches as a step's: by the spec alone.
fn cut(
    examples: &[Example],
    batch: u32,
    micro_batches: u32,
    micro_tokens: Option<u32>,
) -> Vec<Vec<&Example>> {
    let micro_tokens = micro_tokens.map(|tokens| tokens as usize);
    let windows = examples.chunks(batch.max(1) as usize);
    windows
        .flat_map(|window| {
            let lengths: Vec<usize> = window.iter().map(|example| example.tokens.len()).collect();
            let batches = sampler::cut(&lengths, micro_batches as usize, micro_tokens);
            batches.into_iter().map(|places| places.into_iter().map(|place| &window[place]).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_evaluated_once() {
        let example = |length: usize| Example::causal(vec![1; length], vec![true; length]);
        let examples: Vec<Example> = (2..40).map(example).collect();
        let batches = cut(&examples, 16, 4, Some(64));
        let mut lengths: Vec<usize> = batches.iter().flatten().map(|example| example.tokens.len()).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, (2..40).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| !batch.is_empty()));
    }
}
