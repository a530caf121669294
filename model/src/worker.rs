//! What a worker does: it loads, enters a generation, trains, parts, and ends.

use crate::{
    Gangs, MICRO_BATCHES, Mutant, WHOLE_SUM, coordinator,
    world::{Action, Checkpoint, Fence, Flaw, Generation, Job, Member, Post, Report, Stage, State, World},
};

/// Something that a worker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Takes its place, and loads.
    Assign,
    /// Takes a Begin, by its place among all that were ever said.
    Begin(usize),
    /// Has heard what everybody has.
    Meet,
    /// Sends the rest of its state.
    SendRest,
    /// Receives the first half of a state.
    TakeHalf,
    /// Receives the rest, and adopts it.
    TakeRest,
    /// Computes its share of the next step.
    Share,
    /// Knows the whole sum of the step: updates.
    Reduce,
    /// The collective is broken.
    Break,
    /// Hears that it should part at the next boundary.
    Regroup,
    /// Writes a manifest.
    Put,
    /// Reports the checkpoint that it wrote.
    Report,
    /// All leave: writes a checkpoint and goes.
    Close,
    /// Gives its place back before it was in any generation.
    GiveBack,
    /// Is told to stop.
    Stop,
}

impl Gangs {
    pub(crate) fn worker_may(&self, world: &World, worker: u8, actions: &mut Vec<Action>) {
        let it = world.worker(worker);
        if !it.alive {
            return;
        }
        let mut may = |act| actions.push(Action::Worker(worker, act));
        let Some(member) = &it.member else {
            if !it.silent && world.new_place(worker).is_some() {
                may(Act::Assign);
            }
            return;
        };
        if !it.silent {
            if stale(world, worker) {
                may(Act::Stop);
            }
            for (i, begin) in world.begins.iter().enumerate() {
                if begins(begin, worker, member) {
                    may(Act::Begin(i));
                }
            }
        }
        match member.stage {
            Stage::Closing => may(Act::Close),
            Stage::Ready | Stage::Parted => {}
            Stage::Entering(round) => self.entering_may(world, member, worker, round, &mut may),
            Stage::Training(shared) => self.training_may(world, member, worker, shared, &mut may),
        }
        if it.leaving && member.stage == Stage::Ready {
            may(Act::GiveBack);
        }
        if matches!(member.stage, Stage::Entering(_) | Stage::Training(_)) && broken(world, worker, member) {
            may(Act::Break);
        }
    }

    fn entering_may(&self, world: &World, member: &Member, worker: u8, round: u8, may: &mut impl FnMut(Act)) {
        let Some((index, generation)) = own(world, worker, member) else { return };
        let said = |round| self.hello(world, member.fence, index, round).is_some();
        if said(round) && self.hellos(world, generation, member.fence, round).is_some() {
            may(Act::Meet);
        }
        if round == 0 || said(round) {
            return;
        }
        if self.source(world, generation, member.fence) == Some(index) {
            may(Act::SendRest);
        } else if !member.half && self.half(world, member.fence).is_some() {
            may(Act::TakeHalf);
        } else if member.half && self.rest(world, member.fence).is_some() {
            may(Act::TakeRest);
        }
    }

    fn training_may(
        &self,
        world: &World,
        member: &Member,
        worker: u8,
        shared: bool,
        may: &mut impl FnMut(Act),
    ) {
        let (Some((index, generation)), Some(whole)) = (own(world, worker, member), member.whole) else {
            return;
        };
        if shared {
            if self.shares(world, generation, member.fence, whole.step + 1).is_some() {
                may(Act::Reduce);
            }
            return;
        }
        if whole.step < self.steps {
            may(Act::Share);
            let wanted = coordinator::wants_regroup(world) && !world.worker(worker).silent;
            if wanted && !member.regroup && member.fence.counts(world.row.fence, self.mutant) {
                may(Act::Regroup);
            }
        }
        let is_final = whole.step == self.steps;
        if is_final || self.checkpoints && index == 0 && whole.step > 0 {
            let checkpoint = Checkpoint { fence: member.fence, state: whole };
            if !world.store.contains(&checkpoint) {
                may(Act::Put);
            } else if !world.reports.contains(&reported(checkpoint, worker, member.place, is_final)) {
                may(Act::Report);
            }
        }
    }

    pub(crate) fn work(&self, world: &mut World, worker: u8, act: Act) {
        if act == Act::Assign {
            return assign(world, worker);
        }
        let Some(mut member) = world.member(worker).copied() else { return };
        match act {
            Act::Assign => {}
            Act::Begin(i) => begin(world, worker, &mut member, i),
            Act::Meet => self.meet(world, worker, &mut member),
            Act::SendRest => self.send_rest(world, worker, &member),
            Act::TakeHalf => {
                member.half = true;
                if self.mutant == Some(Mutant::BroadcastInPlace) {
                    member.whole = None;
                }
            }
            Act::TakeRest => self.take_rest(world, worker, &mut member),
            Act::Share => self.share(world, worker, &mut member),
            Act::Reduce => {
                if self.reduce(world, worker, &mut member) {
                    return release(world, worker, &member);
                }
            }
            Act::Break => part(world, worker, &mut member),
            Act::Regroup => member.regroup = true,
            Act::Put => put(world, &member),
            Act::Report => {
                if let Some(state) = member.whole {
                    let checkpoint = Checkpoint { fence: member.fence, state };
                    let is_final = state.step == self.steps;
                    world.reports.insert(reported(checkpoint, worker, member.place, is_final));
                }
            }
            Act::Close => {
                put(world, &member);
                let checkpoint = member.whole.map(|state| Checkpoint { fence: member.fence, state });
                world.reports.extend(checkpoint.map(|c| reported(c, worker, member.place, false)));
                return release(world, worker, &member);
            }
            Act::GiveBack => return release(world, worker, &member),
            Act::Stop => {
                world.worker_mut(worker).member = None;
                return;
            }
        }
        member.had_whole |= member.whole.is_some();
        world.worker_mut(worker).member = Some(member);
    }

    fn meet(&self, world: &mut World, worker: u8, member: &mut Member) {
        let Some((index, generation)) = own(world, worker, member) else { return };
        let Stage::Entering(round) = member.stage else { return };
        let Some(all) = self.hellos(world, generation, member.fence, round) else { return };
        let (newest, resume) = (all.iter().copied().max().flatten(), generation.resume);
        match newest {
            None => {
                // The only place where a checkpoint is read.
                let current = member.fence == world.row.fence && world.live_place(worker).is_some();
                let held = held_elsewhere(world, member.fence);
                world.flaw(Flaw::CheckpointRead, current && held);
                member.whole = Some(resume);
                member.stage = Stage::Training(false);
            }
            Some(_) if all.iter().all(|whole| *whole == newest) => member.stage = Stage::Training(false),
            Some(state) => {
                member.stage = Stage::Entering(round + 1);
                if self.source(world, generation, member.fence) == Some(index) {
                    world.posts.insert(Post::Half { fence: member.fence, state });
                } else if member.whole == newest {
                    hello(world, member, index, round + 1);
                }
            }
        }
    }

    fn send_rest(&self, world: &mut World, worker: u8, member: &Member) {
        let (Some((index, _)), Some(state)) = (own(world, worker, member), member.whole) else { return };
        world.posts.insert(Post::Rest { fence: member.fence, state });
        hello(world, member, index, 1);
    }

    fn take_rest(&self, world: &mut World, worker: u8, member: &mut Member) {
        let Some((index, _)) = own(world, worker, member) else { return };
        let Some(state) = self.rest(world, member.fence) else { return };
        (member.whole, member.half) = (Some(state), false);
        hello(world, member, index, 1);
    }

    fn share(&self, world: &mut World, worker: u8, member: &mut Member) {
        let Some((index, generation)) = own(world, worker, member) else { return };
        let Some(whole) = member.whole else { return };
        let (mut turn, mut size) = (index, generation.world_size());
        if self.mutant == Some(Mutant::DealByOldMembership) {
            (turn, size) = member.before.unwrap_or((turn, size));
        }
        let mine = (turn..MICRO_BATCHES).step_by(usize::from(size));
        let sum = mine.map(|micro_batch| 1u16 << (4 * micro_batch)).sum();
        let step = whole.step + 1;
        let leave = world.worker(worker).leaving;
        let part = leave || member.regroup;
        world.posts.insert(Post::Share { fence: member.fence, step, index, sum, part, leave });
        member.stage = Stage::Training(true);
        let done = |m: &Member| m.whole.is_some_and(|whole| whole.step >= step);
        let current = member.fence == world.row.fence && world.live_place(worker).is_some();
        let again = (0..self.workers)
            .any(|other| world.live_place(other).is_some() && world.member(other).is_some_and(done));
        world.flaw(Flaw::Again, current && again);
    }

    /// The update; true when the member leaves with it.
    fn reduce(&self, world: &mut World, worker: u8, member: &mut Member) -> bool {
        let Some((index, generation)) = own(world, worker, member) else { return false };
        let Some(whole) = member.whole else { return false };
        let Some(shares) = self.shares(world, generation, member.fence, whole.step + 1) else { return false };
        let sum: u16 = shares.iter().map(|share| share.0).sum();
        let (parts, all_leave) = (shares.iter().any(|share| share.1), shares.iter().all(|share| share.2));
        let leaves = shares[usize::from(index)].2;
        let digest = if sum == WHOLE_SUM { whole.digest } else { whole.digest.wrapping_mul(31) ^ sum };
        world.flaw(Flaw::WrongSum, sum != WHOLE_SUM);
        member.whole = Some(State { step: whole.step + 1, digest });
        member.stage = Stage::Training(false);
        if all_leave && index == 0 {
            member.stage = Stage::Closing;
        } else if leaves {
            return true;
        } else if parts {
            part(world, worker, member);
        }
        false
    }

    /// What a post says to one who is under `fence`; under the mutant, another generation's word comes first.
    fn read<T>(&self, world: &World, fence: Fence, say: impl Fn(&Post) -> Option<(Fence, T)>) -> Option<T> {
        let said = world.posts.iter().filter_map(say).filter(|(of, _)| of.counts(fence, self.mutant));
        said.max_by_key(|(of, _)| *of != fence).map(|(_, what)| what)
    }

    fn hello(&self, world: &World, fence: Fence, from: u8, in_round: u8) -> Option<Option<State>> {
        self.read(world, fence, |post| match *post {
            Post::Hello { fence, index, round, whole } if (index, round) == (from, in_round) => {
                Some((fence, whole))
            }
            _ => None,
        })
    }

    fn hellos(
        &self,
        world: &World,
        generation: &Generation,
        fence: Fence,
        round: u8,
    ) -> Option<Vec<Option<State>>> {
        (0..generation.world_size()).map(|index| self.hello(world, fence, index, round)).collect()
    }

    /// Who sends its state: the lowest index with the greatest.
    fn source(&self, world: &World, generation: &Generation, fence: Fence) -> Option<u8> {
        let all = self.hellos(world, generation, fence, 0)?;
        let newest = all.iter().copied().max()?;
        u8::try_from(all.iter().position(|whole| *whole == newest)?).ok()
    }

    fn half(&self, world: &World, fence: Fence) -> Option<State> {
        self.read(world, fence, |post| match *post {
            Post::Half { fence, state } => Some((fence, state)),
            _ => None,
        })
    }

    fn rest(&self, world: &World, fence: Fence) -> Option<State> {
        self.read(world, fence, |post| match *post {
            Post::Rest { fence, state } => Some((fence, state)),
            _ => None,
        })
    }

    /// Everybody's part of a step's sum, with the control words.
    fn shares(
        &self,
        world: &World,
        generation: &Generation,
        fence: Fence,
        of_step: u8,
    ) -> Option<Vec<(u16, bool, bool)>> {
        let share = |from| {
            self.read(world, fence, |post| match *post {
                Post::Share { fence, step, index, sum, part, leave } if (step, index) == (of_step, from) => {
                    Some((fence, (sum, part, leave)))
                }
                _ => None,
            })
        };
        (0..generation.world_size()).map(share).collect()
    }
}

fn assign(world: &mut World, worker: u8) {
    let attempt = world.row.fence.attempt;
    let place = world.new_place(worker);
    let member = place.map(|place| Member {
        fence: Fence { attempt, generation: 0, id: 0 },
        place: place.number,
        stage: Stage::Ready,
        whole: None,
        had_whole: false,
        half: false,
        regroup: false,
        before: None,
    });
    let it = world.worker_mut(worker);
    it.last = member.map_or(it.last, |member| (attempt, member.place));
    it.member = member;
}

fn begin(world: &mut World, worker: u8, member: &mut Member, i: usize) {
    let before = own(world, worker, member).map(|(index, generation)| (index, generation.world_size()));
    let generation = &world.begins[i];
    let Some(index) = generation.index(worker, member.place) else { return };
    *member = Member {
        fence: generation.fence,
        stage: Stage::Entering(0),
        half: false,
        regroup: false,
        before,
        ..*member
    };
    hello(world, member, index, 0);
}

fn hello(world: &mut World, member: &Member, index: u8, round: u8) {
    world.posts.insert(Post::Hello { fence: member.fence, index, round, whole: member.whole });
}

/// Leaves the collective, and says so.
fn part(world: &mut World, worker: u8, member: &mut Member) {
    (member.stage, member.half) = (Stage::Parted, false);
    let Some(generation) = world.generation(member.fence) else { return };
    let cut = |other: &u8| *other != worker && !world.reaches(worker, *other);
    let blames = generation.members.iter().map(|(other, _)| *other).filter(cut).map(|other| 1 << other).sum();
    let (fence, place) = (member.fence, member.place);
    world.reports.insert(Report::Parted { fence, worker, place, blames });
}

/// Gives its place back and exits.
fn release(world: &mut World, worker: u8, member: &Member) {
    let (attempt, place, process) = (member.fence.attempt, member.place, world.worker(worker).process);
    world.reports.insert(Report::Released { attempt, worker, process, place });
    let it = world.worker_mut(worker);
    (it.alive, it.silent, it.leaving, it.member) = (false, false, false, None);
}

/// Written only if absent; the path names step and fence.
fn put(world: &mut World, member: &Member) {
    world.store.extend(member.whole.map(|state| Checkpoint { fence: member.fence, state }));
}

fn reported(checkpoint: Checkpoint, worker: u8, place: u8, is_final: bool) -> Report {
    if is_final {
        Report::Succeeded { checkpoint, worker, place }
    } else {
        Report::Written { checkpoint, worker, place }
    }
}

/// The worker's index in the generation that it is in.
fn own<'a>(world: &'a World, worker: u8, member: &Member) -> Option<(u8, &'a Generation)> {
    let generation = world.generation(member.fence)?;
    Some((generation.index(worker, member.place)?, generation))
}

/// Whether a Begin is one that a member takes: of its attempt, above its generation, naming it.
fn begins(begin: &Generation, worker: u8, member: &Member) -> bool {
    begin.fence.attempt == member.fence.attempt
        && begin.fence.generation > member.fence.generation
        && member.stage != Stage::Closing
        && begin.index(worker, member.place).is_some()
}

/// The row knows no live place of this worker any more.
fn stale(world: &World, worker: u8) -> bool {
    !matches!(world.row.job, Job::Loading | Job::Training) || world.live_place(worker).is_none()
}

/// Somebody of the generation is gone, has left it, or can't be reached.
fn broken(world: &World, worker: u8, member: &Member) -> bool {
    let Some(generation) = world.generation(member.fence) else { return true };
    let lost = |&(other, place): &(u8, u8)| {
        let there = world.member(other).is_some_and(|peer| {
            (peer.fence, peer.place) == (member.fence, place)
                && matches!(peer.stage, Stage::Entering(_) | Stage::Training(_))
        });
        // One that has not entered yet is waited for.
        let late = world.member(other).is_some_and(|peer| {
            peer.place == place
                && peer.fence.attempt == member.fence.attempt
                && peer.fence.generation < member.fence.generation
        });
        let silent = world.worker(other).silent || !world.reaches(worker, other);
        other != worker && (silent || !(there || late))
    };
    generation.members.iter().any(lost)
}

/// Whether a live member outside this generation holds a state: its own members may have read the same just now.
fn held_elsewhere(world: &World, fence: Fence) -> bool {
    let holds = |worker: u8| {
        world.live_place(worker).is_some()
            && world.member(worker).is_some_and(|m| m.whole.is_some() && m.fence != fence)
    };
    (0..u8::try_from(world.workers.len()).unwrap_or_default()).any(holds)
}
