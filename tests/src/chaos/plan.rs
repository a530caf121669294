//! What a run will be, drawn from its seed: the fleet, the job, and the faults.

use std::time::Duration;

use super::{
    job::Variant,
    kind::{Kind, Point},
    random::Random,
};

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    /// Workers that the fleet has, and gets again when some die.
    pub workers: u32,
    pub coordinators: u32,
    pub variant: Variant,
    /// How long it trains: the more faults may come, the longer.
    pub steps: u64,
    /// In the order of their steps.
    pub faults: Vec<Fault>,
}

/// One fault of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: Kind,
    /// It comes when the job has finished this step; a failpoint acts in it.
    pub at_step: u64,
    /// Chooses among the workers or coordinators that are there then.
    pub target: u64,
    /// How long it lasts, where it lasts.
    pub hold: Duration,
    /// Whether the next fault comes before this one is over.
    pub overlaps: bool,
}

/// What may be drawn.
#[derive(Clone, Debug)]
pub struct Deck {
    pub kinds: Vec<Kind>,
    /// Each run begins with a fault of these, if any.
    pub first: Vec<Kind>,
    /// A run has one to so many faults, not counting those that lead to a point of the protocol.
    pub faults: u64,
}

/// What a job of the usual length has room for.
pub const USUAL_FAULTS: u64 = 3;

impl Plan {
    /// The run of a seed.
    pub fn draw(seed: u64, deck: &Deck) -> Plan {
        let mut random = Random::new(seed);
        let variant = random.one_of(&Variant::ALL);
        let steps = variant.steps() * deck.faults.div_ceil(USUAL_FAULTS);
        let mut workers = random.between(2, 4) as u32;
        let coordinators = random.between(1, 2) as u32;
        let count = random.between(deck.faults.div_ceil(USUAL_FAULTS), deck.faults);
        let mut faults: Vec<Fault> = Vec::new();
        let mut step = random.between(2, 6);
        for number in 0..count {
            let kinds = if number == 0 && !deck.first.is_empty() { &deck.first } else { &deck.kinds };
            let kind = random.one_of(kinds);
            // A point that only a change of the gang leads to gets one.
            if let Kind::Failpoint(point) = kind
                && point.needs_a_change()
            {
                let cause = if point == Point::MidBroadcast { Kind::AddWorker } else { Kind::KillWorker };
                faults.push(Fault::draw(cause, step, &mut random));
            }
            faults.push(Fault::draw(kind, step, &mut random));
            let overlaps = number + 1 < count && random.one_in(2);
            if let Some(last) = faults.last_mut() {
                last.overlaps = overlaps;
            }
            step += if overlaps { random.between(0, 1) } else { random.between(4, 9) };
            step = step.min(steps - 4);
        }
        // A gang that is full has no use for one more.
        if faults.iter().any(|fault| fault.kind == Kind::AddWorker) {
            workers = workers.min(3);
        }
        Plan { seed, workers, coordinators, variant, steps, faults }
    }
}

impl Fault {
    fn draw(kind: Kind, at_step: u64, random: &mut Random) -> Fault {
        let (target, hold) = (random.bits(), Duration::from_millis(random.between(1500, 6000)));
        Fault { kind, at_step, target, hold, overlaps: false }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn deck() -> Deck {
        Deck { kinds: Kind::all(), first: Vec::new(), faults: USUAL_FAULTS }
    }

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(Plan::draw(5, &deck()), Plan::draw(5, &deck()));
        assert_ne!(Plan::draw(5, &deck()), Plan::draw(6, &deck()));
    }

    #[test]
    fn every_kind_comes_and_steps_grow_within_the_job() {
        let mut seen = BTreeSet::new();
        for seed in 0..1000 {
            let plan = Plan::draw(seed, &deck());
            assert!((2..=4).contains(&plan.workers) && (1..=2).contains(&plan.coordinators));
            assert!(plan.faults.is_sorted_by_key(|fault| fault.at_step));
            assert!(plan.faults.iter().all(|f| f.at_step >= 2 && f.at_step < plan.steps));
            seen.extend(plan.faults.iter().map(|fault| fault.kind));
        }
        assert_eq!(seen, Kind::all().into_iter().collect());
    }

    #[test]
    fn more_faults_make_a_longer_job() {
        let plan = Plan::draw(3, &Deck { faults: 9, ..deck() });
        assert!((3..=18).contains(&plan.faults.len()));
        assert_eq!(plan.steps, 3 * plan.variant.steps());
    }

    #[test]
    fn a_gang_that_is_to_grow_is_not_full() {
        let deck = Deck { kinds: vec![Kind::AddWorker], ..deck() };
        assert!((0..50).all(|seed| Plan::draw(seed, &deck).workers < 4));
    }

    #[test]
    fn the_first_fault_is_the_wanted_one() {
        let deck = Deck { first: vec![Kind::KillAll], ..deck() };
        assert!((0..50).all(|seed| Plan::draw(seed, &deck).faults[0].kind == Kind::KillAll));
    }
}
