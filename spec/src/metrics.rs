//! What an evaluation says of predictions: the scores that GLUE uses, each a pure function with its formula.
//!
//! Sums of counts are integers, and so are exact whoever adds them up; the rest are f64 sums in the order given.

/// How often each class was predicted for each true class. Workers' counts add up by [`Confusion::merge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row: the true class; column: the predicted one.
    counts: Vec<u64>,
}

impl Confusion {
    /// No predictions yet, of this many classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// From the counts of [`Confusion::counts`]; `None` unless there are classes² of them.
    pub fn from_counts(classes: usize, counts: Vec<u64>) -> Option<Self> {
        (counts.len() == classes * classes).then_some(Self { classes, counts })
    }

    /// Counts one prediction.
    ///
    /// # Panics
    /// A class is not below the number of classes.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        assert!(truth < self.classes && predicted < self.classes, "a class beyond {}", self.classes);
        self.counts[truth * self.classes + predicted] += 1;
    }

    /// Adds another's counts.
    ///
    /// # Panics
    /// It has another number of classes.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.classes, other.classes, "numbers of classes differ");
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// The counts `[truth × predicted]`, row by row.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Predictions counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of right predictions: Σ_k C_kk / Σ C. `None` before the first.
    pub fn accuracy(&self) -> Option<f64> {
        let total = self.total();
        (total > 0).then(|| self.right() as f64 / total as f64)
    }

    /// Macro F1 as scikit-learn's `f1_score(average="macro")`: the mean, over the classes that occur as truth or as
    /// prediction, of 2·TP / (2·TP + FP + FN). `None` before the first prediction.
    pub fn macro_f1(&self) -> Option<f64> {
        let (truths, predictions) = (self.truths(), self.predictions());
        let scores: Vec<f64> = (0..self.classes)
            .filter(|&class| truths[class] + predictions[class] > 0)
            // 2·TP + FP + FN is the sum of the row and of the column.
            .map(|class| 2.0 * self.at(class, class) as f64 / (truths[class] + predictions[class]) as f64)
            .collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Matthews' correlation as scikit-learn's `matthews_corrcoef`, which is Gorodkin's R_K (2004) for more than two
    /// classes: (c·s − Σ_k p_k·t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)), with c right ones among s predictions, t_k truths
    /// and p_k predictions of class k; 0 where either is always one class. `None` before the first prediction.
    pub fn matthews(&self) -> Option<f64> {
        let s = i128::from(self.total());
        if s == 0 {
            return None;
        }
        let (t, p) = (self.truths(), self.predictions());
        let dot = |a: &[u64], b: &[u64]| -> i128 {
            a.iter().zip(b).map(|(a, b)| i128::from(*a) * i128::from(*b)).sum()
        };
        let numerator = i128::from(self.right()) * s - dot(&p, &t);
        let (predicted, true_) = (s * s - dot(&p, &p), s * s - dot(&t, &t));
        if predicted == 0 || true_ == 0 {
            return Some(0.0);
        }
        Some(numerator as f64 / ((predicted as f64).sqrt() * (true_ as f64).sqrt()))
    }

    fn at(&self, truth: usize, predicted: usize) -> u64 {
        self.counts[truth * self.classes + predicted]
    }

    fn right(&self) -> u64 {
        (0..self.classes).map(|class| self.at(class, class)).sum()
    }

    fn truths(&self) -> Vec<u64> {
        (0..self.classes).map(|truth| (0..self.classes).map(|p| self.at(truth, p)).sum()).collect()
    }

    fn predictions(&self) -> Vec<u64> {
        (0..self.classes).map(|p| (0..self.classes).map(|truth| self.at(truth, p)).sum()).collect()
    }
}

/// The class of the largest of a row of logits; the first of several, as torch's argmax on the CPU. NaN never wins.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (class, value) in logits.iter().enumerate() {
        if *value > logits[best] || logits[best].is_nan() {
            best = class;
        }
    }
    best
}

/// Pearson's correlation as scipy's `pearsonr`: Σ (x−x̄)(y−ȳ) / (‖x−x̄‖·‖y−ȳ‖), within [−1, 1].
///
/// `None` where it is not defined: fewer than two pairs, numbers of values that differ, values that are not finite, or
/// a side that never changes.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.len() < 2 {
        return None;
    }
    let centered = |values: &[f64]| -> Option<Vec<f64>> {
        if values.iter().all(|value| *value == values[0]) {
            return None;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let centered: Vec<f64> = values.iter().map(|value| value - mean).collect();
        let norm = centered.iter().map(|value| value * value).sum::<f64>().sqrt();
        (norm.is_finite() && norm > 0.0).then(|| centered.iter().map(|value| value / norm).collect())
    };
    let (x, y) = (centered(x)?, centered(y)?);
    Some(x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>().clamp(-1.0, 1.0))
}

/// Spearman's correlation as scipy's `spearmanr`: Pearson's of the ranks, equal values sharing their mean rank.
///
/// `None` as [`pearson`]'s.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.iter().chain(y).any(|value| !value.is_finite()) {
        return None;
    }
    pearson(&ranks(x), &ranks(y))
}

/// Ranks from 1; equal values get the mean of theirs (scipy's `rankdata(method="average")`).
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = (2 * start + tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&place| ranks[place] = rank);
        start += tied.len();
    }
    ranks
}

/// Perplexity: e to the mean loss of a token, in nats.
pub fn perplexity(mean_loss: f64) -> f64 {
    libm::exp(mean_loss)
}

#[cfg(test)]
mod tests;
