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
    workers: f64,
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
    /// How often each job was sent back.
    preemptions: Vec<u32>,
    /// Worker-seconds held, and those that there were, while a job waited.
    pressed: (f64, f64),
    /// Jobs that have started, for each whether it has.
    started: Vec<bool>,
    /// Class, priority and seconds of each wait.
    waits: Vec<(usize, i32, f64)>,
    /// Worker-seconds held and asked for in vain, by hour.
    points: Vec<(f64, f64)>,
    windows: Vec<Window>,
}

/// Some hours of all tenants: worker-seconds held, those that were their due, and seconds with work waiting.
#[derive(Clone)]
struct Window {
    held: Vec<f64>,
    due: Vec<f64>,
    behind: Vec<f64>,
}

impl Figures {
    /// Nothing yet.
    pub fn new(load: &Load) -> Self {
        let tenants = load.weights.len();
        let count = |part: f64| (load.seconds() / part).ceil().max(1.0) as usize;
        Self {
            workers: load.size.workers as f64,
            capacity: load.seconds() * load.size.workers as f64,
            weights: load.weights.clone(),
            held: 0.0,
            lost: 0.0,
            finished: 0,
            running: 0,
            waiting: 0,
            preemptions: vec![0; load.jobs.len()],
            pressed: (0.0, 0.0),
            started: vec![false; load.jobs.len()],
            waits: Vec::new(),
            points: vec![(0.0, 0.0); count(POINT)],
            windows: vec![Window::new(tenants); count(WINDOW)],
        }
    }

    /// A job holds its workers for so long, from `now` on.
    pub fn holds(&mut self, job: &Job, seconds: f64, now: f64) {
        let held = seconds * job.size as f64;
        self.held += held;
        self.points[at(now, POINT)].0 += held;
        self.windows[at(now, WINDOW)].held[job.tenant] += held;
    }

    /// For so long, from `now` on, each tenant's jobs hold so many workers, and those that wait ask for so many.
    pub fn passes(&mut self, running: &[usize], waiting: &[usize], seconds: f64, now: f64) {
        let asked: usize = waiting.iter().sum();
        self.points[at(now, POINT)].1 += asked as f64 * seconds;
        if asked > 0 {
            self.pressed.0 += running.iter().sum::<usize>() as f64 * seconds;
            self.pressed.1 += self.workers * seconds;
        }
        let demand: Vec<f64> = running.iter().zip(waiting).map(|(r, w)| (r + w) as f64).collect();
        let due = due(&demand, &self.weights, self.workers);
        let window = &mut self.windows[at(now, WINDOW)];
        for (tenant, due) in due.into_iter().enumerate() {
            window.due[tenant] += due * seconds;
            window.behind[tenant] += if waiting[tenant] > 0 { seconds } else { 0.0 };
        }
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
    pub fn preempts(&mut self, number: usize, job: &Job) {
        self.preemptions[number] += 1;
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

    /// How equal the shares were, in each window over the tenants that had work waiting for at least half of it; the
    /// mean of the windows with two of them or more. By weight, and by what was due to them.
    pub fn fairness(&self) -> [Option<f64>; 2] {
        let mean = |part: &dyn Fn(&Window, usize) -> f64| {
            let shares = |window: &Window| -> Vec<f64> {
                let behind = (0..self.weights.len()).filter(|tenant| window.behind[*tenant] >= WINDOW / 2.0);
                behind.map(|tenant| window.held[tenant] / part(window, tenant)).collect()
            };
            let indices: Vec<f64> = self.windows.iter().filter_map(|window| jain(&shares(window))).collect();
            (!indices.is_empty()).then(|| indices.iter().sum::<f64>() / indices.len() as f64)
        };
        [mean(&|_, tenant| self.weights[tenant]), mean(&|window, tenant| window.due[tenant])]
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
        let fairness = self.fairness();
        json!({
            "utilisation": self.utilisation(),
            "busy_while_jobs_wait": self.pressed.0 / self.pressed.1.max(1.0),
            "fairness_by_weight": fairness[0],
            "fairness_by_due": fairness[1],
            "lost": self.lost / self.capacity,
            "preemptions": self.preemptions.iter().sum::<u32>(),
            "preemptions_of_one": self.preemptions.iter().max(),
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

impl Window {
    fn new(tenants: usize) -> Self {
        let none = vec![0.0; tenants];
        Self { held: none.clone(), due: none.clone(), behind: none }
    }
}

/// What is due to tenants that could use so much: shares by weight, and what one cannot use goes to the others.
fn due(demand: &[f64], weights: &[f64], workers: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..demand.len()).collect();
    order.sort_by(|a, b| (demand[*a] / weights[*a]).total_cmp(&(demand[*b] / weights[*b])));
    let (mut left, mut weight) = (workers, weights.iter().sum::<f64>());
    let mut due = vec![0.0; demand.len()];
    for tenant in order {
        due[tenant] = demand[tenant].min(left * weights[tenant] / weight);
        left -= due[tenant];
        weight -= weights[tenant];
    }
    due
}

/// Jain's index of equality: 1 when all are equal, 1/n when one has everything; none for fewer than two.
fn jain(shares: &[f64]) -> Option<f64> {
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    (shares.len() > 1 && squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

fn at(now: f64, part: f64) -> usize {
    (now / part) as usize
}

fn class(size: usize) -> usize {
    CLASSES.iter().position(|(_, most)| size <= *most).unwrap_or(CLASSES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_cannot_use_is_due_to_the_others() {
        assert_eq!(due(&[10.0, 100.0, 100.0], &[1.0, 1.0, 2.0], 100.0), [10.0, 30.0, 60.0]);
        assert_eq!(
            due(&[10.0, 20.0, 0.0], &[1.0, 1.0, 1.0], 100.0),
            [10.0, 20.0, 0.0],
            "no more than is wanted"
        );
    }

    #[test]
    fn equality_is_one_and_everything_for_one_is_a_part() {
        assert_eq!(
            [jain(&[3.0, 3.0]), jain(&[4.0, 0.0, 0.0, 0.0]), jain(&[1.0])],
            [Some(1.0), Some(0.25), None]
        );
    }
}
