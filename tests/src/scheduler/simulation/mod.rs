//! A week of a large fleet in minutes: the coordinator's own scheduler, and two simple rules on the same load.

mod figures;
mod load;
mod policy;
mod world;

use lorafleet_coordinator::scheduler::Times;
use serde_json::{Map, Value, json};

pub use self::{
    figures::Figures,
    load::{Load, Size},
    policy::Policy,
};
use self::{load::DAY, world::World};

/// Simulates each policy on the same load, and tells how far it is.
pub fn simulate(size: Size, interval: f64, times: Times, say: &mut dyn FnMut(&str)) -> Value {
    let load = Load::new(size);
    say(&format!("{} jobs on {} workers in {} days", load.jobs.len(), size.workers, size.days));
    let mut figures = Map::new();
    for policy in Policy::ALL {
        figures.insert(policy.name().to_owned(), one(policy, &load, interval, times, say).to_json());
    }
    json!({
        "jobs": load.jobs.len(),
        "workers": size.workers,
        "days": size.days,
        "load": size.load,
        "seed": size.seed,
        "interval_s": interval,
        "policies": figures,
    })
}

fn one(policy: Policy, load: &Load, interval: f64, times: Times, say: &mut dyn FnMut(&str)) -> Figures {
    let mut world = World::new(load, policy.key());
    let mut half_days = 0.0;
    while world.advance(interval) {
        policy.decide(&mut world, times);
        if world.now >= half_days * DAY / 2.0 {
            let (name, day, waiting) = (policy.name(), half_days / 2.0, world.queue.len());
            let idle: usize = world.free.iter().map(std::collections::BTreeSet::len).sum();
            say(&format!("{name}, day {day:.1}: {waiting} jobs wait, {idle} workers are idle"));
            half_days += 1.0;
        }
    }
    world.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(policy: Policy, seed: u64) -> (usize, Figures) {
        let load = Load::new(Size { days: 1.0, workers: 120, load: 0.9, seed });
        let times = Times::usual(Duration::from_millis(300));
        (load.jobs.len(), one(policy, &load, 60.0, times, &mut |_| {}))
    }

    #[test]
    fn no_job_is_lost_and_no_worker_is_used_twice() {
        for policy in Policy::ALL {
            let (jobs, figures) = run(policy, 3);
            assert_eq!(figures.finished + figures.running + figures.waiting, jobs, "{policy:?}");
            assert!((0.3..=0.9).contains(&figures.utilisation()), "{policy:?}: {}", figures.utilisation());
            let fair = |jain: Option<f64>| jain.is_none_or(|jain| jain > 0.0 && jain <= 1.0 + 1e-9);
            assert!(figures.fairness().into_iter().all(fair), "{policy:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_figures() {
        let figures = |seed| run(Policy::Lorafleet, seed).1.to_json();
        assert_eq!(figures(5), figures(5));
        assert_ne!(figures(5), figures(6));
    }
}
