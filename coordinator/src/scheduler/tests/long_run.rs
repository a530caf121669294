//! What holds over a long run: shares become those of the weights, and nothing starves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A fleet of equal workers with one slot each, on which jobs run for exactly as long as they say.
struct World {
    now: f64,
    free: Vec<u128>,
    workers: usize,
    running: Vec<(f64, Gang)>,
    queue: Vec<(f64, Queued)>,
    tenants: Vec<Tenant>,
    /// Worker-seconds, by tenant, without decay.
    used: BTreeMap<TenantId, f64>,
    starts: Vec<JobId>,
    jobs: u128,
}

impl World {
    fn new(workers: usize, weights: &[f64]) -> Self {
        let tenant = |(n, weight): (u128, &f64)| Tenant {
            id: TenantId(Uuid::from_u128(n)),
            weight: *weight,
            used: 0.0,
            max_workers: None,
        };
        Self {
            now: 0.0,
            free: (0..workers as u128).collect(),
            workers,
            running: Vec::new(),
            queue: Vec::new(),
            tenants: (1..).zip(weights).map(tenant).collect(),
            used: BTreeMap::new(),
            starts: Vec::new(),
            jobs: 0,
        }
    }

    fn submit(&mut self, tenant: usize, priority: i32, min: usize, run: f64) -> JobId {
        self.jobs += 1;
        let tenant = self.tenants[tenant].id;
        let run_estimate = Some(Duration::from_secs_f64(run));
        let job = Queued { tenant, priority, run_estimate, ..job(1000 + self.jobs, min, min) };
        self.queue.push((self.now, job.clone()));
        job.job
    }

    fn schedule(&mut self) {
        let now = self.now;
        let aged = |(since, job): &(f64, Queued)| Queued {
            age: Duration::from_secs_f64(now - since),
            ..job.clone()
        };
        let queue: Vec<Queued> = self.queue.iter().map(aged).collect();
        let left = |(end, gang): &(f64, Gang)| Gang {
            left: Some(Duration::from_secs_f64(end - now)),
            ..gang.clone()
        };
        let gangs: Vec<Gang> = self.running.iter().map(left).collect();
        let fleet: Vec<Worker> = (0..self.workers as u128)
            .map(|n| worker(n, if self.free.contains(&n) { &[0] } else { &[] }))
            .collect();
        for decision in super::super::schedule(&queue.into(), &gangs, &fleet, &self.tenants, TIMES) {
            let Decision::Start { job, places } = decision else { continue };
            let at = self.queue.iter().position(|(_, queued)| queued.job == job).expect("it waits");
            let (_, queued) = self.queue.remove(at);
            let on: Vec<u128> = places.iter().map(|place| place.worker.0.as_u128()).collect();
            self.free.retain(|worker| !on.contains(worker));
            let end = now + queued.run_estimate.expect("known").as_secs_f64();
            let (tenant, priority) = (queued.tenant, queued.priority);
            self.running
                .push((end, Gang { tenant, priority, ..gang(job.0.as_u128(), on.len(), on.len(), &on) }));
            self.starts.push(job);
        }
    }

    /// To the next end of a job; uses of `half_life` ago count half.
    fn advance(&mut self, half_life: f64) {
        let next = self.running.iter().map(|(end, _)| *end).fold(f64::INFINITY, f64::min);
        let passed = next - self.now;
        for tenant in &mut self.tenants {
            let runs: usize =
                self.running.iter().filter(|(_, g)| g.tenant == tenant.id).map(|(_, g)| g.seats.len()).sum();
            tenant.used = tenant.used * 0.5f64.powf(passed / half_life) + runs as f64 * passed;
            *self.used.entry(tenant.id).or_default() += runs as f64 * passed;
        }
        self.now = next;
        let (ended, run): (Vec<_>, Vec<_>) = self.running.drain(..).partition(|(end, _)| *end <= next);
        self.running = run;
        self.free.extend(ended.iter().flat_map(|(_, gang)| gang.seats.iter().map(|s| s.worker.0.as_u128())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Tenants that always have jobs waiting get shares like their weights, whatever the sizes and lengths of their jobs.
    #[test]
    fn shares_become_those_of_the_weights(
        weights in prop::collection::vec(1u32..5, 2..4),
        kinds in prop::collection::vec((1usize..5, 60u32..900), 4),
    ) {
        let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
        let mut world = World::new(16, &weights);
        while world.now < 400_000.0 {
            for tenant in 0..weights.len() {
                let waiting = |world: &World| world.queue.iter().filter(|(_, j)| j.tenant == world.tenants[tenant].id).count();
                while waiting(&world) < 6 {
                    // Each tenant has its own mix.
                    let (min, run) = kinds[(tenant + usize::try_from(world.jobs).expect("few")) % kinds.len()];
                    world.submit(tenant, 0, min, f64::from(run * (1 + u32::try_from(tenant).expect("few"))));
                }
            }
            world.schedule();
            world.advance(86_400.0);
        }
        let total: f64 = world.used.values().sum();
        for (tenant, weight) in world.tenants.iter().zip(&weights) {
            let (share, due) = (world.used[&tenant.id] / total, weight / weights.iter().sum::<f64>());
            prop_assert!((share - due).abs() < 0.05 * due, "{share} of {due}: {weights:?}, {kinds:?}");
        }
    }

    /// A big job of low priority starts, though small ones of high priority never cease to come.
    #[test]
    fn nothing_starves(min in 1usize..9, runs in prop::collection::vec(60u32..2000, 1..6), same_tenant: bool) {
        let mut world = World::new(8, &[1.0, 1.0]);
        let big = world.submit(0, -100, min, 600.0);
        let other = usize::from(!same_tenant);
        let limit = 4.0 * AGEING.as_secs_f64() + 20.0 * 2000.0;
        while !world.starts.contains(&big) {
            prop_assert!(world.now < limit, "still waiting after {} h", world.now / 3600.0);
            while world.queue.len() < 12 {
                let run = runs[usize::try_from(world.jobs).expect("few") % runs.len()];
                world.submit(other, 100, 1, f64::from(run));
            }
            world.schedule();
            world.advance(20_000.0);
        }
    }
}
