//! What holds for every decision, whatever the queue, the gangs and the fleet.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn queues() -> impl Strategy<Value = Vec<Queued>> {
    let one = (1usize..5, 0usize..4, 0u64..600, -1i32..2);
    prop::collection::vec(one, 0..8).prop_map(|jobs| {
        let build = |(i, (min, more, waited, priority)): (usize, (usize, usize, u64, i32))| Queued {
            waited: Duration::from_millis(waited),
            priority,
            ..job(i as u128, min, min + more)
        };
        jobs.into_iter().enumerate().map(build).collect()
    })
}

/// A fleet, and gangs on it: each slot of a worker is free or held by one gang, which holds no other of that worker.
fn worlds() -> impl Strategy<Value = (Vec<Gang>, Vec<Worker>)> {
    let slot = prop::option::of((0usize..3, any::<bool>(), prop::option::of(0u64..20)));
    let one = (prop::collection::vec(slot, 0..3), 0u8..2, 0u64..600);
    let terms = (1usize..4, 0usize..4, -1i32..2, 0u8..6, any::<bool>());
    (prop::collection::vec(one, 0..8), prop::collection::vec(terms, 3)).prop_map(|(workers, terms)| {
        let standing = |n| match n {
            0 => Standing::Loading,
            1 => Standing::Ending,
            _ => Standing::Training,
        };
        let mut gangs: Vec<Gang> = terms
            .into_iter()
            .enumerate()
            .map(|(i, (min, more, priority, n, both))| Gang {
                priority,
                standing: standing(n),
                kinds: if both { vec!["kind 0".into(), "kind 1".into()] } else { vec!["kind 0".into()] },
                ..gang(50 + i as u128, min, min + more, &[])
            })
            .collect();
        let mut fleet = Vec::new();
        for (i, (slots, kind, idle)) in workers.into_iter().enumerate() {
            let mut one = Worker {
                kind: format!("kind {kind}").into(),
                idle: Duration::from_millis(idle),
                ..worker(100 + i as u128, &[])
            };
            for (slot, held) in slots.into_iter().enumerate() {
                let free = u32::try_from(slot).expect("few");
                let Some((g, leaving, joined)) = held else {
                    one.free.push(free);
                    continue;
                };
                let seats = &mut gangs[g].seats;
                if seats.iter().any(|seat| seat.worker == one.worker) {
                    one.free.push(free);
                    continue;
                }
                let place = u32::try_from(seats.len()).expect("few") + 1;
                seats.push(Seat {
                    place,
                    worker: one.worker,
                    leaving,
                    joined: joined.map(Duration::from_secs),
                });
            }
            fleet.push(one);
        }
        for gang in &mut gangs {
            gang.barred = fleet.iter().map(|w| w.worker).filter(|w| w.0.as_u128() % 5 == 0).collect();
        }
        (gangs, fleet)
    })
}

/// What becomes of a queued job.
fn of(decisions: &[Decision], queued: JobId) -> &Decision {
    let about = |d: &&Decision| match d {
        Decision::Start { job, .. } | Decision::Wait { job, .. } => *job == queued,
        _ => false,
    };
    let mut about = decisions.iter().filter(about);
    let decision = about.next().expect("a decision for every queued job");
    assert!(about.next().is_none(), "one decision for every queued job");
    decision
}

fn by_priority(queue: &[Queued]) -> Vec<&Queued> {
    let mut sorted: Vec<&Queued> = queue.iter().collect();
    sorted.sort_by_key(|job| std::cmp::Reverse(job.priority));
    sorted
}

proptest! {
    #[test]
    fn starts_are_whole_and_in_order_and_nothing_is_given_twice(queue in queues(), (gangs, fleet) in worlds()) {
        let decisions = schedule(&queue, &gangs, &fleet, TIMES);
        prop_assert_eq!(&decisions, &schedule(&queue, &gangs, &fleet, TIMES), "same inputs, same decisions");
        let offered: HashSet<Place> = fleet.iter()
            .flat_map(|w| w.free.iter().map(|slot| Place { worker: w.worker, slot: *slot })).collect();
        let mut used = HashSet::new();
        let mut waits_for_free = false;
        for job in by_priority(&queue) {
            match of(&decisions, job.job) {
                Decision::Start { places, .. } => {
                    prop_assert!(places.len() >= job.min && places.len() <= job.max, "never a partial gang");
                    // On another slot of the workers that are kept for the first one nobody delays it.
                    let spare = fleet.iter().any(|worker| worker.free.len() > 1);
                    prop_assert!(!waits_for_free || spare, "nobody overtakes one that waits for free workers");
                }
                Decision::Wait { reason, .. } => {
                    waits_for_free |= job.min <= fleet.len() && *reason != Reason::Moment;
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        for decision in &decisions {
            let (Decision::Start { places, .. } | Decision::Grow { places, .. }) = decision else { continue };
            let workers: HashSet<_> = places.iter().map(|p| p.worker).collect();
            prop_assert_eq!(workers.len(), places.len(), "each member on another worker");
            for place in places {
                prop_assert!(offered.contains(place), "only what is free");
                prop_assert!(used.insert(*place), "nothing twice");
            }
        }
    }

    /// The first job that the fleet could hold starts as soon as enough workers are free and it has waited.
    #[test]
    fn the_head_of_the_queue_is_never_starved(queue in queues(), (gangs, fleet) in worlds()) {
        let queue: Vec<_> = queue.into_iter().map(|q| Queued { waited: GATHER, ..q }).collect();
        let decisions = schedule(&queue, &gangs, &fleet, TIMES);
        let free = fleet.iter().filter(|w| !w.free.is_empty()).count();
        let sorted = by_priority(&queue);
        if let Some(i) = sorted.iter().position(|q| q.min <= fleet.len()) {
            let starts = matches!(of(&decisions, sorted[i].job), Decision::Start { .. });
            prop_assert_eq!(starts, sorted[i].min <= free);
        }
    }

    /// Workers join only training gangs of their kind with room for them, and only when no queued job could be served.
    #[test]
    fn growth_has_room_and_delays_nobody(queue in queues(), (gangs, fleet) in worlds()) {
        let decisions = schedule(&queue, &gangs, &fleet, TIMES);
        for (id, joining) in growth(&decisions) {
            let gang = gangs.iter().find(|gang| gang.job.0.as_u128() == id).expect("a gang");
            prop_assert_eq!(gang.standing, Standing::Training);
            prop_assert!(gang.seats.len() + joining.len() <= gang.max, "never over its maximum");
            for worker in joining {
                let worker = fleet.iter().find(|w| w.worker.0.as_u128() == worker).expect("a worker");
                prop_assert!(gang.kinds.contains(&worker.kind) && worker.idle >= GATHER);
                prop_assert!(!gang.barred.contains(&worker.worker));
                prop_assert!(gang.seats.iter().all(|seat| seat.worker != worker.worker));
            }
            for job in &queue {
                let waits = matches!(of(&decisions, job.job), Decision::Wait { .. });
                prop_assert!(!waits || job.min > fleet.len(), "a job that the fleet could hold waits");
            }
            prop_assert_eq!(shrinkage(&decisions), vec![], "nobody grows while somebody gives back");
        }
    }

    /// Gangs keep their minimum; workers are taken for no lower priority, not in vain, and no more than are needed.
    #[test]
    fn taking_is_bounded(queue in queues(), (gangs, fleet) in worlds()) {
        let decisions = schedule(&queue, &gangs, &fleet, TIMES);
        let mut left: HashMap<u128, usize> = HashMap::new();
        let mut given: HashMap<u128, HashSet<WorkerId>> = HashMap::new();
        for (id, places, for_job) in shrinkage(&decisions) {
            let gang = gangs.iter().find(|gang| gang.job.0.as_u128() == id).expect("a gang");
            let job = queue.iter().find(|job| job.job.0.as_u128() == for_job).expect("a queued job");
            prop_assert!(gang.priority <= job.priority, "never from a higher priority");
            prop_assert_ne!(gang.standing, Standing::Ending);
            let staying = left.entry(id).or_insert_with(|| gang.seats.iter().filter(|s| !s.leaving).count());
            for place in places {
                let seat = gang.seats.iter().find(|seat| seat.place == place).expect("a place of the gang");
                prop_assert!(!seat.leaving, "asked once");
                prop_assert!(gang.priority < job.priority || seat.joined.is_none_or(|joined| joined >= SETTLE));
                prop_assert!(fleet.iter().any(|w| w.worker == seat.worker), "its worker takes work");
                prop_assert!(given.entry(for_job).or_default().insert(seat.worker), "a worker helps once");
                *staying -= 1;
            }
            prop_assert!(*staying >= gang.min, "never below its minimum");
        }
        for (for_job, workers) in given {
            let job = queue.iter().find(|job| job.job.0.as_u128() == for_job).expect("a queued job");
            prop_assert!(workers.len() <= job.min, "no more than needed");
            let decided = decisions.iter().find(|d| matches!(d, Decision::Wait { job: id, .. } if *id == job.job));
            prop_assert!(reason(decided.expect("it waits")).contains("give back"));
        }
    }

    /// Once everything that was asked to leave has left, the first job in the queue starts.
    #[test]
    fn what_is_taken_lets_the_taker_start(queue in queues(), (gangs, fleet) in worlds()) {
        let queue: Vec<_> = queue.into_iter().map(|q| Queued { waited: GATHER, ..q }).collect();
        let decisions = schedule(&queue, &gangs, &fleet, TIMES);
        let Some((.., first)) = shrinkage(&decisions).first().cloned() else { return Ok(()) };
        let asked: HashSet<(u128, u32)> =
            shrinkage(&decisions).into_iter().flat_map(|(id, places, _)| places.into_iter().map(move |p| (id, p))).collect();
        let (mut queue, mut gangs, mut fleet) = (queue, gangs, fleet);
        for decision in &decisions {
            let Decision::Start { job: started, places } = decision else { continue };
            queue.retain(|job| job.job != *started);
            for place in places {
                let worker = fleet.iter_mut().find(|w| w.worker == place.worker).expect("a worker");
                worker.free.retain(|slot| *slot != place.slot);
            }
        }
        for gang in &mut gangs {
            let id = gang.job.0.as_u128();
            let ends = gang.standing == Standing::Ending;
            let (gone, stay): (Vec<Seat>, Vec<Seat>) = gang.seats.iter()
                .partition(|seat| ends || seat.leaving || asked.contains(&(id, seat.place)));
            gang.seats = stay;
            for seat in gone {
                let Some(worker) = fleet.iter_mut().find(|w| w.worker == seat.worker) else { continue };
                worker.free.push(10 + u32::try_from(worker.free.len()).expect("few"));
            }
        }
        let next = schedule(&queue, &gangs, &fleet, TIMES);
        let starts = next.iter().any(|d| matches!(d, Decision::Start { job, .. } if job.0.as_u128() == first));
        prop_assert!(starts, "{next:?}");
    }
}
