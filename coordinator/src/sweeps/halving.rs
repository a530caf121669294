//! Successive halving as a function: who goes on at each rung, from what is written down and what is new.
//!
//! Asynchronous (ASHA, arXiv:1810.05934): a rung decides among those that have reached it, and waits for nobody. Children
//! are ordinary jobs, which begin when the queue lets them: on a fleet smaller than the sweep, a rung that waited for all
//! would see its first children end before its last begin, and would save nothing. Unlike there, the part that goes on
//! is exact at every moment: of n that reached a rung, max(min_children, ⌈keep · n⌉) are left, and each that is not was
//! the worst of those left. Where all arrive at once, that is plain successive halving.

use std::collections::{BTreeMap, BTreeSet};

/// How many go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The part, in (0, 1].
    pub keep: f64,
    /// At least so many.
    pub min_children: u32,
}

/// A child's evaluation at a rung.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The child's place in the sweep.
    pub child: u32,
    /// The rung, from 1.
    pub rung: u32,
    /// Its loss there.
    pub loss: f64,
}

/// An entry with what was decided about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Whose, where, and how good.
    pub entry: Entry,
    /// It is not among those left.
    pub beaten: bool,
    /// Its child was ended for it.
    pub ended: bool,
}

/// A child that is beaten from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beaten {
    /// Its entry.
    pub entry: Entry,
    /// Its child is to be ended. It is not where the child had been judged at a later rung before: that one counts.
    pub ends: bool,
    /// Its place among all that reached the rung, from 1.
    pub rank: usize,
    /// How many reached the rung.
    pub of: usize,
    /// How many of them go on.
    pub left: usize,
    /// The lowest loss at the rung.
    pub best: f64,
}

/// What is to be written down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdicts {
    /// Entries that count from now on, beaten at once or not.
    pub entered: Vec<Entry>,
    /// Those that are beaten from now on, new or not, by rung and child.
    pub beaten: Vec<Beaten>,
}

/// Judges what is new, rung by rung. An entry that is written down already, or whose child was ended, does not count.
pub fn judge(written: &[Score], new: &[Entry], rule: Rule) -> Verdicts {
    let mut ended: BTreeSet<u32> = written.iter().filter(|s| s.ended).map(|s| s.entry.child).collect();
    let known: BTreeSet<(u32, u32)> = written.iter().map(|s| (s.entry.rung, s.entry.child)).collect();
    // By rung and child, so that the order in which entries are given means nothing.
    let new: BTreeMap<(u32, u32), Entry> =
        new.iter().map(|e| ((e.rung, e.child), *e)).filter(|(key, _)| !known.contains(key)).collect();
    let rungs: BTreeSet<u32> = new.keys().map(|(rung, _)| *rung).collect();
    let mut verdicts = Verdicts::default();
    for rung in rungs {
        let entering: Vec<Entry> = new.range((rung, 0)..=(rung, u32::MAX)).map(|(_, e)| *e).collect();
        let entering: Vec<Entry> = entering.into_iter().filter(|e| !ended.contains(&e.child)).collect();
        let beaten = at_rung(written, rung, &entering, rule);
        ended.extend(beaten.iter().filter(|b| b.ends).map(|b| b.entry.child));
        verdicts.entered.extend(entering);
        verdicts.beaten.extend(beaten);
    }
    verdicts
}

/// Who is beaten when these reach a rung.
fn at_rung(written: &[Score], rung: u32, entering: &[Entry], rule: Rule) -> Vec<Beaten> {
    let here = || written.iter().filter(|score| score.entry.rung == rung);
    let all: Vec<f64> =
        here().map(|s| key(s.entry.loss)).chain(entering.iter().map(|e| key(e.loss))).collect();
    let left = left_of(all.len(), rule);
    // Of equals, who came first is better: nobody is ended for one that is no better.
    let old = here().filter(|score| !score.beaten).map(|score| (score.entry, false));
    let mut standing: Vec<(Entry, bool)> = old.chain(entering.iter().map(|entry| (*entry, true))).collect();
    standing.sort_by(|(a, a_new), (b, b_new)| {
        key(a.loss).total_cmp(&key(b.loss)).then(a_new.cmp(b_new)).then(a.child.cmp(&b.child))
    });
    let beaten = standing.split_off(left.min(standing.len()));
    let best = all.iter().copied().fold(f64::INFINITY, f64::min);
    let later = |child| written.iter().any(|score| score.entry.child == child && score.entry.rung > rung);
    let verdict = |(entry, _): (Entry, bool)| Beaten {
        entry,
        ends: !later(entry.child),
        rank: 1 + all.iter().filter(|loss| **loss < key(entry.loss)).count(),
        of: all.len(),
        left,
        best,
    };
    beaten.into_iter().map(verdict).collect()
}

/// How many of so many go on: at least one.
fn left_of(count: usize, rule: Rule) -> usize {
    // 0.07 × 100 is 7.000000000000001 in floating point; that is 7 children, not 8.
    let part = (rule.keep * count as f64 - 1e-9).ceil() as usize;
    part.max(rule.min_children as usize).max(1)
}

/// A loss that is not a number is worse than all that are.
fn key(loss: f64) -> f64 {
    if loss.is_nan() { f64::INFINITY } else { loss }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF: Rule = Rule { keep: 0.5, min_children: 1 };

    fn entries(rung: u32, losses: &[f64]) -> Vec<Entry> {
        (1..).zip(losses).map(|(child, &loss)| Entry { child, rung, loss }).collect()
    }

    /// Writes verdicts down, as the rows do.
    fn write(written: &mut Vec<Score>, verdicts: &Verdicts) {
        written.extend(verdicts.entered.iter().map(|&entry| Score { entry, beaten: false, ended: false }));
        for beaten in &verdicts.beaten {
            // Not by equality: a loss may be no number.
            let is = |score: &&mut Score| {
                (score.entry.child, score.entry.rung) == (beaten.entry.child, beaten.entry.rung)
            };
            let score = written.iter_mut().find(is).expect("a written entry");
            (score.beaten, score.ended) = (true, beaten.ends);
        }
    }

    #[test]
    fn all_at_once_is_plain_halving() {
        let verdicts = judge(&[], &entries(1, &[4.0, 3.0, 2.0, 1.0, f64::NAN]), HALF);
        let ended: Vec<u32> = verdicts.beaten.iter().map(|beaten| beaten.entry.child).collect();
        assert_eq!(ended, [1, 5]);
        assert!(verdicts.beaten.iter().all(|beaten| beaten.ends && beaten.of == 5 && beaten.left == 3));
        assert_eq!(verdicts.beaten.iter().map(|beaten| beaten.rank).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn a_child_that_was_judged_later_is_not_ended_for_an_earlier_rung() {
        let mut written = Vec::new();
        for rung in [1, 2] {
            let verdicts = judge(&written, &[Entry { child: 1, rung, loss: 3.0 }], HALF);
            write(&mut written, &verdicts);
        }
        let verdicts = judge(&written, &[Entry { child: 2, rung: 1, loss: 2.0 }], HALF);
        assert_eq!(verdicts.beaten.len(), 1);
        assert_eq!((verdicts.beaten[0].entry.child, verdicts.beaten[0].ends), (1, false));
    }

    #[test]
    fn who_is_beaten_at_a_rung_does_not_reach_the_next_in_the_same_look() {
        let mut new = entries(1, &[1.0, 2.0]);
        new.extend(entries(2, &[9.0, 0.1]));
        let verdicts = judge(&[], &new, HALF);
        assert_eq!(verdicts.entered.len(), 3);
        assert_eq!(verdicts.beaten.len(), 1);
        assert_eq!((verdicts.beaten[0].entry.child, verdicts.beaten[0].entry.rung), (2, 1));
    }

    fn rules() -> impl Strategy<Value = Rule> {
        (0.05f64..0.95, 1u32..4).prop_map(|(keep, min_children)| Rule { keep, min_children })
    }

    /// Evaluations of a few children at a few rungs, each child's in order, cut into looks.
    fn looks() -> impl Strategy<Value = Vec<Vec<Entry>>> {
        let one = (1u32..20, prop_oneof![9 => 0.0f64..10.0, 1 => Just(f64::NAN), 2 => Just(3.0)]);
        prop::collection::vec(prop::collection::vec(one, 1..6), 1..20).prop_map(|looks| {
            let mut reached = BTreeMap::<u32, u32>::new();
            let mut enter = |(child, loss)| {
                let rung = reached.entry(child).or_default();
                *rung += 1;
                Entry { child, rung: *rung, loss }
            };
            looks.into_iter().map(|look| look.into_iter().map(&mut enter).collect()).collect()
        })
    }

    proptest! {
        /// Whatever arrives in whatever looks: at each rung exactly the fraction is left, the best is never beaten, nobody
        /// is beaten twice, and a child that was ended is heard of no more.
        #[test]
        fn exactly_the_fraction_is_left_and_the_best_is(looks in looks(), rule in rules()) {
            let mut written: Vec<Score> = Vec::new();
            for look in looks {
                let gone: BTreeSet<u32> = written.iter().filter(|s| s.ended).map(|s| s.entry.child).collect();
                let verdicts = judge(&written, &look, rule);
                prop_assert!(verdicts.entered.iter().all(|entry| !gone.contains(&entry.child)));
                let before = written.iter().filter(|score| score.beaten).count();
                write(&mut written, &verdicts);
                let after = written.iter().filter(|score| score.beaten).count();
                prop_assert_eq!(after, before + verdicts.beaten.len());
                for rung in written.iter().map(|score| score.entry.rung).collect::<BTreeSet<_>>() {
                    let here: Vec<&Score> = written.iter().filter(|score| score.entry.rung == rung).collect();
                    let left = here.iter().filter(|score| !score.beaten).count();
                    prop_assert_eq!(left, left_of(here.len(), rule).min(here.len()));
                    let best = here.iter().map(|s| key(s.entry.loss)).fold(f64::INFINITY, f64::min);
                    prop_assert!(here.iter().any(|score| !score.beaten && key(score.entry.loss) == best));
                }
            }
        }

        /// The same rows and evaluations give the same verdicts in any order, so that another coordinator decides alike;
        /// and what was decided is not decided again.
        #[test]
        fn verdicts_are_a_function_of_what_is_written(looks in looks(), rule in rules(), turn in 0usize..7) {
            let mut written: Vec<Score> = Vec::new();
            for look in looks {
                let verdicts = judge(&written, &look, rule);
                let (mut rows, mut turned) = (written.clone(), look.clone());
                rows.reverse();
                turned.rotate_left(turn % look.len());
                // Debug text: NaN equals itself there.
                prop_assert_eq!(format!("{:?}", judge(&rows, &turned, rule)), format!("{verdicts:?}"));
                write(&mut written, &verdicts);
                prop_assert_eq!(judge(&written, &look, rule), Verdicts::default());
            }
        }

        /// Where all arrive at once, those that go on are the best.
        #[test]
        fn all_at_once_the_best_go_on(losses in prop::collection::vec(0.0f64..10.0, 1..40), rule in rules()) {
            let verdicts = judge(&[], &entries(1, &losses), rule);
            let beaten: BTreeSet<u32> = verdicts.beaten.iter().map(|beaten| beaten.entry.child).collect();
            let worst_left = (1..).zip(&losses).filter(|(child, _)| !beaten.contains(child)).map(|(_, loss)| *loss);
            let worst_left = worst_left.fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(verdicts.beaten.iter().all(|beaten| beaten.entry.loss >= worst_left));
        }
    }
}
