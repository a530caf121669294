//! What must hold after every run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lorafleet_proto::v1 as pb;

use super::{
    legal,
    record::{Member, Record},
};

/// What the same job came to when nothing disturbed it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Undisturbed {
    pub adapter_sha256: String,
    /// The bits of loss and evaluation loss, by step.
    pub losses: BTreeMap<u64, (u64, Option<u64>)>,
}

/// What the suite promises, and how it was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

/// The promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Each submitted job ends once, in the right state.
    EndsWell,
    /// The adapter is that of the undisturbed run.
    SameAdapter,
    /// Each step has one loss, equal to the undisturbed one.
    SameLosses,
    /// No step is computed again but the one in flight.
    NothingAgain,
    /// No checkpoint is read while a member lives.
    NoReadWhileOneLives,
    /// The history is a path of the state machine.
    LegalHistory,
}

/// What was counted, and what was found wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Steps that were in flight when a gang changed, and were computed again.
    pub again: u64,
    /// Checkpoints that were read, when no member lived.
    pub reads: u64,
    pub violations: Vec<Violation>,
}

impl Undisturbed {
    /// From the record of a run that nothing disturbed.
    pub fn of(record: &Record) -> Option<Undisturbed> {
        Some(Undisturbed { adapter_sha256: record.adapter_sha256.clone()?, losses: losses(&record.points) })
    }
}

/// Checks a run.
pub fn check(record: &Record, undisturbed: &Undisturbed) -> Findings {
    let mut findings = Findings::default();
    let mut wrong = |rule, detail| findings.violations.push(Violation { rule, detail });
    if let Some(detail) = ends_badly(record) {
        wrong(Rule::EndsWell, detail);
    }
    if let Some(sha256) = &record.adapter_sha256
        && *sha256 != undisturbed.adapter_sha256
    {
        wrong(Rule::SameAdapter, format!("{sha256} instead of {}", undisturbed.adapter_sha256));
    }
    if let Some(detail) = other_losses(record, undisturbed) {
        wrong(Rule::SameLosses, detail);
    }
    if let Some(detail) = legal::illegal(&record.events) {
        wrong(Rule::LegalHistory, detail);
    }
    let (again, mistakes) = computed_again(record);
    mistakes.into_iter().for_each(|detail| wrong(Rule::NothingAgain, detail));
    let (reads, mistakes) = checkpoint_reads(record);
    mistakes.into_iter().for_each(|detail| wrong(Rule::NoReadWhileOneLives, detail));
    Findings { again, reads, ..findings }
}

fn ends_badly(record: &Record) -> Option<String> {
    let ends =
        record.events.iter().filter(|e| matches!(e.kind.as_str(), "succeeded" | "failed" | "cancelled"));
    let ends = ends.count();
    if record.job.state() != pb::JobState::Succeeded {
        let (state, why) = (record.job.state().as_str_name(), &record.job.state_message);
        return Some(format!("the job is {state} after step {}: {why}", record.job.step));
    }
    (ends != 1).then(|| format!("the job has ended {ends} times"))
}

fn losses(points: &[pb::MetricPoint]) -> BTreeMap<u64, (u64, Option<u64>)> {
    points.iter().map(|p| (p.step, (p.loss.to_bits(), p.eval_loss.map(f64::to_bits)))).collect()
}

fn other_losses(record: &Record, undisturbed: &Undisturbed) -> Option<String> {
    let ours = losses(&record.points);
    if ours.len() != record.points.len() {
        return Some("a step has two points".into());
    }
    let steps = ours.keys().chain(undisturbed.losses.keys()).collect::<BTreeSet<_>>();
    let step = steps.into_iter().find(|step| ours.get(step) != undisturbed.losses.get(step))?;
    let show = |loss: Option<&(u64, Option<u64>)>| {
        loss.map(|(loss, eval)| (f64::from_bits(*loss), eval.map(f64::from_bits)))
    };
    let (ours, theirs) = (show(ours.get(step)), show(undisturbed.losses.get(step)));
    Some(format!("step {step} has {ours:?} instead of {theirs:?}"))
}

/// How many steps a later generation of the same attempt computed again, and where that was more than the one in
/// flight. A generation of which nobody was there before begins where a checkpoint or the beginning is, and those after it
/// go on from there.
fn computed_again(record: &Record) -> (u64, Vec<String>) {
    let (mut count, mut mistakes) = (0, Vec::new());
    // The last step of each attempt that a gang which lives on has finished.
    let mut held: BTreeMap<u64, u64> = BTreeMap::new();
    for ((attempt, generation), steps) in record.steps_by_generation() {
        let Some((&from, &last)) = steps.keys().next().zip(steps.keys().next_back()) else { continue };
        let survivor = survivor(record, attempt, generation);
        match (held.get(&attempt), survivor) {
            (Some(&done), _) if from == done => count += 1,
            (Some(&done), Some(survivor)) if from < done => {
                count += done - from + 1;
                mistakes.push(format!(
                    "attempt {attempt}: generation {generation} computed step {from} though step {done} had been \
                     finished, and {survivor} lived"
                ));
            }
            _ => {}
        }
        let before = held.get(&attempt).copied().filter(|_| survivor.is_some());
        held.insert(attempt, before.map_or(last, |done| done.max(last)));
    }
    if record.adapter_sha256.is_some() && record.finished.is_empty() {
        mistakes.push("no worker's log says which steps were finished: nothing was counted".into());
    }
    mistakes.extend(twice(record));
    (count, mistakes)
}

/// A member of the generation that had finished steps in an earlier one of the attempt.
fn survivor(record: &Record, attempt: u64, generation: u64) -> Option<&str> {
    let members = |of: &dyn Fn(u64) -> bool| -> BTreeSet<&Member> {
        let these = record.finished.iter().filter(|d| d.attempt == attempt && of(d.generation));
        these.map(|d| &d.member).collect()
    };
    let (old, new) = (members(&|g| g < generation), members(&|g| g == generation));
    old.intersection(&new).next().map(|member| member.worker.as_str())
}

/// Steps that one member finished twice.
fn twice(record: &Record) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let again = record.finished.iter().filter(|d| !seen.insert((d.attempt, d.step, &d.member)));
    again
        .map(|d| format!("{} finished step {} of attempt {} twice", d.member.worker, d.step, d.attempt))
        .collect()
}

/// How often a checkpoint was read, and where a member of a generation before still lived.
fn checkpoint_reads(record: &Record) -> (u64, Vec<String>) {
    let resumed = record.events.iter().filter(|event| event.kind == "resumed");
    let (mut count, mut mistakes) = (0, Vec::new());
    for event in resumed {
        count += 1;
        let (attempt, generation) = (u64::from(event.attempt), u64::from(event.generation));
        if let Some(survivor) = survivor(record, attempt, generation) {
            mistakes.push(format!(
                "attempt {attempt}: generation {generation} read a checkpoint though {survivor} lived: {}",
                event.message
            ));
        }
    }
    (count, mistakes)
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = match self.rule {
            Rule::EndsWell => "a job ends once, in the right state",
            Rule::SameAdapter => "the same adapter",
            Rule::SameLosses => "one loss a step, the same",
            Rule::NothingAgain => "no step is computed again but the one in flight",
            Rule::NoReadWhileOneLives => "no checkpoint is read while a member lives",
            Rule::LegalHistory => "the history is a path of the state machine",
        };
        write!(f, "broken: {promise}: {}", self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::FinishedStep, *};

    fn event(number: u64, kind: &str, attempt: u32, generation: u32) -> pb::JobEvent {
        pb::JobEvent { number, kind: kind.into(), attempt, generation, ..Default::default() }
    }

    fn steps(
        attempt: u64,
        generation: u64,
        worker: &str,
        steps: std::ops::RangeInclusive<u64>,
    ) -> Vec<FinishedStep> {
        let member = Member { worker: worker.into(), place: 0 };
        steps.map(|step| FinishedStep { attempt, generation, step, member: member.clone() }).collect()
    }

    /// Four steps: a and b, then b alone.
    fn good() -> Record {
        let events = vec![
            event(1, "created", 0, 0),
            event(2, "started", 1, 1),
            event(3, "generation", 1, 2),
            event(4, "succeeded", 1, 2),
        ];
        let point = |step| pb::MetricPoint { step, loss: 1.0 / step as f64, ..Default::default() };
        let finished =
            [steps(1, 1, "a", 1..=3), steps(1, 1, "b", 1..=2), steps(1, 2, "b", 3..=4)].into_iter().flatten();
        Record {
            job: pb::Job { state: pb::JobState::Succeeded as i32, step: 4, ..Default::default() },
            events,
            points: (1..=4).map(point).collect(),
            attempts: Vec::new(),
            finished: finished.collect(),
            adapter_sha256: Some("aa".into()),
        }
    }

    fn broken(change: impl FnOnce(&mut Record)) -> Vec<Rule> {
        let undisturbed = Undisturbed::of(&good()).unwrap();
        let mut record = good();
        change(&mut record);
        check(&record, &undisturbed).violations.into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn the_step_in_flight_may_be_computed_again() {
        let findings = check(&good(), &Undisturbed::of(&good()).unwrap());
        assert_eq!(findings, Findings { again: 1, reads: 0, violations: Vec::new() });
    }

    #[test]
    fn each_promise_is_checked() {
        assert_eq!(broken(|r| r.adapter_sha256 = Some("bb".into())), [Rule::SameAdapter]);
        assert_eq!(broken(|r| r.points[2].loss = 0.5), [Rule::SameLosses]);
        assert_eq!(broken(|r| drop(r.points.pop())), [Rule::SameLosses]);
        assert_eq!(broken(|r| r.points.push(r.points[0].clone())), [Rule::SameLosses]);
        assert_eq!(broken(|r| r.job.state = pb::JobState::Failed as i32), [Rule::EndsWell]);
        assert_eq!(broken(|r| r.events[3].kind = "queued".into()), [Rule::EndsWell, Rule::LegalHistory]);
        assert_eq!(broken(|r| r.finished.extend(steps(1, 2, "c", 1..=1))), [Rule::NothingAgain]);
        let nobody_lived = |r: &mut Record| {
            r.finished.extend(steps(1, 3, "c", 1..=4));
        };
        assert_eq!(broken(nobody_lived), []);
        // Those after it go on from there, and what was finished before it is forgotten; what it finished is not.
        let goes_on = |from| {
            broken(|r| {
                r.finished.extend(steps(1, 3, "c", 1..=2));
                r.finished.extend(steps(1, 4, "c", from..=4));
            })
        };
        assert_eq!((goes_on(3), goes_on(1)), (vec![], vec![Rule::NothingAgain; 3]));
        assert_eq!(
            broken(|r| r.finished.extend(steps(1, 2, "b", 2..=2))),
            [Rule::NothingAgain, Rule::NothingAgain]
        );
    }

    #[test]
    fn a_checkpoint_may_be_read_when_nobody_lived() {
        let resumed =
            |r: &mut Record| r.events.insert(3, pb::JobEvent { number: 4, ..event(4, "resumed", 1, 2) });
        let renumber = |r: &mut Record| r.events[4].number = 5;
        let rules = broken(|r| {
            resumed(r);
            renumber(r);
        });
        assert_eq!(rules, [Rule::NoReadWhileOneLives]);
        let rules = broken(|r| {
            resumed(r);
            renumber(r);
            r.finished.iter_mut().filter(|d| d.generation == 2).for_each(|d| d.member.worker = "c".into());
        });
        assert_eq!(rules, []);
        // Put out, and back as new: it held nothing any more.
        let rules = broken(|r| {
            resumed(r);
            renumber(r);
            r.finished.iter_mut().filter(|d| d.generation == 2).for_each(|d| d.member.place = 2);
        });
        assert_eq!(rules, []);
    }
}
