//! Running jobs that go back to the queue for one of higher priority.

use proptest::prelude::*;

use super::*;

fn low(priority: i32, gang: Gang) -> Gang {
    Gang { priority, preemptible: true, ..gang }
}

/// (job that goes, for whom).
fn preempted(decisions: &[Decision]) -> Vec<(u128, u128)> {
    let preempt = |d: &Decision| match d {
        Decision::Preempt { job, for_job } => Some((job.0.as_u128(), for_job.0.as_u128())),
        _ => None,
    };
    decisions.iter().filter_map(preempt).collect()
}

fn urgent(min: usize) -> [Queued; 1] {
    [Queued { priority: 100, ..job(1, min, min) }]
}

#[test]
fn the_lowest_and_youngest_goes_and_no_more_than_needed() {
    let busy: Vec<Worker> = (1..=4).map(|n| worker(n, &[])).collect();
    let gangs = [low(0, gang(7, 1, 1, &[1])), low(-100, gang(8, 1, 1, &[2])), low(0, gang(9, 2, 2, &[3, 4]))];
    let decisions = schedule(&urgent(1), &gangs, &busy, TIMES);
    assert_eq!(preempted(&decisions), [(8, 1)]);
    assert_eq!(reason(&decisions[0]), "waits for a job of lower priority to go back to the queue");
    assert_eq!(preempted(&schedule(&urgent(2), &gangs, &busy, TIMES)), [(9, 1)], "one instead of two");
    assert_eq!(preempted(&schedule(&urgent(3), &gangs, &busy, TIMES)), [(8, 1), (9, 1)]);
    assert_eq!(preempted(&schedule(&urgent(5), &gangs, &busy, TIMES)), [], "not in vain");
    // What gangs have above their minimum is enough.
    let gangs = [low(0, gang(7, 1, 2, &[1, 2])), low(0, gang(8, 1, 2, &[3, 4]))];
    let decisions = schedule(&urgent(2), &gangs, &busy, TIMES);
    assert_eq!((preempted(&decisions), shrinkage(&decisions).len()), (vec![], 2));
    // It is not: one gives a place, the other all.
    let decisions = schedule(&urgent(3), &gangs, &busy, TIMES);
    assert_eq!((preempted(&decisions), shrinkage(&decisions)), (vec![(8, 1)], vec![(7, vec![2], 1)]));
}

#[test]
fn equals_the_protected_and_those_that_waited_long_are_spared() {
    let busy = [worker(1, &[])];
    let gone = |gang: Gang| preempted(&schedule(&urgent(1), &[gang], &busy, TIMES)).len();
    let base = || low(0, gang(9, 1, 1, &[1]));
    assert_eq!(gone(base()), 1);
    assert_eq!(gone(Gang { priority: 100, ..base() }), 0, "an equal");
    assert_eq!(gone(Gang { preemptible: false, ..base() }), 0, "one that may not be");
    assert_eq!(gone(Gang { standing: Standing::Loading, ..base() }), 0, "one that loads");
    assert_eq!(gone(Gang { age: AGEING, ..base() }), 0, "it would come first in the queue");
    let mut leaves = base();
    leaves.seats[0].leaving = true;
    let decisions = schedule(&urgent(1), &[leaves], &busy, TIMES);
    assert_eq!(preempted(&decisions), [], "it goes already");
    assert_eq!(reason(&decisions[0]), "waits for a worker that running jobs give back");
}

proptest! {
    #[test]
    fn only_downward_only_if_needed_and_then_it_starts(
        gangs in prop::collection::vec((1usize..4, 0usize..3, -1i32..3, any::<bool>()), 0..6),
        free in 0usize..3,
        min in 1usize..9,
    ) {
        let mut fleet: Vec<Worker> = (0..free as u128).map(|n| worker(1000 + n, &[0])).collect();
        let mut running = Vec::new();
        for (g, (least, more, priority, preemptible)) in (0u128..).zip(gangs) {
            let members: Vec<u128> = (0..(least + more) as u128).map(|n| 10 * g + n).collect();
            fleet.extend(members.iter().map(|n| worker(*n, &[])));
            running.push(Gang { priority, preemptible, ..gang(500 + g, least, least + more, &members) });
        }
        let queue = [Queued { priority: 1, ..job(1, min, min) }];
        let decisions = schedule(&queue, &running, &fleet, TIMES);
        let victims: BTreeSet<u128> = preempted(&decisions).into_iter().map(|(victim, _)| victim).collect();
        let below = |gang: &Gang| gang.seats.len() - gang.min;
        for victim in &victims {
            let spared: usize = running.iter().filter(|gang| gang.priority <= 1).map(|gang| {
                let id = gang.job.0.as_u128();
                if victims.contains(&id) && id != *victim { gang.seats.len() } else { below(gang) }
            }).sum();
            prop_assert!(free + spared < min, "it need not have gone");
            let gang = running.iter().find(|gang| gang.job.0.as_u128() == *victim).expect("a gang");
            prop_assert!(gang.priority < 1 && gang.preemptible);
        }
        let given: usize = shrinkage(&decisions).iter().map(|(_, places, _)| places.len()).sum();
        let all: usize = running.iter().filter(|g| victims.contains(&g.job.0.as_u128())).map(|g| g.seats.len()).sum();
        if !victims.is_empty() {
            prop_assert!(free + given + all >= min, "it can start then");
        }
    }
}
