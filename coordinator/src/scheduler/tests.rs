//! Decisions by example, and the rules that hold for all of them.

mod anything;
mod long_run;
mod overtaking;
mod preemption;
mod rules;
mod tenants;

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::*;
use crate::ids::{JobId, TenantId, WorkerId};

const GATHER: Duration = Duration::from_millis(300);
const SETTLE: Duration = Duration::from_secs(10);
const AGEING: Duration = Duration::from_secs(4 * 3600);
const CHARGE: Duration = Duration::from_secs(600);
const TIMES: Times = Times { gather: GATHER, settle: SETTLE, ageing: AGEING, charge: CHARGE };

/// A decision without tenants.
fn schedule(queue: &[Queued], gangs: &[Gang], fleet: &[Worker], times: Times) -> Vec<Decision> {
    super::schedule(&queue.to_vec().into(), gangs, fleet, &[], times)
}

fn job(n: u128, min: usize, max: usize) -> Queued {
    Queued {
        job: JobId(Uuid::from_u128(n)),
        tenant: TenantId::DEFAULT,
        priority: 0,
        min,
        max,
        waited: GATHER,
        age: Duration::ZERO,
        kind: None,
        selector: Labels::none(),
        base: None,
        run_estimate: None,
    }
}

fn worker(n: u128, free: &[u32]) -> Worker {
    Worker {
        worker: WorkerId(Uuid::from_u128(n)),
        kind: "k".into(),
        device: "cpu".into(),
        labels: Labels::none(),
        bases: Vec::new(),
        free: free.to_vec(),
        idle: GATHER,
    }
}

/// A training gang with its places on these workers, in order.
fn gang(n: u128, min: usize, max: usize, on: &[u128]) -> Gang {
    let seat = |(i, worker): (usize, &u128)| Seat {
        place: u32::try_from(i).expect("few") + 1,
        worker: WorkerId(Uuid::from_u128(*worker)),
        leaving: false,
        joined: None,
    };
    Gang {
        job: JobId(Uuid::from_u128(n)),
        tenant: TenantId::DEFAULT,
        priority: 0,
        min,
        max,
        standing: Standing::Training,
        kinds: vec!["k".into()],
        selector: Labels::none(),
        base: None,
        age: Duration::ZERO,
        left: None,
        preemptible: false,
        seats: on.iter().enumerate().map(seat).collect(),
        barred: BTreeSet::new(),
    }
}

fn sizes(decisions: &[Decision]) -> Vec<usize> {
    let size = |d: &Decision| match d {
        Decision::Start { places, .. } => Some(places.len()),
        Decision::Wait { .. } => Some(0),
        Decision::Grow { .. } | Decision::Shrink { .. } | Decision::Preempt { .. } => None,
    };
    decisions.iter().filter_map(size).collect()
}

fn reason(decision: &Decision) -> String {
    match decision {
        Decision::Wait { reason, .. } => reason.to_string(),
        other => panic!("it does not wait: {other:?}"),
    }
}

/// (job, workers that join).
fn growth(decisions: &[Decision]) -> Vec<(u128, Vec<u128>)> {
    let grows = |d: &Decision| match d {
        Decision::Grow { job, places } => {
            Some((job.0.as_u128(), places.iter().map(|place| place.worker.0.as_u128()).collect()))
        }
        _ => None,
    };
    decisions.iter().filter_map(grows).collect()
}

/// (job, places that leave, for whom).
fn shrinkage(decisions: &[Decision]) -> Vec<(u128, Vec<u32>, u128)> {
    let shrinks = |d: &Decision| match d {
        Decision::Shrink { job, places, for_job } => {
            Some((job.0.as_u128(), places.clone(), for_job.0.as_u128()))
        }
        _ => None,
    };
    decisions.iter().filter_map(shrinks).collect()
}

#[test]
fn two_jobs_share_two_workers_and_one_alone_gets_both() {
    let fleet = [worker(1, &[0]), worker(2, &[0])];
    assert_eq!(sizes(&schedule(&[job(1, 1, 4), job(2, 1, 4)], &[], &fleet, TIMES)), [1, 1]);
    assert_eq!(sizes(&schedule(&[job(1, 1, 4)], &[], &fleet, TIMES)), [2]);
}

#[test]
fn a_job_that_could_use_more_waits_a_moment_for_company() {
    let fleet = [worker(1, &[0]), worker(2, &[0])];
    let fresh = Queued { waited: Duration::ZERO, ..job(1, 1, 4) };
    let alone = schedule(std::slice::from_ref(&fresh), &[], &fleet, TIMES);
    assert_eq!(reason(&alone[0]), "starts in a moment");
    // With company it starts at once: nothing is left to wait for.
    assert_eq!(sizes(&schedule(&[fresh.clone(), job(2, 1, 4)], &[], &fleet, TIMES)), [1, 1]);
    // So does one that can't use more than there is.
    assert_eq!(sizes(&schedule(&[Queued { max: 1, ..fresh }], &[], &fleet, TIMES)), [1]);
}

#[test]
fn reasons_name_what_is_missing() {
    let fleet = [worker(1, &[0]), worker(2, &[])];
    let decisions = schedule(&[job(1, 3, 3), job(2, 2, 2), job(3, 1, 1)], &[], &fleet, TIMES);
    assert_eq!(reason(&decisions[0]), "needs 3 workers, the fleet has 2");
    assert_eq!(reason(&decisions[1]), "waits for 2 workers to be free");
    assert_eq!(reason(&decisions[2]), "waits its turn: an earlier job waits for 2 workers");
    let nothing = schedule(&[job(1, 1, 1)], &[], &[], TIMES);
    assert_eq!(reason(&nothing[0]), "needs a worker, the fleet has no workers");
    let taking =
        schedule(&[job(1, 2, 2)], &[gang(9, 1, 2, &[1, 2])], &[worker(1, &[]), worker(2, &[])], TIMES);
    assert_eq!(reason(&taking[0]), "waits for 2 workers to be free", "one is the other's minimum");
    let taking =
        schedule(&[job(1, 1, 2)], &[gang(9, 1, 2, &[1, 2])], &[worker(1, &[]), worker(2, &[])], TIMES);
    assert_eq!(reason(&taking[0]), "waits for a worker that running jobs give back");
}

#[test]
fn a_gang_keeps_to_one_kind_where_it_can_and_to_the_kind_it_had() {
    let of = |n, kind: &str| Worker { kind: kind.into(), ..worker(n, &[0]) };
    let fleet = [of(1, "a"), of(2, "b"), of(3, "b")];
    let kind_of = |d: &Decision| match d {
        Decision::Start { places, .. } => places.iter().map(|p| p.worker.0.as_u128()).collect::<Vec<_>>(),
        _ => vec![],
    };
    assert_eq!(kind_of(&schedule(&[job(1, 2, 2)], &[], &fleet, TIMES)[0]), [2, 3]);
    let had_a = Queued { kind: Some("a".into()), ..job(1, 1, 1) };
    assert_eq!(kind_of(&schedule(&[had_a], &[], &fleet, TIMES)[0]), [1]);
}

#[test]
fn the_higher_priority_goes_first() {
    let urgent = Queued { priority: 5, ..job(2, 1, 1) };
    let decisions = schedule(&[job(1, 1, 1), urgent], &[], &[worker(1, &[0])], TIMES);
    assert!(matches!(&decisions[0], Decision::Start { job, .. } if job.0.as_u128() == 2));
    assert_eq!(reason(&decisions[1]), "waits for a worker to be free");
}

#[test]
fn idle_workers_join_running_jobs_up_to_their_maximum() {
    let fleet = [worker(1, &[]), worker(2, &[0]), worker(3, &[0]), worker(4, &[0])];
    assert_eq!(growth(&schedule(&[], &[gang(9, 1, 3, &[1])], &fleet, TIMES)), [(9, vec![2, 3])]);
    // Equal gangs share; a smaller one comes first.
    let gangs = [gang(8, 1, 4, &[1]), gang(9, 1, 4, &[5])];
    assert_eq!(growth(&schedule(&[], &gangs, &fleet, TIMES)), [(8, vec![2, 4]), (9, vec![3])]);
    // The urgent one comes before all.
    let urgent = Gang { priority: 1, ..gang(9, 1, 3, &[5, 6]) };
    assert_eq!(
        growth(&schedule(&[], &[gang(8, 1, 4, &[1]), urgent], &fleet, TIMES)),
        [(8, vec![3, 4]), (9, vec![2])]
    );
}

#[test]
fn who_may_not_join_does_not() {
    let one = [worker(1, &[0])];
    let none: Vec<(u128, Vec<u128>)> = vec![];
    let base = || gang(9, 1, 3, &[7]);
    let barred = Gang { barred: BTreeSet::from([one[0].worker]), ..base() };
    assert_eq!(growth(&schedule(&[], &[barred], &one, TIMES)), none, "barred");
    for standing in [Standing::Loading, Standing::Ending] {
        assert_eq!(growth(&schedule(&[], &[Gang { standing, ..base() }], &one, TIMES)), none, "{standing:?}");
    }
    let other_kind = Gang { kinds: vec!["other".into()], ..base() };
    assert_eq!(growth(&schedule(&[], &[other_kind], &one, TIMES)), none, "another kind");
    let new = [Worker { idle: Duration::ZERO, ..worker(1, &[0]) }];
    assert_eq!(growth(&schedule(&[], &[base()], &new, TIMES)), none, "idle for no time yet");
    let two_slots = [worker(7, &[1])];
    assert_eq!(growth(&schedule(&[], &[base()], &two_slots, TIMES)), none, "a member already");
    // A job waits that the fleet could hold: the idle worker is kept for it.
    let fleet = [worker(1, &[0]), worker(7, &[])];
    assert_eq!(growth(&schedule(&[job(1, 2, 2)], &[base()], &fleet, TIMES)), none);
    // One that it could not hold is not waited for.
    assert_eq!(growth(&schedule(&[job(1, 3, 3)], &[base()], &fleet, TIMES)), [(9, vec![1])]);
}

#[test]
fn a_waiting_job_takes_what_running_ones_hold_above_their_minimum() {
    let busy = [worker(1, &[]), worker(2, &[]), worker(3, &[]), worker(4, &[])];
    let gangs = [gang(8, 1, 4, &[1, 2, 3, 4])];
    assert_eq!(shrinkage(&schedule(&[job(1, 2, 2)], &gangs, &busy, TIMES)), [(8, vec![4, 3], 1)]);
    // Two waiting jobs are both served.
    let two = [job(1, 1, 1), job(2, 2, 2)];
    assert_eq!(shrinkage(&schedule(&two, &gangs, &busy, TIMES)), [(8, vec![4], 1), (8, vec![3, 2], 2)]);
    // The lowest priority first, and never from a higher one.
    let gangs = [Gang { priority: -1, ..gang(7, 1, 2, &[1, 2]) }, gang(8, 1, 2, &[3, 4])];
    assert_eq!(shrinkage(&schedule(&[job(1, 1, 1)], &gangs, &busy, TIMES)), [(7, vec![2], 1)]);
    let low = Queued { priority: -2, ..job(1, 1, 1) };
    assert_eq!(shrinkage(&schedule(&[low], &gangs, &busy, TIMES)), []);
}

#[test]
fn what_is_about_to_come_free_is_counted_and_nothing_is_taken_in_vain() {
    let busy = [worker(1, &[]), worker(2, &[]), worker(3, &[])];
    let mut asked = gang(8, 1, 3, &[1, 2, 3]);
    asked.seats[2].leaving = true;
    let decisions = schedule(&[job(1, 1, 1)], &[asked.clone()], &busy, TIMES);
    assert_eq!(
        (shrinkage(&decisions), reason(&decisions[0])),
        (vec![], "waits for a worker that running jobs give back".to_owned())
    );
    assert_eq!(shrinkage(&schedule(&[job(1, 2, 2)], &[asked], &busy, TIMES)), [(8, vec![2], 1)]);
    let ending = Gang { standing: Standing::Ending, ..gang(8, 1, 2, &[1, 2]) };
    assert_eq!(shrinkage(&schedule(&[job(1, 2, 2)], &[ending, gang(9, 1, 1, &[3])], &busy, TIMES)), []);
    // Three would be needed, two could be had.
    assert_eq!(shrinkage(&schedule(&[job(1, 3, 3)], &[gang(8, 1, 3, &[1, 2, 3])], &busy, TIMES)), []);
}

#[test]
fn what_has_just_joined_is_not_taken_for_an_equal() {
    let busy = [worker(1, &[]), worker(2, &[])];
    let mut grown = gang(8, 1, 2, &[1, 2]);
    grown.seats[1].joined = Some(Duration::from_secs(1));
    assert_eq!(shrinkage(&schedule(&[job(1, 1, 1)], &[grown.clone()], &busy, TIMES)), []);
    let urgent = Queued { priority: 1, ..job(1, 1, 1) };
    assert_eq!(shrinkage(&schedule(&[urgent], &[grown.clone()], &busy, TIMES)), [(8, vec![2], 1)]);
    grown.seats[1].joined = Some(SETTLE);
    assert_eq!(shrinkage(&schedule(&[job(1, 1, 1)], &[grown], &busy, TIMES)), [(8, vec![2], 1)]);
}
