//! What a simulation is judged by.

use serde_json::{Value, json};

use super::{
    load::{Job, Load},
    world::{CHECKPOINT, LOADING},
};

/// Classes of sizes, each up to so many members.
const CLASSES: [(&str, usize); 4] = [("1", 1), ("2–8", 8), ("16–64", 64), ("128–512", usize::MAX)];
/// Priorities, by name.
const PRIORITIES: [(&str, i32); 4] = [("low", -100), ("normal", 0), ("high", 100), ("urgent", 1000)];
/// Seconds of a point in the plot.
const POINT: f64 = 3600.0;
/// Seconds over which shares are compared.
const WINDOW: f64 = 6.0 * 3600.0;

/// Figures while they are gathered.
pub struct Figures {
    capacity: f64,
    weights: Vec<f64>,
    /// Worker-seconds held, and those lost by going back to the queue and starting again.
    held: f64,
    lost: f64,
    /// Jobs that ended, that run at the end, and that wait then.
    pub finished: usize,
    /// Jobs that run at the end.
    pub running: usize,
    /// Jobs that wait at the end.
    pub waiting: usize,
    preemptions: usize,
    /// Jobs that have started, for each whether it has.
    started: Vec<bool>,
    /// Class, priority and seconds of each wait.
    waits: Vec<(usize, i32, f64)>,
    /// Worker-seconds held and asked for in vain, by hour.
    points: Vec<(f64, f64)>,
    windows: Vec<Window>,
}

/// Some hours of all tenants: worker-seconds held, and seconds with work waiting.
#[derive(Clone)]
struct Window {
    held: Vec<f64>,
    behind: Vec<f64>,
}

impl Figures {
    /// Nothing yet.
    pub fn new(load: &Load) -> Self {
        let tenants = load.weights.len();
        let count = |part: f64| (load.seconds() / part).ceil().max(1.0) as usize;
        Self {
            capacity: load.seconds() * load.size.workers as f64,
            weights: load.weights.clone(),
            held: 0.0,
            lost: 0.0,
            finished: 0,
            running: 0,
            waiting: 0,
            preemptions: 0,
            started: vec![false; load.jobs.len()],
            waits: Vec::new(),
            points: vec![(0.0, 0.0); count(POINT)],
            windows: vec![Window { held: vec![0.0; tenants], behind: vec![0.0; tenants] }; count(WINDOW)],
        }
    }

    /// A job holds its workers for so long, from `now` on.
    pub fn holds(&mut self, job: &Job, seconds: f64, now: f64) {
        let held = seconds * job.size as f64;
        self.held += held;
        self.points[at(now, POINT)].0 += held;
        self.windows[at(now, WINDOW)].held[job.tenant] += held;
    }

    /// These jobs wait for so long, from `now` on.
    pub fn waits<'j>(&mut self, jobs: impl Iterator<Item = &'j Job>, seconds: f64, now: f64) {
        let window = &mut self.windows[at(now, WINDOW)];
        let mut seen = vec![false; window.behind.len()];
        let mut workers = 0;
        for job in jobs {
            workers += job.size;
            if !std::mem::replace(&mut seen[job.tenant], true) {
                window.behind[job.tenant] += seconds;
            }
        }
        self.points[at(now, POINT)].1 += workers as f64 * seconds;
    }

    /// A job starts, for the first time or again.
    pub fn starts(&mut self, number: usize, job: &Job, now: f64) {
        if std::mem::replace(&mut self.started[number], true) {
            self.lost += LOADING * job.size as f64;
        } else {
            self.waits.push((class(job.size), job.priority, now - job.submit));
        }
    }

    /// A job is sent back.
    pub fn preempts(&mut self, job: &Job) {
        self.preemptions += 1;
        self.lost += CHECKPOINT * job.size as f64;
    }

    /// A job ends.
    pub fn finishes(&mut self) {
        self.finished += 1;
    }

    /// A job waits at the end; one that never started has waited at least until now.
    pub fn still_waits(&mut self, number: usize, job: &Job, now: f64) {
        if !self.started[number] {
            self.waits.push((class(job.size), job.priority, now - job.submit));
        }
    }

    /// Worker-seconds of training, as a part of all that there are.
    pub fn utilisation(&self) -> f64 {
        (self.held - self.lost) / self.capacity
    }

    /// How equal the shares were: Jain's index over worker-seconds by weight, in each window over the tenants that had
    /// work waiting for at least half of it; the mean of the windows with two of them or more.
    pub fn fairness(&self) -> Option<f64> {
        let indices: Vec<f64> = self.windows.iter().filter_map(|window| self.jain(window)).collect();
        (!indices.is_empty()).then(|| indices.iter().sum::<f64>() / indices.len() as f64)
    }

    fn jain(&self, window: &Window) -> Option<f64> {
        let behind = (0..self.weights.len()).filter(|tenant| window.behind[*tenant] >= WINDOW / 2.0);
        let shares: Vec<f64> = behind.map(|tenant| window.held[tenant] / self.weights[tenant]).collect();
        let (sum, squares) =
            (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
        (shares.len() > 1 && squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let by = |name: &str, chosen: &dyn Fn(&(usize, i32, f64)) -> bool| {
            let mut waits: Vec<f64> =
                self.waits.iter().filter(|wait| chosen(wait)).map(|(.., seconds)| *seconds).collect();
            waits.sort_by(f64::total_cmp);
            let mean = waits.iter().sum::<f64>() / waits.len().max(1) as f64;
            let p99 = waits.get((waits.len() * 99 / 100).min(waits.len().saturating_sub(1)));
            json!({"name": name, "jobs": waits.len(), "mean_s": mean, "p99_s": p99})
        };
        let sizes = (0..).zip(CLASSES).map(|(n, (name, _))| by(name, &|(class, ..)| *class == n));
        let priorities = PRIORITIES.map(|(name, priority)| by(name, &|(_, p, _)| *p == priority));
        let points: Vec<Value> =
            self.points.iter().map(|(held, waits)| json!([held / POINT, waits / POINT])).collect();
        json!({
            "utilisation": self.utilisation(),
            "fairness": self.fairness(),
            "lost": self.lost / self.capacity,
            "preemptions": self.preemptions,
            "finished": self.finished,
            "running": self.running,
            "waiting": self.waiting,
            "all": by("all", &|_| true),
            "sizes": sizes.collect::<Vec<_>>(),
            "priorities": priorities,
            "hours": points,
        })
    }
}

fn at(now: f64, part: f64) -> usize {
    (now / part) as usize
}

fn class(size: usize) -> usize {
    CLASSES.iter().position(|(_, most)| size <= *most).unwrap_or(CLASSES.len() - 1)
}
