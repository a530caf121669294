//! A large fleet and a long queue at one instant, for the scheduler to decide over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lorafleet_coordinator::{
    ids::{JobId, TenantId, WorkerId},
    scheduler::{Gang, Labels, Queued, Seat, Standing, Tenant, Worker},
};
use sqlx::types::Uuid;

use super::draws::Draws;

/// Members of gangs, and how often.
const SIZES: [(usize, f64); 10] = [
    (1, 50.0),
    (2, 14.0),
    (4, 12.0),
    (8, 14.0),
    (16, 5.0),
    (32, 3.0),
    (64, 1.5),
    (128, 0.6),
    (256, 0.2),
    (512, 0.05),
];
/// Priority classes, and how often.
const PRIORITIES: [(i32, f64); 4] = [(-100, 20.0), (0, 60.0), (100, 18.0), (1000, 2.0)];
const TENANTS: usize = 20;
const BASES: usize = 40;
const MINUTE: Duration = Duration::from_secs(60);

/// What a fleet is about when it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// No worker is free, and nothing may be taken.
    Full,
    /// Every worker is free.
    Empty,
    /// A fifth of the workers are free, and the first job needs more.
    Blocked,
    /// No worker is free, but running jobs may be sent back for more urgent ones.
    Preemption,
    /// No worker is free, but half of the running jobs hold more than they need.
    Shrinking,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Full, Self::Empty, Self::Blocked, Self::Preemption, Self::Shrinking];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Empty => "empty",
            Self::Blocked => "blocked",
            Self::Preemption => "preemption",
            Self::Shrinking => "shrinking",
        }
    }

    fn busy(self) -> f64 {
        match self {
            Self::Empty => 0.0,
            Self::Blocked => 0.8,
            Self::Full | Self::Preemption | Self::Shrinking => 1.0,
        }
    }
}

/// What a decision goes by.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Jobs that wait, the oldest first.
    pub queue: Vec<Queued>,
    /// Jobs that run.
    pub gangs: Vec<Gang>,
    /// All workers.
    pub fleet: Vec<Worker>,
    /// Whose the jobs are.
    pub tenants: Vec<Tenant>,
}

/// Names that jobs and workers share.
struct Names {
    kinds: Vec<(Arc<str>, Arc<str>)>,
    labels: Vec<Vec<Arc<Labels>>>,
    selectors: Vec<(Arc<Labels>, f64)>,
    bases: Vec<Arc<str>>,
}

impl Scene {
    /// A fleet of so many workers, and so many jobs in the queue.
    pub fn new(case: Case, jobs: usize, workers: usize, seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let names = Names::new();
        let tenants = (0..TENANTS).map(|n| tenant(n, &mut draws)).collect();
        let mut fleet: Vec<Worker> = (0..workers).map(|n| names.worker(n, &mut draws)).collect();
        let gangs = names.gangs(case, &mut fleet, &mut draws);
        let mut queue: Vec<Queued> = (0..jobs).map(|n| names.job(case, n, jobs, &mut draws)).collect();
        if case == Case::Blocked && !queue.is_empty() {
            queue[0] = Queued {
                min: workers / 2,
                max: workers / 2,
                priority: 2000,
                selector: Labels::none(),
                ..queue[0].clone()
            };
        }
        Self { queue, gangs, fleet, tenants }
    }
}

impl Names {
    fn new() -> Self {
        let zones = ["a", "b", "c"];
        let kinds = [("h200 1", "h200"), ("h200 2", "h200"), ("a100 1", "a100")];
        let labels = |device: &str, zone: &str| {
            Arc::new([("device", device), ("zone", zone)].into_iter().collect::<Labels>())
        };
        let selector = |name: &str, value: &str| Arc::new([(name, value)].into_iter().collect::<Labels>());
        Self {
            kinds: kinds.map(|(kind, device)| (kind.into(), device.into())).to_vec(),
            labels: kinds.iter().map(|(_, device)| zones.map(|zone| labels(device, zone)).to_vec()).collect(),
            selectors: vec![
                (Labels::none(), 70.0),
                (selector("device", "h200"), 12.0),
                (selector("device", "a100"), 8.0),
                (selector("zone", "a"), 5.0),
                (selector("zone", "b"), 4.0),
                (selector("zone", "nowhere"), 1.0),
            ],
            bases: (0..BASES).map(|n| format!("digest {n}").into()).collect(),
        }
    }

    fn worker(&self, n: usize, draws: &mut Draws) -> Worker {
        let which = draws.below(self.kinds.len());
        let (kind, device) = self.kinds[which].clone();
        Worker {
            worker: WorkerId(Uuid::from_u128(n as u128)),
            kind,
            device,
            labels: self.labels[which][draws.below(3)].clone(),
            bases: (0..draws.below(4)).map(|_| self.base(draws)).collect(),
            free: vec![0],
            idle: MINUTE,
        }
    }

    /// Gangs on the workers that the case wants busy; these lose their free slot.
    fn gangs(&self, case: Case, fleet: &mut [Worker], draws: &mut Draws) -> Vec<Gang> {
        let busy = (fleet.len() as f64 * case.busy()) as usize;
        let mut gangs = Vec::new();
        let mut at = 0;
        while at < busy {
            let size = (*draws.weighted(&SIZES)).min(busy - at);
            let members = &mut fleet[at..at + size];
            members.iter_mut().for_each(|worker| worker.free.clear());
            gangs.push(self.gang(case, gangs.len(), members, draws));
            at += size;
        }
        gangs
    }

    fn gang(&self, case: Case, n: usize, members: &[Worker], draws: &mut Draws) -> Gang {
        let seat = |(place, worker): (u32, &Worker)| Seat {
            place,
            worker: worker.worker,
            leaving: false,
            joined: None,
        };
        let shrinks = case == Case::Shrinking && draws.chance(0.5);
        let size = members.len();
        let mut kinds: Vec<Arc<str>> = members.iter().map(|worker| worker.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        Gang {
            job: JobId(Uuid::from_u128(1 << 64 | n as u128)),
            tenant: draw_tenant(draws),
            priority: if case == Case::Preemption { -100 } else { *draws.weighted(&PRIORITIES) },
            min: if shrinks { size.div_ceil(2) } else { size },
            max: size,
            standing: if draws.chance(0.02) { Standing::Loading } else { Standing::Training },
            kinds,
            selector: Labels::none(),
            base: Some(self.base(draws)),
            seats: (1..).zip(members).map(seat).collect(),
            barred: BTreeSet::new(),
            age: MINUTE * 30,
            left: draws.chance(0.9).then(|| MINUTE.mul_f64(draws.log_normal(60.0, 1.5))),
            preemptible: case == Case::Preemption,
        }
    }

    fn job(&self, case: Case, n: usize, jobs: usize, draws: &mut Draws) -> Queued {
        let min = *draws.weighted(&SIZES);
        let priority = *draws.weighted(&PRIORITIES);
        Queued {
            job: JobId(Uuid::from_u128(2 << 64 | n as u128)),
            tenant: draw_tenant(draws),
            priority: if case == Case::Full { priority.min(0) } else { priority },
            min,
            max: if draws.chance(0.3) { 2 * min } else { min },
            waited: MINUTE,
            // Three hours of submissions.
            age: Duration::from_secs(3 * 3600).mul_f64((jobs - n) as f64 / jobs as f64),
            kind: None,
            selector: draws.weighted(&self.selectors).clone(),
            base: draws.chance(0.95).then(|| self.base(draws)),
            run_estimate: draws.chance(0.9).then(|| MINUTE.mul_f64(draws.log_normal(40.0, 1.5))),
        }
    }

    /// Few bases are in most jobs.
    fn base(&self, draws: &mut Draws) -> Arc<str> {
        let skewed = draws.unit() * draws.unit() * draws.unit();
        self.bases[(skewed * self.bases.len() as f64) as usize].clone()
    }
}

fn tenant(n: usize, draws: &mut Draws) -> Tenant {
    Tenant {
        id: tenant_id(n),
        weight: [1.0, 1.0, 2.0, 4.0][n % 4],
        used: draws.exponential(1e6),
        max_workers: (n % 7 == 6).then_some(400),
    }
}

/// Few tenants have most jobs.
fn draw_tenant(draws: &mut Draws) -> TenantId {
    tenant_id((draws.unit() * draws.unit() * TENANTS as f64) as usize)
}

fn tenant_id(n: usize) -> TenantId {
    TenantId(Uuid::from_u128(3 << 64 | n as u128))
}
