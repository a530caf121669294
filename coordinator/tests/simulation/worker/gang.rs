//! What members do together: they compare states, receive one, share steps, and notice who has left.

use lorafleet_coordinator::{
    ids::RunId,
    membership::{Evidence, Suspicion},
};

use super::{Defect, EARLY, EVERY, Stage};
use crate::{
    messages::{Ended, Gossip, Share, Words},
    training::{State, add, loss, update, zero},
    world::{Event, World},
};

impl World {
    /// A member's word.
    pub fn gossiped(&mut self, name: usize, sender: usize, gossip: Gossip) {
        let (now, process) = (self.now, self.workers[name].process);
        let reply = |world: &mut Self, from: usize, what: Words| {
            world.gossip(process, sender, Gossip { fence: gossip.fence.clone(), from, what });
        };
        let defect = self.defect;
        let wants_answer = matches!(gossip.what, Words::Ping | Words::Hello { .. });
        let Some(run) = self.run(name).filter(|run| run.run.attempt == gossip.fence.attempt) else {
            return;
        };
        let counts = defect == Some(Defect::FenceOff) && run.is_together();
        if run.fence != gossip.fence && !counts {
            if gossip.fence.generation > run.fence.generation {
                if run.early.len() < EARLY {
                    run.early.push((sender, gossip.clone()));
                }
                if wants_answer {
                    // Its index there is not known yet; the asker knows whom it asked.
                    reply(self, usize::MAX, Words::Later);
                }
            }
            return; // A word of another generation changes nothing.
        }
        if !run.is_together() {
            return;
        }
        let from = run.members.iter().position(|peer| peer.process == sender).unwrap_or(gossip.from);
        if let Some(heard) = run.heard.get_mut(from) {
            *heard = Some(now);
        }
        match gossip.what {
            Words::Ping => {}
            Words::Later => run.moved = now,
            Words::Hello { round, whole } => {
                run.moved = now;
                run.hellos.insert((round, from), whole);
            }
            Words::Half => {
                run.half = true;
                if defect == Some(Defect::BroadcastInPlace) {
                    run.whole = None;
                }
            }
            Words::Rest(state, points) => run.offered = Some((state, points)),
            Words::Share { step, share } => {
                run.moved = now;
                run.shares.insert((step, from), share);
            }
            Words::Left => self.part_if_incomplete(name, from, false),
            Words::Closed => self.part_if_incomplete(name, from, true),
        }
    }

    /// A peer has left; what it said before still counts.
    fn part_if_incomplete(&mut self, name: usize, from: usize, gone: bool) {
        self.pump(name);
        let Some(run) = self.run(name).filter(|run| run.is_together()) else { return };
        let evidence = Suspicion { index: from as u32, evidence: Evidence::Gone };
        let suspicions = if gone { vec![evidence] } else { Vec::new() };
        let _ = run;
        self.part(name, suspicions);
    }

    /// Nobody listens there any more.
    pub fn refused(&mut self, name: usize, dead: usize, gossip: &Gossip) {
        let Some(run) = self.run(name).filter(|run| run.is_together() && run.fence == gossip.fence) else {
            return;
        };
        if let Some(index) = run.members.iter().position(|peer| peer.process == dead) {
            let evidence = if run.heard[index].is_some() { Evidence::Gone } else { Evidence::Unreachable };
            self.part(name, vec![Suspicion { index: index as u32, evidence }]);
        }
    }

    /// Adopts a state that has come whole, if it is ahead of its own.
    fn take_state(&mut self, name: usize) -> bool {
        let now = self.now;
        let Some(run) = self.run(name).filter(|run| run.half) else { return false };
        let Some((state, points)) = run.offered.take() else { return false };
        run.half = false;
        if run.whole.is_some_and(|own| own >= state) {
            return false;
        }
        run.whole = Some(state);
        run.points.extend(points.into_iter().map(|(step, loss)| (step, (loss, now))));
        let job = run.job;
        self.check_state(job, state);
        self.hello(name, 1);
        true
    }

    /// Goes on as far as it can with what is known.
    pub fn pump(&mut self, name: usize) {
        while self.pump_once(name) {}
        if let Some(run) = self.run(name) {
            run.had_whole |= run.whole.is_some();
        }
    }

    fn pump_once(&mut self, name: usize) -> bool {
        let steps = self.workers[name].run.as_ref().map_or(0, |run| self.works[run.job].steps());
        let Some(run) = self.run(name) else { return false };
        match run.stage {
            Stage::Entering(round) => match run.hellos(round) {
                Some(all) => {
                    self.meet(name, round, &all);
                    true
                }
                None if round == 1 => self.take_state(name),
                None => false,
            },
            Stage::Training => {
                let Some(whole) = run.whole.filter(|whole| whole.step < steps) else {
                    self.put(name);
                    return false;
                };
                let step = whole.step + 1;
                let shares = run.all(|index| run.shares.get(&(step, index)).copied());
                if let Some(shares) = shares {
                    self.reduce(name, whole, &shares);
                    return true;
                }
                if !run.computing && !run.shares.contains_key(&(step, run.index)) {
                    self.compute(name, step);
                }
                false
            }
            Stage::Closing => {
                self.put(name);
                false
            }
            Stage::Loading | Stage::Ready | Stage::Parted => false,
        }
    }

    /// Everybody has said what it holds.
    fn meet(&mut self, name: usize, round: u8, all: &[Option<State>]) {
        let now = self.now;
        let Some(run) = self.run(name) else { return };
        run.moved = now;
        let (job, index) = (run.job, run.index);
        match all.iter().copied().max().flatten() {
            None => {
                let beginning = self.works[job].undisturbed[0];
                self.check_read(name, job);
                let Some(run) = self.run(name) else { return };
                let state = run.resume.first().map_or(beginning, |manifest| manifest.state);
                run.whole = Some(state);
                run.stage = Stage::Entering(round + 1);
                self.check_state(job, state);
                self.note(|| format!("worker {name} reads the state of step {}", state.step));
                self.hello(name, round + 1);
            }
            newest if all.iter().all(|whole| *whole == newest) => {
                run.stage = Stage::Training;
            }
            Some(newest) => {
                run.stage = Stage::Entering(round + 1);
                let source = all.iter().position(|whole| *whole == Some(newest)) == Some(index);
                if source {
                    let (id, generation) = (run.run, run.fence.generation_id.clone());
                    self.tell_peers(name, &Words::Half);
                    let (process, wait) = (self.workers[name].process, self.dice.between(1, 600));
                    self.after(wait, Event::Sent { process, run: id, generation });
                    return;
                }
                if all[index] == Some(newest) {
                    self.hello(name, round + 1);
                }
            }
        }
    }

    /// The rest of its state is out, and it is ready to go on.
    pub fn send_rest(&mut self, name: usize, id: RunId, generation: &str) {
        let Some(run) = self.run(name) else { return };
        let same = run.run == id && run.fence.generation_id == generation && run.is_together();
        let Some(state) = run.whole.filter(|_| same) else { return };
        let points = run.points.iter().map(|(step, (loss, _))| (*step, *loss)).collect();
        self.tell_peers(name, &Words::Rest(state, points));
        self.hello(name, 1);
    }

    fn compute(&mut self, name: usize, step: u64) {
        let worker = &mut self.workers[name];
        let (process, slow) = (worker.process, worker.slow);
        let Some(run) = &mut worker.run else { return };
        let Some(whole) = run.whole else { return };
        run.computing = true;
        let job = run.job;
        let (id, generation) = (run.run, run.fence.generation_id.clone());
        let (batches, _) = self.works[job].share(whole, run.index, &run.speeds);
        self.check_step(name, job, step);
        let event = Event::Computed { process, run: id, generation, step };
        self.after(20 + batches * 30 * slow, event);
    }

    /// Its share of a step is there.
    pub fn computed(&mut self, name: usize, id: RunId, generation: &str, step: u64) {
        let (now, defect) = (self.now, self.defect);
        let speed = (1_000 / self.workers[name].slow + self.dice.below(80)) as u32;
        let Some(run) = &self.workers[name].run else { return };
        let same = run.run == id && run.fence.generation_id == generation && run.stage == Stage::Training;
        let Some(whole) = run.whole.filter(|whole| same && whole.step + 1 == step) else { return };
        let (index, speeds) = match &run.before {
            Some(before) if defect == Some(Defect::DealByOldMembership) => before.clone(),
            _ => (run.index, run.speeds.clone()),
        };
        let (_, sum) = self.works[run.job].share(whole, index, &speeds);
        let share = Share { sum, part: run.regroup || run.leave, leave: run.leave, speed };
        let Some(run) = self.run(name) else { return };
        (run.computing, run.moved) = (false, now);
        run.shares.insert((step, run.index), share);
        self.tell_peers(name, &Words::Share { step, share });
    }

    /// The whole sum of a step is known: it becomes the state.
    fn reduce(&mut self, name: usize, before: State, shares: &[Share]) {
        let now = self.now;
        let Some(run) = self.run(name) else { return };
        let after = update(before, shares.iter().fold(zero(), |sum, share| add(sum, share.sum)));
        run.whole = Some(after);
        run.speeds = shares.iter().map(|share| share.speed).collect();
        run.moved = now;
        run.shares.retain(|(step, _), _| *step > after.step);
        run.points.insert(after.step, (loss(after), now));
        let (job, index) = (run.job, run.index);
        self.check_state(job, after);
        if after.step.is_multiple_of(EVERY) && index == 0 {
            self.put(name);
        }
        let parts = shares.iter().any(|share| share.part);
        if shares.iter().all(|share| share.leave) && index == 0 {
            let Some(run) = self.run(name) else { return };
            run.stage = Stage::Closing;
        } else if shares[index].leave {
            self.finish(name, Ended::Released);
        } else if parts {
            self.part(name, Vec::new());
        }
    }
}
