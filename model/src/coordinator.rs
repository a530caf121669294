//! What the coordinator does: places, generations, verdicts, and what it makes of reports.

use crate::{
    Gangs, Mutant,
    world::{Action, Checkpoint, Fence, Flaw, Generation, Job, Place, Report, Row, Stage, World},
};

/// Something that the coordinator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Adopts whole manifests, and starts an attempt on whoever is idle.
    Schedule,
    /// Gives a worker a place in a gang that trains.
    Admit(u8),
    /// A worker is taken for gone: its place ends.
    Verdict(u8),
    /// Opens the next generation: everybody has parted, or is gone.
    Open,
    /// Opens a generation above one that a failover forgot.
    Raise(Fence),
    /// Nobody is left.
    Dissolve,
    /// Reads a report.
    Hear(Report),
}

/// The next generation's workers and places by index, and the workers that are expelled.
type Next = (Vec<(u8, u8)>, Vec<u8>);

impl Gangs {
    pub(crate) fn coordinator_may(&self, world: &World, actions: &mut Vec<Action>) {
        let mut may = |act| actions.push(Action::Coordinator(act));
        let row = &world.row;
        match row.job {
            Job::Queued if (0..self.workers).any(|worker| self.may_start(world, worker)) => {
                may(Act::Schedule)
            }
            Job::Queued | Job::Succeeded(_) => {}
            Job::Loading | Job::Training => {
                for worker in 0..self.workers {
                    if self.may_admit(world, worker) {
                        may(Act::Admit(worker));
                    }
                    if may_judge(world, worker) {
                        may(Act::Verdict(worker));
                    }
                    may_raise(world, worker).into_iter().for_each(|fence| may(Act::Raise(fence)));
                }
                if self.next_members(world).is_some() {
                    may(Act::Open);
                } else if gone(world) {
                    may(Act::Dissolve);
                }
            }
        }
        for report in &world.reports {
            let mut heard = row.clone();
            if self.hear(&mut heard, *report) {
                may(Act::Hear(*report));
            }
        }
    }

    pub(crate) fn coordinate(&self, world: &mut World, act: Act) {
        match act {
            Act::Schedule => self.schedule(world),
            Act::Admit(worker) => {
                let process = world.worker(worker).process;
                world.commit(|row| seat(row, worker, process));
            }
            Act::Verdict(worker) => world.commit(|row| {
                row.places
                    .iter_mut()
                    .filter(|place| place.worker == worker)
                    .for_each(|place| place.live = false);
            }),
            Act::Open => {
                let Some((members, expelled)) = self.next_members(world) else { return };
                world.commit(|row| {
                    for place in row.places.iter_mut().filter(|place| expelled.contains(&place.worker)) {
                        (place.live, place.expelled) = (false, true);
                    }
                });
                open(world, members, world.row.fence.generation + 1);
            }
            Act::Raise(fence) => {
                let members = world.row.live().filter(|p| is_loaded(world, p)).map(|p| (p.worker, p.number));
                open(world, members.collect(), fence.generation.max(world.row.fence.generation) + 1);
            }
            Act::Dissolve => world.commit(|row| {
                row.job = Job::Queued;
                row.places.clear();
            }),
            Act::Hear(report) => self.take(world, report),
        }
    }

    fn take(&self, world: &mut World, report: Report) {
        let (fence, terminal) = (world.row.fence, matches!(world.row.job, Job::Succeeded(_)));
        world.commit(|row| {
            self.hear(row, report);
        });
        let stale = match report {
            Report::Parted { fence: of, .. } => of != fence,
            Report::Succeeded { checkpoint, .. } => checkpoint.fence != fence,
            Report::Written { checkpoint, .. } => checkpoint.fence.attempt != fence.attempt,
            Report::Released { attempt, .. } => attempt != fence.attempt,
        };
        world.flaw(Flaw::StaleWrite, stale);
        world.flaw(Flaw::EndedTwice, terminal);
    }

    /// What a report does to the row; false: nothing.
    fn hear(&self, row: &mut Row, report: Report) -> bool {
        if !matches!(row.job, Job::Loading | Job::Training) {
            return false;
        }
        let own = row.fence;
        match report {
            Report::Parted { fence, worker, place, blames } => match row.live_mut(worker, place) {
                Some(place) if fence.counts(own, self.mutant) && place.parted.is_none() => {
                    place.parted = Some(blames);
                    true
                }
                _ => false,
            },
            // An earlier generation's checkpoint counts while its writer is a member.
            Report::Written { checkpoint, worker, place } => {
                checkpoint.fence.attempt == own.attempt
                    && row.live_mut(worker, place).is_some()
                    && row.checkpoints.insert(checkpoint)
            }
            Report::Succeeded { checkpoint, worker, place } => {
                let counts = checkpoint.fence.counts(own, self.mutant);
                if !counts || row.live_mut(worker, place).is_none() {
                    return false;
                }
                row.checkpoints.insert(checkpoint);
                row.places.clear();
                row.job = Job::Succeeded(checkpoint.state);
                true
            }
            Report::Released { attempt, worker, process, place } => match row.live_mut(worker, place) {
                Some(place) if attempt == own.attempt && place.process == process => {
                    place.live = false;
                    true
                }
                _ => false,
            },
        }
    }

    fn schedule(&self, world: &mut World) {
        let idle: Vec<(u8, u8)> = (0..self.workers)
            .filter(|worker| self.may_start(world, *worker))
            .map(|worker| (worker, world.worker(worker).process))
            .collect();
        let store = world.store.clone();
        world.commit(|row| {
            let adoptable = |c: &Checkpoint| row.generations.contains(&c.fence);
            row.checkpoints = store.into_iter().filter(adoptable).chain(row.checkpoints.clone()).collect();
            row.job = Job::Loading;
            row.fence = Fence { attempt: row.fence.attempt + 1, generation: 0, id: 0 };
            row.places.clear();
            idle.into_iter().for_each(|(worker, process)| seat(row, worker, process));
        });
    }

    fn may_start(&self, world: &World, worker: u8) -> bool {
        let first = world.row.fence.attempt == 0;
        is_idle(world, worker) && (!first || worker < self.starters)
    }

    fn may_admit(&self, world: &World, worker: u8) -> bool {
        let mut places = world.row.places.iter().filter(|place| place.worker == worker);
        world.row.job == Job::Training
            && is_idle(world, worker)
            && !places.any(|place| place.live || place.expelled)
    }

    /// The members of the next generation with those that are expelled, if it may be opened now.
    fn next_members(&self, world: &World) -> Option<Next> {
        let row = &world.row;
        if row.job == Job::Loading {
            let ready = row.live().next().is_some() && row.live().all(|place| is_loaded(world, place));
            let members = row.live().map(|place| (place.worker, place.number)).collect();
            return ready.then_some((members, Vec::new()));
        }
        let generation = world.generation(row.fence)?;
        let of_generation = |place: &&Place| generation.members.contains(&(place.worker, place.number));
        let mut staying: Vec<&Place> = row.live().filter(of_generation).collect();
        if self.mutant == Some(Mutant::OpenEarly) {
            staying.retain(|place| place.parted.is_some());
        }
        if staying.is_empty() || staying.iter().any(|place| place.parted.is_none()) {
            return None;
        }
        staying.sort_by_key(|place| generation.index(place.worker, place.number));
        let expelled = expel(&mut staying);
        let newcomers = row.live().filter(|place| !of_generation(place) && is_newcomer(world, place));
        let members = staying.iter().copied().chain(newcomers).map(|p| (p.worker, p.number)).collect();
        Some((members, expelled))
    }
}

/// Whether the gang should part at the next boundary: somebody waits to come in, or a member's place has ended.
pub(crate) fn wants_regroup(world: &World) -> bool {
    let row = &world.row;
    let Some(generation) = world.generation(row.fence) else { return false };
    let of_generation = |place: &&Place| generation.members.contains(&(place.worker, place.number));
    let ended = row.places.iter().filter(of_generation).any(|place| !place.live);
    let waits = row.live().filter(|place| !of_generation(place)).any(|place| is_newcomer(world, place));
    row.job == Job::Training && (ended || waits)
}

/// Of those that cannot reach each other, the one with fewer good links goes, then the higher index.
fn expel(staying: &mut Vec<&Place>) -> Vec<u8> {
    let mut expelled = Vec::new();
    loop {
        let blames = |a: &Place, b: &Place| a.parted.unwrap_or_default() & (1 << b.worker) != 0;
        let bad = |a: &Place, b: &Place| blames(a, b) || blames(b, a);
        let links = staying.iter().map(|a| staying.iter().filter(|b| bad(a, b)).count());
        let worst = links.enumerate().filter(|(_, bad)| *bad > 0).max_by_key(|(index, bad)| (*bad, *index));
        let Some((index, _)) = worst else { return expelled };
        expelled.push(staying.remove(index).worker);
    }
}

fn open(world: &mut World, members: Vec<(u8, u8)>, generation: u8) {
    world.ids += 1;
    let fence = Fence { attempt: world.row.fence.attempt, generation, id: world.ids };
    world.begins.push(Generation { fence, members, resume: world.row.newest() });
    world.commit(|row| {
        row.job = Job::Training;
        row.fence = fence;
        row.generations.insert(fence);
        row.places.iter_mut().for_each(|place| place.parted = None);
    });
}

fn seat(row: &mut Row, worker: u8, process: u8) {
    let number = row.places.iter().map(|place| place.number).max().unwrap_or_default() + 1;
    row.places.push(Place { number, worker, process, live: true, expelled: false, parted: None });
}

fn is_idle(world: &World, worker: u8) -> bool {
    let it = world.worker(worker);
    it.alive && !it.silent && !it.leaving && it.member.is_none()
}

/// Its worker said that it has loaded.
fn is_loaded(world: &World, place: &Place) -> bool {
    world.live_place(place.worker) == Some(place)
}

fn is_newcomer(world: &World, place: &Place) -> bool {
    let ready = world.member(place.worker).is_some_and(|member| member.stage == Stage::Ready);
    ready && is_loaded(world, place) && !world.worker(place.worker).silent
}

/// Whether a worker with a live place may be taken for gone.
fn may_judge(world: &World, worker: u8) -> bool {
    let it = world.worker(worker);
    // One that neither holds the place nor will take it says so when it is assigned again.
    let takes = |place: &Place| [world.live_place(worker), world.new_place(worker)].contains(&Some(place));
    let gone = |place: &Place| !it.alive || it.silent || (it.member.is_none() && !takes(place));
    world.row.live().any(|place| place.worker == worker && gone(place))
}

/// The fence of a member that is ahead of the row.
fn may_raise(world: &World, worker: u8) -> Option<Fence> {
    let (own, row) = (world.member(worker)?.fence, world.row.fence);
    let ahead = own.generation > row.generation || (own.generation == row.generation && own.id != row.id);
    let heard = !world.worker(worker).silent && world.live_place(worker).is_some();
    (ahead && heard && own.generation > 0).then_some(own)
}

/// Nobody of the attempt's latest gang is left.
fn gone(world: &World) -> bool {
    let members = world.generation(world.row.fence).map(|generation| &generation.members);
    let counts = |place: &Place| members.is_none_or(|all| all.contains(&(place.worker, place.number)));
    !world.row.live().any(counts)
}
