//! Shares, quotas, selectors, bases and ageing, by example.

use super::*;

fn tenant(n: u128, weight: f64, used: f64) -> Tenant {
    Tenant { id: TenantId(Uuid::from_u128(n)), weight, used, max_workers: None }
}

fn of(tenant: &Tenant, job: Queued) -> Queued {
    Queued { tenant: tenant.id, ..job }
}

fn decide(queue: Vec<Queued>, gangs: &[Gang], fleet: &[Worker], tenants: &[Tenant]) -> Vec<Decision> {
    super::super::schedule(&queue.into(), gangs, fleet, tenants, TIMES)
}

fn started(decisions: &[Decision]) -> Vec<u128> {
    let start = |d: &Decision| match d {
        Decision::Start { job, .. } => Some(job.0.as_u128()),
        _ => None,
    };
    decisions.iter().filter_map(start).collect()
}

fn on(decisions: &[Decision]) -> Vec<u128> {
    let places = |d: &Decision| match d {
        Decision::Start { places, .. } => places.iter().map(|place| place.worker.0.as_u128()).collect(),
        _ => Vec::new(),
    };
    decisions.iter().flat_map(places).collect()
}

fn labels(pairs: &[(&str, &str)]) -> std::sync::Arc<Labels> {
    std::sync::Arc::new(pairs.iter().copied().collect())
}

#[test]
fn whoever_had_least_of_its_share_goes_first() {
    let (a, b) = (tenant(1, 1.0, 5000.0), tenant(2, 1.0, 1000.0));
    let queue =
        || vec![of(&a, job(1, 1, 1)), of(&a, job(2, 1, 1)), of(&b, job(3, 1, 1)), of(&b, job(4, 1, 1))];
    let two = [worker(1, &[0]), worker(2, &[0])];
    assert_eq!(started(&decide(queue(), &[], &two, &[a, b])), [3, 4]);
    // Six times the weight: less of its share.
    let heavy = Tenant { weight: 6.0, ..a };
    assert_eq!(started(&decide(queue(), &[], &two, &[heavy, b])), [1, 2]);
    // What is given in this decision counts, and so does what runs.
    let (a, b) = (Tenant { used: 0.0, ..a }, Tenant { used: 0.0, ..b });
    assert_eq!(started(&decide(queue(), &[], &two, &[a, b])), [1, 3]);
    let running = Gang { tenant: a.id, ..gang(9, 1, 1, &[7]) };
    assert_eq!(started(&decide(queue(), &[running], &two, &[a, b])), [3, 1]);
}

#[test]
fn a_tenant_runs_no_more_than_it_may() {
    let a = Tenant { max_workers: Some(3), ..tenant(1, 1.0, 0.0) };
    let fleet = [worker(1, &[0]), worker(2, &[0]), worker(3, &[0]), worker(4, &[0])];
    let running = Gang { tenant: a.id, ..gang(9, 1, 4, &[7]) };
    let queue = vec![of(&a, job(1, 3, 3)), of(&a, job(2, 1, 4))];
    let decisions = decide(queue, std::slice::from_ref(&running), &fleet, &[a]);
    assert_eq!(sizes(&decisions), [2, 0], "a smaller job has room, up to the limit");
    assert_eq!(reason(&decisions[1]), "needs 3 workers, its tenant may run 3 and runs 1");
    assert_eq!(growth(&decisions), [], "nor by growth");
    assert_eq!(growth(&decide(vec![], &[running], &fleet, &[a])), [(9, vec![1, 2])]);
}

#[test]
fn workers_have_the_labels_that_a_job_asks_for() {
    let zone = |n, zone: &str| Worker { labels: labels(&[("zone", zone)]), ..worker(n, &[0]) };
    let fleet = [zone(1, "a"), zone(2, "b"), zone(3, "b")];
    let select = |n, min, zone: &str| Queued { selector: labels(&[("zone", zone)]), ..job(n, min, min) };
    let decisions = decide(vec![select(1, 2, "a"), select(2, 2, "b"), select(3, 1, "c")], &[], &fleet, &[]);
    assert_eq!((started(&decisions), on(&decisions)), (vec![2], vec![2, 3]));
    assert_eq!(reason(&decisions[1]), "needs 2 workers with zone=a, the fleet has 1");
    assert_eq!(reason(&decisions[2]), "needs a worker with zone=c, the fleet has none");
    // A running job grows, and takes, only what it asks for.
    let gang = Gang { selector: labels(&[("zone", "b")]), ..gang(9, 1, 4, &[7]) };
    assert_eq!(growth(&decide(vec![], &[gang], &fleet, &[])), [(9, vec![2, 3])]);
    // One that waits for other workers is in nobody's way.
    let waits = Queued { selector: labels(&[("zone", "a")]), ..job(1, 1, 1) };
    let busy = [Worker { free: vec![], ..zone(1, "a") }, zone(2, "b")];
    assert_eq!(on(&decide(vec![waits, job(2, 1, 1)], &[], &busy, &[])), [2]);
    let waits = Queued { selector: labels(&[("zone", "a")]), ..job(1, 1, 1) };
    assert_eq!(on(&decide(vec![waits, select(2, 1, "b")], &[], &busy, &[])), [2]);
}

#[test]
fn places_are_where_the_base_is_and_on_equal_devices() {
    let holds = |n, kind: &str, device: &str, bases: &[&str]| Worker {
        kind: kind.into(),
        device: device.into(),
        bases: bases.iter().map(|base| (*base).into()).collect(),
        ..worker(n, &[0])
    };
    let with_base = |n, min| Queued { base: Some("x".into()), ..job(n, min, min) };
    let fleet =
        [holds(1, "k", "h200", &["y"]), holds(2, "k", "h200", &["y", "x"]), holds(3, "k", "h200", &["x"])];
    assert_eq!(on(&decide(vec![with_base(1, 1)], &[], &fleet, &[])), [2]);
    assert_eq!(on(&decide(vec![with_base(1, 3)], &[], &fleet, &[])), [2, 3, 1]);
    // All of one kind comes before the base; one device of two builds before two devices.
    let fleet = [
        holds(1, "old", "h200", &["x"]),
        holds(2, "cpu", "cpu", &["x"]),
        holds(3, "new", "h200", &[]),
        holds(4, "new", "h200", &[]),
    ];
    assert_eq!(on(&decide(vec![with_base(1, 2)], &[], &fleet, &[])), [3, 4]);
    let mut three = on(&decide(vec![with_base(1, 3)], &[], &fleet, &[]));
    three.sort_unstable();
    assert_eq!(three, [1, 3, 4]);
}

#[test]
fn waiting_raises_a_job_but_no_flood() {
    let one = [worker(1, &[0])];
    let old = |n, classes: u32| Queued { age: AGEING * classes, ..job(n, 1, 1) };
    let high = || Queued { priority: 100, ..job(2, 1, 1) };
    assert_eq!(started(&decide(vec![high(), old(1, 1)], &[], &one, &[])), [1], "as high, and older");
    assert_eq!(started(&decide(vec![high(), Queued { age: AGEING / 2, ..old(1, 0) }], &[], &one, &[])), [2]);
    // A tenant above its share gets nobody ahead of others by age: only its own jobs.
    let (flood, other) = (tenant(1, 1.0, 9000.0), tenant(2, 1.0, 0.0));
    let queue = vec![of(&flood, old(1, 3)), of(&other, job(2, 1, 1))];
    assert_eq!(started(&decide(queue, &[], &one, &[flood, other])), [2]);
    let queue = vec![of(&other, old(1, 3)), of(&flood, high())];
    assert_eq!(started(&decide(queue, &[], &one, &[flood, other])), [1]);
}
