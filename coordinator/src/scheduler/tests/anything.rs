//! The rules again where everything comes together: tenants with limits, selectors, bases, estimates, jobs that may be
//! sent back.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A queue, gangs, a fleet, tenants.
type World = (Vec<Queued>, Vec<Gang>, Vec<Worker>, Vec<Tenant>);

const PRIORITIES: [i32; 3] = [-100, 0, 100];

fn zone(n: usize) -> std::sync::Arc<Labels> {
    match n {
        0 => Labels::none(),
        n => std::sync::Arc::new([("zone", format!("zone {n}"))].into_iter().collect()),
    }
}

fn tenant_id(n: usize) -> TenantId {
    TenantId(Uuid::from_u128(n as u128))
}

fn worlds() -> impl Strategy<Value = World> {
    let limits = prop::collection::vec((1u32..4, 0.0..9000.0, prop::option::of(0usize..9)), 3);
    let jobs =
        prop::collection::vec((0usize..3, 0usize..3, 1usize..6, 0usize..3, 0usize..3, 0u32..12), 0..12);
    let gangs =
        prop::collection::vec((0usize..3, 0usize..3, 1usize..4, 0usize..3, 0usize..3, 0u32..12), 0..5);
    let free = prop::collection::vec((1usize..3, 1usize..3), 0..8);
    (limits, jobs, gangs, free).prop_map(|(limits, jobs, gangs, free)| {
        let tenant = |(n, (weight, used, max_workers)): (usize, (u32, f64, Option<usize>))| Tenant {
            id: tenant_id(n),
            weight: f64::from(weight),
            used,
            max_workers,
        };
        let tenants = limits.into_iter().enumerate().map(tenant).collect();
        let zones = [zone(0), zone(1), zone(2)];
        let queued = |(n, (tenant, priority, min, more, zone, hours)): (
            usize,
            (usize, usize, usize, usize, usize, u32),
        )| {
            Queued {
                tenant: tenant_id(tenant),
                priority: PRIORITIES[priority],
                selector: zones[zone].clone(),
                base: (more > 0).then(|| "base".into()),
                age: Duration::from_secs(3600) * hours,
                run_estimate: (hours % 3 > 0).then(|| Duration::from_secs(600) * hours),
                ..job(n as u128, min, min + more)
            }
        };
        let queue = jobs.into_iter().enumerate().map(queued).collect();
        let mut fleet: Vec<Worker> = Vec::new();
        let hire = |fleet: &mut Vec<Worker>, zone: usize, slots: &[u32]| {
            let n = fleet.len() as u128;
            fleet.push(Worker { labels: zones[zone].clone(), ..worker(n, slots) });
            n
        };
        let mut running = Vec::new();
        for (n, (tenant, priority, min, more, zone, hours)) in gangs.into_iter().enumerate() {
            let members: Vec<u128> =
                (0..min + more).map(|_| hire(&mut fleet, 1 + (n + zone) % 2, &[])).collect();
            running.push(Gang {
                tenant: tenant_id(tenant),
                priority: PRIORITIES[priority],
                preemptible: hours % 4 > 0,
                standing: if hours == 1 { Standing::Loading } else { Standing::Training },
                left: (hours % 3 > 0).then(|| Duration::from_secs(600) * hours),
                ..gang(500 + n as u128, min, min + more + zone, &members)
            });
        }
        for (zone, slots) in free {
            hire(&mut fleet, zone, &[0, 1][..slots]);
        }
        (queue, running, fleet, tenants)
    })
}

proptest! {
    #[test]
    fn every_rule_holds_where_all_come_together((queue, gangs, fleet, tenants) in worlds()) {
        let decide = || super::super::schedule(&queue.clone().into(), &gangs, &fleet, &tenants, TIMES);
        let decisions = decide();
        prop_assert_eq!(&decisions, &decide(), "same inputs, same decisions");
        let mut offered: HashSet<Place> = fleet.iter()
            .flat_map(|w| w.free.iter().map(|slot| Place { worker: w.worker, slot: *slot })).collect();
        let mut runs: BTreeMap<TenantId, usize> = BTreeMap::new();
        gangs.iter().for_each(|gang| *runs.entry(gang.tenant).or_default() += gang.seats.len());
        let before = runs.clone();
        let mut left: HashMap<JobId, usize> = gangs.iter().map(|gang| (gang.job, gang.seats.len())).collect();
        let (mut decided, mut positions) = (HashSet::new(), Vec::new());
        let queued = |id: &JobId| queue.iter().find(|job| job.job == *id);
        let running = |id: &JobId| gangs.iter().find(|gang| gang.job == *id).expect("a gang");
        for decision in &decisions {
            match decision {
                Decision::Start { job, places } | Decision::Grow { job, places } => {
                    let (tenant, selector) = match queued(job) {
                        Some(known) => {
                            prop_assert!(decided.insert(*job), "one decision a job");
                            prop_assert!((known.min..=known.max).contains(&places.len()), "a whole gang or none");
                            (known.tenant, &known.selector)
                        }
                        None => {
                            let gang = running(job);
                            prop_assert!(gang.seats.len() + places.len() <= gang.max);
                            (gang.tenant, &gang.selector)
                        }
                    };
                    *runs.entry(tenant).or_default() += places.len();
                    let workers: HashSet<WorkerId> = places.iter().map(|place| place.worker).collect();
                    prop_assert_eq!(workers.len(), places.len(), "each member on another worker");
                    for place in places {
                        prop_assert!(offered.remove(place), "what is free, and once");
                        let worker = fleet.iter().find(|w| w.worker == place.worker).expect("a worker");
                        prop_assert!(worker.labels.match_all(selector), "what was asked for");
                    }
                }
                Decision::Wait { job, position, .. } => {
                    prop_assert!(decided.insert(*job), "one decision a job");
                    positions.push(*position);
                }
                Decision::Shrink { job, places, for_job } => {
                    let (gang, taker) = (running(job), queued(for_job).expect("it waits"));
                    prop_assert!(gang.priority <= taker.priority);
                    let left = left.get_mut(job).expect("a gang");
                    *left -= places.len();
                    prop_assert!(*left >= gang.min, "never below its minimum");
                }
                Decision::Preempt { job, for_job } => {
                    let (gang, taker) = (running(job), queued(for_job).expect("it waits"));
                    prop_assert!(gang.priority < taker.priority, "only downward");
                    prop_assert!(gang.preemptible && gang.standing == Standing::Training);
                }
            }
        }
        prop_assert_eq!(decided.len(), queue.len(), "every job is decided on");
        prop_assert!(positions.iter().copied().eq(1..=positions.len()), "places count from 1: {:?}", positions);
        for tenant in &tenants {
            let count = |runs: &BTreeMap<TenantId, usize>| runs.get(&tenant.id).copied().unwrap_or(0);
            let may = tenant.max_workers.unwrap_or(usize::MAX).max(count(&before));
            prop_assert!(count(&runs) <= may, "no more than it may run");
        }
    }
}
