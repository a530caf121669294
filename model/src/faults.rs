//! The faults that the model draws from.

use crate::{Gangs, World, world::Action};

/// A fault strikes, or passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A worker's process ends at once.
    Crash(u8),
    /// It is started again, as a new process that knows nothing.
    Restart(u8),
    /// It freezes, or is cut off.
    Silence(u8),
    /// It is heard again.
    Heal(u8),
    /// It is asked to leave politely.
    Leave(u8),
    /// Two workers can't reach each other.
    Cut(u8, u8),
    /// The database forgets its last commit.
    Failover,
}

impl Gangs {
    pub(crate) fn faults_possible(&self, world: &World, actions: &mut Vec<Action>) {
        let mut may = |fault| actions.push(Action::Fault(fault));
        for worker in 0..self.workers {
            let it = world.worker(worker);
            let trains = it.member.is_some();
            if !it.alive {
                // More come back only where nobody is left: who comes to a living gang is a newcomer like any other.
                if world.workers.iter().all(|other| !other.alive) {
                    may(Fault::Restart(worker));
                }
                continue;
            }
            if trains && world.faults.crashes > 0 {
                may(Fault::Crash(worker));
            }
            if it.silent {
                may(Fault::Heal(worker));
            } else if trains && world.faults.silences > 0 && self.victim.is_none_or(|victim| victim == worker)
            {
                may(Fault::Silence(worker));
            }
            if trains && !it.leaving && world.faults.leaves > 0 {
                may(Fault::Leave(worker));
            }
            for other in worker + 1..self.workers {
                if world.faults.cuts > 0 && world.cut.is_none() && trains {
                    may(Fault::Cut(worker, other));
                }
            }
        }
        if world.faults.failovers > 0 && world.replica.is_some() {
            may(Fault::Failover);
        }
    }

    pub(crate) fn strike(&self, world: &mut World, fault: Fault) {
        match fault {
            Fault::Crash(worker) => {
                world.faults.crashes -= 1;
                let it = world.worker_mut(worker);
                (it.alive, it.silent, it.leaving, it.member) = (false, false, false, None);
            }
            Fault::Restart(worker) => {
                let it = world.worker_mut(worker);
                (it.alive, it.process, it.last) = (true, it.process + 1, (0, 0));
            }
            Fault::Silence(worker) => {
                world.faults.silences -= 1;
                world.worker_mut(worker).silent = true;
            }
            Fault::Heal(worker) => world.worker_mut(worker).silent = false,
            Fault::Leave(worker) => {
                world.faults.leaves -= 1;
                world.worker_mut(worker).leaving = true;
            }
            Fault::Cut(a, b) => {
                world.faults.cuts -= 1;
                world.cut = Some((a, b));
            }
            Fault::Failover => {
                world.faults.failovers -= 1;
                if let Some(replica) = world.replica.take() {
                    world.row = *replica;
                }
            }
        }
    }
}
