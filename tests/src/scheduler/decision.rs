//! How long a decision takes, by case.

use std::{hint::black_box, time::Instant};

use lorafleet_coordinator::scheduler::{Decision, Queue, Times, schedule};
use serde_json::{Map, Value, json};

use super::scene::{Case, Scene};
use crate::quantile::quantile;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Jobs in the queue.
    pub jobs: usize,
    /// Workers in the fleet.
    pub workers: usize,
    /// Decisions of each case, each over another queue and fleet.
    pub decisions: u64,
}

/// Measures each case and tells it as it is known.
pub fn measure(plan: Plan, times: Times, say: &mut dyn FnMut(&str)) -> Value {
    let mut figures = Map::new();
    for case in Case::ALL {
        let figure = one(case, plan, times);
        say(&format!("{}: {figure}", case.name()));
        figures.insert(case.name().to_owned(), figure);
    }
    Value::Object(figures)
}

fn one(case: Case, plan: Plan, times: Times) -> Value {
    let (mut decided, mut built) = (Vec::new(), Vec::new());
    let (mut sums, mut cpu) = ([0; 4], 0.0);
    for seed in 0..plan.decisions {
        let scene = Scene::new(case, plan.jobs, plan.workers, seed);
        let start = Instant::now();
        let queue: Queue = scene.queue.into();
        built.push(start.elapsed().as_secs_f64() * 1e3);
        let (start, cpu_start) = (Instant::now(), cpu_ms());
        let decisions = black_box(schedule(&queue, &scene.gangs, &scene.fleet, &scene.tenants, times));
        decided.push(start.elapsed().as_secs_f64() * 1e3);
        cpu += cpu_ms().zip(cpu_start).map_or(f64::NAN, |(end, start)| end - start);
        for (sum, n) in sums.iter_mut().zip(counts(&decisions)) {
            *sum += n;
        }
    }
    decided.sort_unstable_by(f64::total_cmp);
    built.sort_unstable_by(f64::total_cmp);
    let mean = |sum: usize| sum as f64 / plan.decisions as f64;
    json!({
        "median_ms": quantile(&decided, 0.5),
        "worst_ms": decided.last(),
        "cpu_ms": cpu / plan.decisions as f64,
        "queue_ms": quantile(&built, 0.5),
        "starts": mean(sums[0]),
        "shrinks": mean(sums[1]),
        "preemptions": mean(sums[2]),
        "grows": mean(sums[3]),
    })
}

/// Time that this thread has had of a processor: on a busy machine, less than what passes. Told by Linux only, and a
/// tick late, so that only a mean over many is of use.
fn cpu_ms() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e6)
}

/// Starts, shrinks, preemptions, growths.
fn counts(decisions: &[Decision]) -> [usize; 4] {
    let mut counts = [0; 4];
    for decision in decisions {
        match decision {
            Decision::Start { .. } => counts[0] += 1,
            Decision::Shrink { .. } => counts[1] += 1,
            Decision::Preempt { .. } => counts[2] += 1,
            Decision::Grow { .. } => counts[3] += 1,
            Decision::Wait { .. } => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Each case is what its name says, so that its time is the time of that.
    #[test]
    fn cases_are_what_they_are_named_for() {
        let times = Times::usual(Duration::from_millis(300));
        let decide = |case| {
            let Scene { queue, gangs, fleet, tenants } = Scene::new(case, 400, 300, 1);
            counts(&schedule(&queue.into(), &gangs, &fleet, &tenants, times))
        };
        assert_eq!(decide(Case::Full), [0; 4]);
        assert!(decide(Case::Empty)[0] > 10);
        assert!(decide(Case::Blocked)[0] > 0, "some overtake");
        assert!(decide(Case::Preemption)[2] > 0);
        assert!(decide(Case::Shrinking)[1] > 0);
    }
}
