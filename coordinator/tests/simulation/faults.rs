//! What goes wrong, and right again, drawn from the seed.

use crate::{
    coordinator::Coordinator,
    training::Dice,
    world::{COORDINATOR, Event, Millis, World},
};

/// A fault, or its end.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A process is killed.
    Kill(usize),
    /// It is started again.
    Start(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// SIGTERM.
    Terminate(usize),
    /// Nothing gets from one to the other.
    Cut(usize, usize),
    /// It does again.
    Mend(usize, usize),
    /// The coordinator dies.
    CoordinatorDown,
    /// Another one takes over.
    CoordinatorUp,
    /// Postgres does not answer.
    DatabaseDown,
    /// It does again.
    DatabaseUp,
    /// A replica that lagged this long takes over.
    Failover(Millis),
    /// So many puts in a hundred fail, or all of them.
    StoreFails(u64),
}

/// Faults strike within this time; then everything is mended.
const STORM: Millis = 60_000;

impl World {
    /// Draws what will go wrong.
    pub fn plan_faults(&mut self) {
        let mut dice = Dice::new(crate::training::mix(self.seed, 77));
        let workers = self.workers.len() as u64;
        for _ in 0..dice.between(0, 6) {
            let (at, name, other) =
                (dice.between(1_000, STORM), dice.below(workers) as usize, dice.below(workers) as usize);
            let lasts = dice.between(200, 25_000);
            match dice.below(12) {
                0..=2 => self.strike_twice(at, lasts, Fault::Kill(name), Fault::Start(name)),
                3 | 4 => self.strike_twice(at, lasts, Fault::Freeze(name), Fault::Thaw(name)),
                5 => self.at(at, Event::Fault(Fault::Terminate(name))),
                6 | 7 => {
                    let (a, b) =
                        if name == other || dice.percent(40) { (name, COORDINATOR) } else { (name, other) };
                    let way = dice.below(3);
                    if way != 1 {
                        self.strike_twice(at, lasts, Fault::Cut(a, b), Fault::Mend(a, b));
                    }
                    if way != 2 {
                        self.strike_twice(at, lasts, Fault::Cut(b, a), Fault::Mend(b, a));
                    }
                }
                8 => self.strike_twice(at, lasts, Fault::CoordinatorDown, Fault::CoordinatorUp),
                9 => self.strike_twice(at, lasts, Fault::DatabaseDown, Fault::DatabaseUp),
                10 => {
                    self.forgets = true;
                    let lag = dice.between(1, 1_400);
                    self.at(at, Event::Fault(Fault::Failover(lag)));
                }
                _ => {
                    let percent = dice.between(30, 100);
                    self.strike_twice(at, lasts, Fault::StoreFails(percent), Fault::StoreFails(0));
                }
            }
        }
        if dice.percent(15) {
            // All at once.
            let at = dice.between(1_000, STORM);
            for name in 0..self.workers.len() {
                let (wait, lasts) = (dice.below(300), dice.between(200, 9_000));
                self.strike_twice(at + wait, lasts, Fault::Kill(name), Fault::Start(name));
            }
        }
    }

    fn strike_twice(&mut self, at: Millis, lasts: Millis, fault: Fault, end: Fault) {
        self.at(at, Event::Fault(fault));
        self.at(at + lasts, Event::Fault(end));
    }

    /// A fault strikes.
    pub fn strike(&mut self, fault: Fault) {
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Kill(name) if self.workers[name].alive => self.die(name),
            Fault::Start(name) if !self.workers[name].alive => self.start(name),
            Fault::Freeze(name) => self.workers[name].frozen = self.workers[name].alive,
            Fault::Thaw(name) => {
                self.workers[name].frozen = false;
                for event in std::mem::take(&mut self.workers[name].deferred) {
                    self.after(1, event);
                }
            }
            Fault::Terminate(name) if self.workers[name].alive && !self.workers[name].frozen => {
                self.workers[name].draining = true;
                self.leave(name);
            }
            Fault::Cut(from, to) => drop(self.cuts.insert((from, to))),
            Fault::Mend(from, to) => drop(self.cuts.remove(&(from, to))),
            Fault::CoordinatorDown => self.coordinator.up = false,
            Fault::CoordinatorUp => self.coordinator = Coordinator::new(),
            Fault::DatabaseDown => self.db_up = false,
            Fault::DatabaseUp => self.db_up = true,
            Fault::Failover(lag) => self.fail_over(lag),
            Fault::StoreFails(percent) => {
                (self.store_fails, self.store_up) = (percent, percent < 95);
            }
            Fault::Kill(_) | Fault::Start(_) | Fault::Terminate(_) => {}
        }
    }

    /// The rows are what they were a while ago.
    fn fail_over(&mut self, lag: Millis) {
        let since = self.now.saturating_sub(lag);
        let then = self.history.iter().find(|(at, _)| *at >= since).map(|(_, db)| db.clone());
        if let Some(mut db) = then {
            self.failovers += 1;
            // A submit that is forgotten is outside the promise, and so is an end: the rest must hold.
            for (job, now) in db.jobs.iter_mut().zip(&self.db.jobs) {
                if now.state.is_terminal() {
                    job.clone_from(now);
                }
            }
            self.db = db;
            self.coordinator.lost_sight();
        }
    }
}
