//! A fleet in simulated time: jobs come, run for as long as they do, and end; who decides when they start is told what
//! a coordinator would know.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use lorafleet_coordinator::{
    ids::{JobId, WorkerId},
    scheduler::{Gang, Labels, Place, Seat, Standing, Tenant, Worker},
};
use sqlx::types::Uuid;

use super::{
    figures::Figures,
    load::{DEVICES, Load, tenant_id},
};

/// Seconds for which a gang loads base and data whenever it starts.
pub const LOADING: f64 = 60.0;
/// Seconds for which a gang that is sent back holds its workers, to write a checkpoint.
pub const CHECKPOINT: f64 = 20.0;

/// Jobs in the queue: those with the lowest key first, then the oldest.
pub type Line = BTreeSet<(i32, usize)>;

/// A fleet, its queue, and what became of its jobs so far.
pub struct World<'l> {
    /// What it is asked to do.
    pub load: &'l Load,
    /// Seconds since the start.
    pub now: f64,
    /// All workers, with what they have free.
    pub fleet: Vec<Worker>,
    /// Free workers by device.
    pub free: Vec<BTreeSet<usize>>,
    /// Jobs that wait.
    pub queue: Line,
    /// Jobs that hold workers, the oldest start first.
    pub gangs: Vec<Gang>,
    /// The same, as they are.
    runs: Vec<Run>,
    /// Worker-seconds that each tenant used, those of long ago counting less.
    pub used: Vec<f64>,
    /// What came of it.
    pub figures: Figures,
    /// Seconds that each job has trained.
    trained: Vec<f64>,
    arrivals: VecDeque<usize>,
    key: fn(i32) -> i32,
}

/// A job that holds workers.
#[derive(Clone, Copy, Debug)]
struct Run {
    job: usize,
    start: f64,
    /// When it gives its workers back.
    end: f64,
    /// It goes back to the queue then.
    goes_back: bool,
}

impl<'l> World<'l> {
    /// A fleet at rest; jobs wait in the order of `key`, of their priority.
    pub fn new(load: &'l Load, key: fn(i32) -> i32) -> Self {
        let workers = load.size.workers;
        let mut fleet = Vec::with_capacity(workers);
        let mut free = vec![BTreeSet::new(); DEVICES.len()];
        for n in 0..workers {
            let device = device(n, workers);
            free[device].insert(n);
            fleet.push(n);
        }
        let labels = DEVICES.map(|(device, _)| {
            let labels: Labels = [("device", device)].into_iter().collect();
            (device.into(), std::sync::Arc::new(labels))
        });
        let worker = |n: usize| {
            let (device, labels): &(std::sync::Arc<str>, _) = &labels[device(n, workers)];
            Worker {
                worker: WorkerId(Uuid::from_u128(n as u128)),
                kind: device.clone(),
                device: device.clone(),
                labels: labels.clone(),
                bases: Vec::new(),
                free: vec![0],
                idle: Duration::from_secs(60),
            }
        };
        Self {
            load,
            now: 0.0,
            fleet: fleet.into_iter().map(worker).collect(),
            free,
            queue: Line::new(),
            gangs: Vec::new(),
            runs: Vec::new(),
            used: vec![0.0; load.weights.len()],
            figures: Figures::new(load),
            trained: vec![0.0; load.jobs.len()],
            arrivals: (0..load.jobs.len()).collect(),
            key,
        }
    }

    /// Goes on to the next instant at which something has changed, `interval` from now at the earliest; false at the end.
    pub fn advance(&mut self, interval: f64) -> bool {
        let arrival = self.arrivals.front().map(|job| self.load.jobs[*job].submit);
        let end = self.runs.iter().map(|run| run.end).chain(arrival).fold(f64::INFINITY, f64::min);
        let last = self.load.seconds();
        let next = end.max(self.now + interval).min(last);
        self.pass(next);
        self.now = next;
        while let Some(job) = self.arrivals.pop_front_if(|job| self.load.jobs[*job].submit <= next) {
            self.queue.insert(((self.key)(self.load.jobs[job].priority), job));
        }
        self.end_due(next);
        next < last
    }

    /// Counts what happens until `next`.
    fn pass(&mut self, next: f64) {
        let passed = next - self.now;
        let fading = 0.5f64.powf(passed / Tenant::HALF_LIFE.as_secs_f64());
        self.used.iter_mut().for_each(|used| *used *= fading);
        let mut running = vec![0; self.used.len()];
        for run in &self.runs {
            let held = (run.end.min(next) - self.now).max(0.0);
            let job = &self.load.jobs[run.job];
            self.used[job.tenant] += held * job.size as f64;
            self.figures.holds(job, held, self.now);
            running[job.tenant] += job.size;
        }
        let mut waiting = vec![0; self.used.len()];
        for (_, job) in &self.queue {
            let job = &self.load.jobs[*job];
            waiting[job.tenant] += job.size;
        }
        self.figures.passes(&running, &waiting, passed, self.now);
    }

    /// Those whose time is over give their workers back.
    fn end_due(&mut self, now: f64) {
        let mut at = 0;
        while at < self.runs.len() {
            let run = self.runs[at];
            if run.end > now {
                at += 1;
                continue;
            }
            self.runs.remove(at);
            let gang = self.gangs.remove(at);
            for seat in gang.seats {
                let worker = seat.worker.0.as_u128() as usize;
                self.fleet[worker].free = vec![0];
                self.free[device(worker, self.fleet.len())].insert(worker);
            }
            if run.goes_back {
                self.queue.insert(((self.key)(self.load.jobs[run.job].priority), run.job));
            } else {
                self.trained[run.job] = self.load.jobs[run.job].run;
                self.figures.finishes();
            }
        }
    }

    /// A job starts on these workers.
    ///
    /// # Panics
    /// When it does not wait, or they are not free and as many as it needs: whoever decided broke a rule.
    pub fn start(&mut self, job: usize, workers: &[usize]) {
        let known = self.load.jobs[job];
        assert!(self.queue.remove(&((self.key)(known.priority), job)), "only what waits starts");
        assert_eq!(workers.len(), known.size, "a whole gang or none");
        for worker in workers {
            let device = device(*worker, self.fleet.len());
            assert!(known.device.is_none_or(|wanted| wanted == device), "only what it asked for");
            assert!(self.free[device].remove(worker), "only what is free");
            self.fleet[*worker].free.clear();
        }
        let left = known.run - self.trained[job];
        self.runs.push(Run { job, start: self.now, end: self.now + LOADING + left, goes_back: false });
        self.figures.starts(job, &known, self.now);
        let gang = self.gang(job, workers);
        self.gangs.push(gang);
    }

    fn gang(&self, job: usize, workers: &[usize]) -> Gang {
        let known = &self.load.jobs[job];
        let mut kinds: Vec<_> = workers.iter().map(|worker| self.fleet[*worker].kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        let seat = |(place, worker): (u32, &usize)| Seat {
            place,
            worker: self.fleet[*worker].worker,
            leaving: false,
            joined: None,
        };
        Gang {
            job: job_id(job),
            tenant: tenant_id(known.tenant),
            priority: known.priority,
            min: known.size,
            max: known.size,
            standing: Standing::Loading,
            kinds,
            selector: self.load.selector(known),
            base: None,
            seats: (1..).zip(workers).map(seat).collect(),
            barred: BTreeSet::new(),
            age: Duration::ZERO,
            left: None,
            preemptible: true,
        }
    }

    /// A job that trains is sent back to the queue: it keeps what it has trained.
    ///
    /// # Panics
    /// When it does not train.
    pub fn preempt(&mut self, job: usize) {
        let at = self.runs.iter().position(|run| run.job == job).expect("it runs");
        let run = &mut self.runs[at];
        assert!(!run.goes_back && self.now >= run.start + LOADING, "it trains");
        self.trained[job] += self.now - run.start - LOADING;
        (run.end, run.goes_back) = (run.end.min(self.now + CHECKPOINT), true);
        self.figures.preempts(job, &self.load.jobs[job]);
    }

    /// Brings up to date what a coordinator knows of its gangs.
    pub fn look(&mut self) {
        for (run, gang) in self.runs.iter().zip(&mut self.gangs) {
            gang.age = Duration::from_secs_f64(self.now - self.load.jobs[run.job].submit);
            gang.left = Some(Duration::from_secs_f64((run.end - self.now).max(0.0)));
            gang.standing = match run {
                Run { goes_back: true, .. } => Standing::Ending,
                Run { start, .. } if self.now < start + LOADING => Standing::Loading,
                Run { .. } => Standing::Training,
            };
        }
    }

    /// The figures at the end, those that still wait included.
    pub fn finish(mut self) -> Figures {
        let running = self.runs.iter().filter(|run| !run.goes_back).count();
        for (_, job) in &self.queue {
            self.figures.still_waits(*job, &self.load.jobs[*job], self.now);
        }
        self.figures.running = running;
        self.figures.waiting = self.queue.len() + self.runs.len() - running;
        self.figures
    }
}

/// The number of a worker's device.
fn device(worker: usize, workers: usize) -> usize {
    usize::from(worker as f64 >= DEVICES[0].1 * workers as f64)
}

/// The id of a job.
pub fn job_id(job: usize) -> JobId {
    JobId(Uuid::from_u128(job as u128))
}

/// The number of a job.
pub fn job_number(job: JobId) -> usize {
    job.0.as_u128() as usize
}

/// The numbers of places' workers.
pub fn worker_numbers(places: &[Place]) -> Vec<usize> {
    places.iter().map(|place| place.worker.0.as_u128() as usize).collect()
}
