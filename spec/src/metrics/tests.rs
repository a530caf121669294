//! Scores against values that numpy computes from scikit-learn's and scipy's definitions, and what must always hold.

use proptest::prelude::*;

use super::*;

fn close(found: Option<f64>, wanted: f64) {
    let found = found.unwrap();
    assert!((found - wanted).abs() < 1e-14, "{found} instead of {wanted}");
}

fn confusion(classes: usize, truths: &[usize], predictions: &[usize]) -> Confusion {
    let mut confusion = Confusion::new(classes);
    truths.iter().zip(predictions).for_each(|(&truth, &predicted)| confusion.add(truth, predicted));
    confusion
}

#[test]
fn class_scores_are_scikit_learn_s() {
    // Class 4 occurs nowhere, so it has no part in the macro mean.
    let scores = confusion(
        5,
        &[0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 3, 3, 2, 1],
        &[0, 1, 1, 1, 2, 0, 2, 2, 0, 2, 3, 0, 2, 1],
    );
    close(scores.accuracy(), 10.0 / 14.0);
    close(scores.macro_f1(), 0.697_023_809_523_809_5);
    close(scores.matthews(), 0.607_204_819_979_896);
    let binary = confusion(2, &[1, 1, 1, 1, 1, 1, 0, 0, 0, 0], &[1, 1, 1, 0, 1, 1, 0, 0, 1, 0]);
    close(binary.matthews(), 7.0 / 12.0);
    close(binary.accuracy(), 0.8);
}

#[test]
fn scores_that_are_not_defined() {
    let none = Confusion::new(3);
    assert_eq!((none.accuracy(), none.macro_f1(), none.matthews()), (None, None, None));
    assert_eq!(confusion(2, &[0, 1], &[1, 1]).matthews(), Some(0.0));
    assert_eq!(pearson(&[1.0], &[1.0]), None);
    assert_eq!(pearson(&[1.0, 2.0], &[1.0]), None);
    assert_eq!(pearson(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
    assert_eq!(pearson(&[1.0, f64::NAN], &[1.0, 2.0]), None);
    assert_eq!(spearman(&[1.0, f64::INFINITY], &[1.0, 2.0]), None);
}

#[test]
fn correlations_are_scipy_s() {
    let x = [0.5, 3.25, 4.0, 1.0, 5.0, 2.5, 2.5, 0.0];
    close(pearson(&x, &[0.9, 2.75, 3.5, 1.5, 4.75, 2.0, 3.0, 0.2]), 0.972_520_574_131_818);
    close(spearman(&x, &[0.9, 2.75, 3.5, 1.5, 4.75, 2.75, 2.75, 5.2]), 0.294_528_416_204_289_54);
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
}

#[test]
fn perplexity_and_argmax() {
    assert!((perplexity(2.34567) - 10.440_265_362_547_516).abs() < 1e-13);
    assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    assert_eq!(argmax(&[f32::NAN, -1.0]), 1);
}

proptest! {
    #[test]
    fn counts_of_parts_add_up(pairs in prop::collection::vec((0usize..4, 0usize..4), 0..50), cut in 0usize..50) {
        let (truths, predictions): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        let whole = confusion(4, &truths, &predictions);
        let cut = cut.min(pairs.len());
        let mut parts = confusion(4, &truths[..cut], &predictions[..cut]);
        parts.merge(&confusion(4, &truths[cut..], &predictions[cut..]));
        prop_assert_eq!(&parts, &whole);
        for score in [whole.accuracy(), whole.macro_f1()].into_iter().flatten() {
            prop_assert!((0.0..=1.0).contains(&score));
        }
        if let Some(score) = whole.matthews() {
            prop_assert!((-1.0 - 1e-12..=1.0 + 1e-12).contains(&score));
        }
    }

    #[test]
    fn a_monotonous_relation_has_rank_correlation_1(values in prop::collection::btree_set(-1000i32..1000, 2..30)) {
        let x: Vec<f64> = values.iter().copied().map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|value| value * value * value).collect();
        prop_assert!((spearman(&x, &y).unwrap() - 1.0).abs() < 1e-12);
    }
}
