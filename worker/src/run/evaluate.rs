//! Evaluation as the gang's work: cut by the spec, shared by speed, summed exactly.

use lorafleet_lora::train::{EvalPart, EvalSums};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    data::{Example, Target},
    job::{Metric, TrainSpec},
    metrics::{Confusion, pearson, spearman},
    sampler,
};
use tracing::info;

use super::{end::Halt, generation::Training, prepare::Data};

/// One evaluation, the same on every member.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluation {
    pub sums: EvalSums,
    /// What classification measures beside the loss; without what is not defined.
    pub scores: Vec<pb::Score>,
}

impl Evaluation {
    /// The figure that tells the better of two; NaN where it is not defined.
    pub fn figure(&self, metric: Metric) -> f64 {
        let found = match metric {
            Metric::Loss => self.sums.mean_loss(),
            metric => self.scores.iter().find(|score| score.name == metric.name()).map(|score| score.value),
        };
        found.unwrap_or(f64::NAN)
    }

    /// As the point of step 0, taken under `fence`.
    pub fn point(&self, fence: pb::Fence) -> pb::MetricPoint {
        let pb::Fence { attempt, generation, .. } = fence;
        let (eval_loss, eval_scores) = (self.sums.mean_loss(), self.scores.clone());
        pb::MetricPoint { eval_loss, eval_scores, attempt, generation, ..Default::default() }
    }

    /// In words.
    pub fn describe(&self, loss: f64) -> String {
        let of = if self.scores.is_empty() { "tokens" } else { "examples" };
        let mut text = format!("evaluation loss {loss:.4} over {} {of}", self.sums.labelled_tokens);
        for score in &self.scores {
            text += &format!(", {} {:.4}", score.name, score.value);
        }
        text
    }
}

/// An evaluation under way: the evaluation set, cut by the spec, and the sums of what was looked at.
pub(super) struct Pass<'a> {
    data: &'a Data,
    batches: Vec<Vec<usize>>,
    sums: EvalSums,
    /// A score's bits, at its example's place: each is computed by one member, so the sum over members is itself.
    predictions: Vec<i64>,
}

impl<'a> Pass<'a> {
    /// Nothing is looked at yet.
    pub fn new(data: &'a Data, train: &TrainSpec) -> Self {
        let batches = cut(&data.examples, train.global_batch, train.micro_batches, train.micro_tokens);
        let scored = data.examples.first().is_some_and(|first| matches!(first.target, Target::Score(_)));
        let predictions = vec![0; if scored { data.examples.len() } else { 0 }];
        let mut pass = Self { data, batches, sums: EvalSums::default(), predictions };
        pass.sums = EvalSums::of_classes(pass.classes());
        pass
    }

    fn classes(&self) -> usize {
        self.data.labels.as_ref().map_or(0, |labels| labels.names().len())
    }

    /// What each batch costs, in tokens.
    pub fn costs(&self) -> Vec<u64> {
        let tokens = |&place: &usize| self.data.examples[place].tokens.len() as u64;
        self.batches.iter().map(|batch| batch.iter().map(tokens).sum()).collect()
    }

    /// The examples of a batch.
    pub fn batch(&self, batch: usize) -> Vec<&'a Example> {
        let data = self.data;
        self.batches[batch].iter().map(|&place| &data.examples[place]).collect()
    }

    /// A batch was evaluated.
    pub fn add(&mut self, batch: usize, part: &EvalPart) {
        self.sums.add(&part.sums);
        for (&place, score) in self.batches[batch].iter().zip(&part.scores) {
            self.predictions[place] = score.to_bits().into();
        }
    }

    /// What members add up.
    pub fn buffer(&self) -> Vec<i64> {
        let mut buffer = vec![self.sums.loss, self.sums.labelled_tokens];
        buffer.extend_from_slice(&self.sums.confusion);
        buffer.extend_from_slice(&self.predictions);
        buffer
    }

    /// The evaluation, once everything was looked at and added up.
    pub fn evaluation(&self, buffer: &[i64]) -> Evaluation {
        let classes = self.classes();
        let (counts, predictions) = buffer[2..].split_at(classes * classes);
        let sums = EvalSums { loss: buffer[0], labelled_tokens: buffer[1], confusion: counts.to_vec() };
        let scores = match self.predictions.is_empty() {
            true => rates(classes, counts),
            false => correlations(predictions, &self.data.examples),
        };
        Evaluation { sums, scores }
    }
}

impl Training<'_, '_> {
    /// The loss of data.eval under the current weights, and its other scores; nothing without data.eval. Every member
    /// calls it at the same boundary and gets the same sums.
    pub fn evaluate(&mut self) -> Result<Option<Evaluation>, Halt> {
        let Some(data) = &self.member.parts.eval else { return Ok(None) };
        let mut pass = Pass::new(data, &self.member.parts.job.train);
        let index = self.collective.index() as usize;
        for mine in sampler::share_by_speed(&pass.costs(), self.pace.speeds(), index) {
            self.check()?;
            let part = self.member.trainer.evaluate(&pass.batch(mine))?;
            pass.add(mine, &part);
        }
        let mut buffer = pass.buffer();
        self.collective.all_reduce_i64(&mut buffer)?;
        Ok(Some(pass.evaluation(&buffer)))
    }

    /// Puts an evaluation into the job's history.
    pub fn report_evaluation(&self, step: u64, evaluation: &Evaluation) {
        let Some(loss) = evaluation.sums.mean_loss() else { return };
        info!(step, loss, labelled = evaluation.sums.labelled_tokens, "evaluated");
        self.member.tell(
            &format!("evaluated/{step}"),
            "evaluated",
            &format!("step {step}: {}", evaluation.describe(loss)),
        );
    }

    /// Reports the evaluation before the first step, as the point of step 0.
    pub fn report_evaluation_before(&self, evaluation: &Evaluation) {
        self.report_evaluation(0, evaluation);
        self.member.run.reporter.point(evaluation.point(self.member.run.fence()));
    }
}

/// Accuracy, macro F1 and Matthews' correlation of the counted classes.
fn rates(classes: usize, counts: &[i64]) -> Vec<pb::Score> {
    let counts = counts.iter().map(|&count| count.max(0) as u64).collect();
    let Some(confusion) = Confusion::from_counts(classes, counts).filter(|confusion| confusion.total() > 0)
    else {
        return Vec::new();
    };
    named([
        (Metric::Accuracy, confusion.accuracy()),
        (Metric::F1, confusion.macro_f1()),
        (Metric::Matthews, confusion.matthews()),
    ])
}

/// Pearson's and Spearman's correlation of predicted scores, given by their bits, with the true ones.
fn correlations(predictions: &[i64], examples: &[Example]) -> Vec<pb::Score> {
    let predicted: Vec<f64> = predictions.iter().map(|&bits| f32::from_bits(bits as u32).into()).collect();
    let truth = |example: &Example| match example.target {
        Target::Score(score) => f64::from(score),
        _ => f64::NAN,
    };
    let truth: Vec<f64> = examples.iter().map(truth).collect();
    named([(Metric::Pearson, pearson(&predicted, &truth)), (Metric::Spearman, spearman(&predicted, &truth))])
}

fn named<const N: usize>(scores: [(Metric, Option<f64>); N]) -> Vec<pb::Score> {
    let score = |(metric, value): (Metric, Option<f64>)| {
        Some(pb::Score { name: metric.name().to_owned(), value: value? })
    };
    scores.into_iter().filter_map(score).collect()
}

/// The evaluation set in batches as a step's, by the spec alone: places of examples.
fn cut(examples: &[Example], batch: u32, micro_batches: u32, micro_tokens: Option<u32>) -> Vec<Vec<usize>> {
    let micro_tokens = micro_tokens.map(|tokens| tokens as usize);
    let batch = batch.max(1) as usize;
    let windows = examples.chunks(batch).enumerate();
    windows
        .flat_map(|(window, examples)| {
            let lengths: Vec<usize> = examples.iter().map(|example| example.tokens.len()).collect();
            let batches = sampler::cut(&lengths, micro_batches as usize, micro_tokens);
            batches.into_iter().map(move |places| {
                places.into_iter().map(|place| window * batch + place).collect::<Vec<usize>>()
            })
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
        let mut places: Vec<usize> = batches.iter().flatten().copied().collect();
        places.sort_unstable();
        assert_eq!(places, (0..38).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| !batch.is_empty()));
    }

    #[test]
    fn scores_are_named_and_the_undefined_ones_left_out() {
        let rates = rates(2, &[3, 1, 0, 4]);
        let names: Vec<&str> = rates.iter().map(|score| score.name.as_str()).collect();
        assert_eq!(names, ["accuracy", "f1", "matthews"]);
        let evaluation = Evaluation { scores: rates, ..Default::default() };
        assert_eq!(evaluation.figure(Metric::Accuracy), 7.0 / 8.0);
        assert!(evaluation.figure(Metric::Pearson).is_nan() && evaluation.figure(Metric::Loss).is_nan());
        let example = |score: f32| Example { tokens: vec![1], second: None, target: Target::Score(score) };
        let examples: Vec<Example> = [0.0, 1.0, 2.0].map(example).into();
        let same = [7f32.to_bits().into(); 3];
        assert_eq!(correlations(&same, &examples), []);
        let bits = [0.5f32, 1.5, 2.5].map(|score| i64::from(score.to_bits()));
        let found = correlations(&bits, &examples);
        assert!(found.iter().all(|score| (score.value - 1.0).abs() < 1e-12) && found.len() == 2);
        assert_eq!(super::rates(0, &[]), []);
    }
}
