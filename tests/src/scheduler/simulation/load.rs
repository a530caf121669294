//! What a fleet is asked to do: jobs of many sizes and lengths, by a daily rhythm, of tenants that differ.

use std::sync::Arc;

use lorafleet_coordinator::{
    ids::TenantId,
    scheduler::{DEVICE, Labels, Tenant},
};
use sqlx::types::Uuid;

use super::super::draws::Draws;

/// Tenants that share the fleet.
pub const TENANTS: usize = 20;
/// Devices of the fleet, and their part of it.
pub const DEVICES: [(&str, f64); 2] = [("h200", 0.6), ("a100", 0.4)];
/// Seconds of a day.
pub const DAY: f64 = 86_400.0;

/// Members of a gang, and how many jobs in a hundred have so many.
const SIZES: [(usize, f64); 10] = [
    (1, 40.0),
    (2, 14.0),
    (4, 12.0),
    (8, 16.0),
    (16, 8.0),
    (32, 5.0),
    (64, 3.0),
    (128, 1.3),
    (256, 0.5),
    (512, 0.2),
];
/// What jobs ask of their workers' device; more than the number of devices: anything.
const SELECTORS: [(usize, f64); 3] = [(2, 75.0), (0, 17.0), (1, 8.0)];
/// Lengths: most are log-normal, some of a Pareto tail.
const MEDIAN: f64 = 40.0 * 60.0;
const SIGMA: f64 = 1.3;
const TAIL: (f64, f64, f64) = (0.03, 4.0 * 3600.0, 1.5);
const SHORTEST: f64 = 60.0;
const LONGEST: f64 = 2.0 * DAY;

/// How large it all is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Days.
    pub days: f64,
    /// Workers.
    pub workers: usize,
    /// Worker-seconds asked for, as a part of what the fleet has.
    pub load: f64,
    /// What everything is drawn from.
    pub seed: u64,
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    /// Second of its submission.
    pub submit: f64,
    /// Its tenant's number.
    pub tenant: usize,
    /// Its priority.
    pub priority: i32,
    /// Workers that it needs, no more and no less.
    pub size: usize,
    /// The device that it asks for.
    pub device: Option<usize>,
    /// Seconds that it trains.
    pub run: f64,
    /// What it says of that beforehand.
    pub estimate: Option<f64>,
}

/// Jobs by time of submission, and whose they are.
#[derive(Clone, Debug)]
pub struct Load {
    /// How large it all is.
    pub size: Size,
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Weights of the tenants.
    pub weights: Vec<f64>,
    selectors: Vec<Arc<Labels>>,
}

impl Load {
    /// A load of this size.
    pub fn new(size: Size) -> Self {
        let mut draws = Draws::new(size.seed);
        let weights: Vec<f64> = (0..TENANTS).map(|n| [1.0, 1.0, 2.0, 4.0][n % 4]).collect();
        // What they want is not what they are due: some want less than their share, some much more.
        let demand: Vec<(usize, f64)> =
            weights.iter().map(|weight| weight * draws.log_normal(1.0, 0.7)).enumerate().collect();
        let sizes: Vec<(usize, f64)> =
            SIZES.into_iter().filter(|(members, _)| *members <= (size.workers / 16).max(1)).collect();
        let mut wanted = size.load * size.workers as f64 * size.days * DAY;
        let mut jobs = Vec::new();
        while wanted > 0.0 {
            let job = job(&mut draws, &demand, &sizes, size.days);
            wanted -= job.run * job.size as f64;
            jobs.push(job);
        }
        jobs.sort_by(|a: &Job, b: &Job| a.submit.total_cmp(&b.submit));
        let selector = |device: &str| Arc::new([(DEVICE, device)].into_iter().collect::<Labels>());
        let mut selectors: Vec<Arc<Labels>> = DEVICES.iter().map(|(device, _)| selector(device)).collect();
        selectors.push(Labels::none());
        Self { size, jobs, weights, selectors }
    }

    /// The labels that a job asks for.
    pub fn selector(&self, job: &Job) -> Arc<Labels> {
        self.selectors[job.device.unwrap_or(DEVICES.len())].clone()
    }

    /// Seconds that it lasts.
    pub fn seconds(&self) -> f64 {
        self.size.days * DAY
    }
}

/// A tenant that has used so much.
pub fn tenant(n: usize, weight: f64, used: f64) -> Tenant {
    Tenant { id: tenant_id(n), weight, used, max_workers: None }
}

/// The id of a tenant.
pub fn tenant_id(n: usize) -> TenantId {
    TenantId(Uuid::from_u128(3 << 64 | n as u128))
}

fn job(draws: &mut Draws, demand: &[(usize, f64)], sizes: &[(usize, f64)], days: f64) -> Job {
    let tenant = *draws.weighted(demand);
    let (tailed, from, alpha) = TAIL;
    let run = if draws.chance(tailed) {
        from * (1.0 - draws.unit()).powf(-1.0 / alpha)
    } else {
        draws.log_normal(MEDIAN, SIGMA)
    };
    let run = run.clamp(SHORTEST, LONGEST);
    let device = *draws.weighted(&SELECTORS);
    Job {
        submit: moment(draws, days),
        tenant,
        priority: priority(draws, tenant),
        size: *draws.weighted(sizes),
        device: (device < DEVICES.len()).then_some(device),
        run,
        estimate: draws.chance(0.8).then(|| run * draws.log_normal(1.0, 0.4)),
    }
}

/// A second at which a job comes: three times as many by day as by night.
fn moment(draws: &mut Draws, days: f64) -> f64 {
    loop {
        let at = draws.unit() * days;
        let rate = 1.0 - 0.5 * (std::f64::consts::TAU * at).cos();
        if draws.unit() * 1.5 < rate {
            return at * DAY;
        }
    }
}

/// Every fifth tenant holds most of its work for important.
fn priority(draws: &mut Draws, tenant: usize) -> i32 {
    let usual = [(-100, 20.0), (0, 65.0), (100, 13.0), (1000, 2.0)];
    let important = [(-100, 5.0), (0, 35.0), (100, 58.0), (1000, 2.0)];
    *draws.weighted(if tenant % 5 == 4 { &important } else { &usual })
}
