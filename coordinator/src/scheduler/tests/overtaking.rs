//! Who overtakes a job that waits for workers, and that it is not delayed by them.

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn runs(minutes: u32, job: Queued) -> Queued {
    Queued { run_estimate: Some(MINUTE * minutes), ..job }
}

fn ends_in(minutes: u32, gang: Gang) -> Gang {
    Gang { left: Some(MINUTE * minutes), ..gang }
}

fn estimate(decision: &Decision) -> Option<u64> {
    match decision {
        Decision::Wait { estimate, .. } => estimate.map(|estimate| estimate.as_secs() / 60),
        other => panic!("it does not wait: {other:?}"),
    }
}

#[test]
fn a_job_overtakes_only_if_it_ends_in_time_or_takes_what_is_not_needed() {
    let fleet = [worker(1, &[0]), worker(2, &[0]), worker(3, &[]), worker(4, &[])];
    let gangs = [ends_in(30, gang(9, 2, 2, &[3, 4]))];
    let big = || runs(60, job(1, 3, 3));
    // Of its three workers one is free already and kept, two come in half an hour; the other free one is not needed.
    let decisions = schedule(&[big(), runs(90, job(2, 1, 1)), runs(90, job(3, 1, 1))], &gangs, &fleet, TIMES);
    assert!(matches!(decisions[0], Decision::Start { job, .. } if job.0.as_u128() == 2));
    assert_eq!(
        (reason(&decisions[1]).as_str(), estimate(&decisions[1])),
        ("waits for 3 workers to be free", Some(30))
    );
    assert_eq!(reason(&decisions[2]), "waits its turn: an earlier job waits for 3 workers");
    assert_eq!(estimate(&decisions[2]), Some(90), "after the big one, or when what overtook it has ended");
    // Both fit before half an hour.
    let short = [big(), runs(30, job(2, 1, 1)), runs(20, job(3, 1, 1))];
    assert_eq!(sizes(&schedule(&short, &gangs, &fleet, TIMES)), [1, 1, 0]);
    let wide = [big(), runs(30, job(2, 2, 2))];
    assert_eq!(sizes(&schedule(&wide, &gangs, &fleet, TIMES)), [2, 0]);
    // Nobody knows when the running job ends, so nobody knows what would be in time.
    let unknown = [gang(9, 2, 2, &[3, 4])];
    let decisions = schedule(&short, &unknown, &fleet, TIMES);
    assert_eq!((sizes(&decisions), estimate(&decisions[0])), (vec![0, 0, 0], None));
}

#[test]
fn places_and_forecasts_follow_the_queue() {
    let fleet = [worker(1, &[])];
    let gangs = [ends_in(10, gang(9, 1, 1, &[1]))];
    let queue: Vec<Queued> = (1..=4).map(|n| runs(5, job(n, 1, 1))).collect();
    let decisions = schedule(&queue, &gangs, &fleet, TIMES);
    let told = |d: &Decision| match d {
        Decision::Wait { job, position, .. } => (job.0.as_u128(), *position, estimate(d)),
        other => panic!("{other:?}"),
    };
    let told: Vec<_> = decisions.iter().map(told).collect();
    assert_eq!(told, [(1, 1, Some(10)), (2, 2, Some(15)), (3, 3, Some(20)), (4, 4, Some(25))]);
}

proptest! {
    /// At the time that the first waiting job was told, it has its workers, if everybody keeps to the estimates; and those
    /// that overtake it do not put that time off.
    #[test]
    fn overtaking_delays_no_reservation(
        gangs in prop::collection::vec((1usize..4, prop::option::weighted(0.8, 1u32..60)), 0..6),
        free in 0usize..6,
        jobs in prop::collection::vec((1usize..7, prop::option::weighted(0.8, 1u32..60)), 1..10),
    ) {
        let mut fleet: Vec<Worker> = (0..free as u128).map(|n| worker(1000 + n, &[0])).collect();
        let mut running = Vec::new();
        for (g, (size, left)) in (0u128..).zip(gangs) {
            let members: Vec<u128> = (0..size as u128).map(|n| 10 * g + n).collect();
            fleet.extend(members.iter().map(|n| worker(*n, &[])));
            running.push(Gang { left: left.map(|left| MINUTE * left), ..gang(500 + g, size, size, &members) });
        }
        let queue: Vec<Queued> = (1u128..).zip(jobs)
            .map(|(n, (min, run))| Queued { run_estimate: run.map(|run| MINUTE * run), ..job(n, min, min) }).collect();
        let decisions = schedule(&queue, &running, &fleet, TIMES);
        let first = decisions.iter().find_map(|d| match d {
            Decision::Wait { job, reason: Reason::Busy { .. }, estimate, .. } => Some((*job, *estimate)),
            _ => None,
        });
        let Some((first, at)) = first else { return Ok(()) };
        let index = queue.iter().position(|job| job.job == first).expect("it is queued");
        let alone = schedule(&queue[..=index], &running, &fleet, TIMES);
        let told = alone.iter().find_map(|d| match d {
            Decision::Wait { job, estimate, .. } if *job == first => Some(*estimate),
            _ => None,
        });
        prop_assert_eq!(told, Some(at), "the time does not depend on who comes after");
        let starts = |queued: &Queued| {
            decisions.iter().any(|d| matches!(d, Decision::Start { job, .. } if *job == queued.job))
        };
        let Some(at) = at else {
            prop_assert!(!queue[index..].iter().any(starts), "nobody knows what would be in time");
            return Ok(());
        };
        let mut there = free;
        for decision in &decisions {
            let Decision::Start { job, places } = decision else { continue };
            let run = queue.iter().find(|queued| queued.job == *job).expect("it was queued").run_estimate;
            if run.is_none_or(|run| run > at) {
                there -= places.len();
            }
        }
        there += running.iter().filter(|gang| gang.left.is_some_and(|left| left <= at)).map(|gang| gang.seats.len()).sum::<usize>();
        prop_assert!(there >= queue[index].min, "{there} workers at {at:?}: {decisions:?}");
    }
}
