//! One decision: each group of the queue has its turn, and what is left is dealt out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Decision, Gang, Labels, Place, Queue, Reason, Tenant, Times, Worker,
    free::{Free, Want},
    grow,
    line::{self, Closed, Forecast},
    order::{Accounts, Line},
    queue::{Group, Waiting},
    reserve::Reserved,
    take::{Supply, Taker},
    words::QuickMap,
};
use crate::ids::JobId;

/// Jobs that take from running ones in one decision.
const MAX_TAKERS: usize = 256;

/// A decision in the making.
pub(super) struct Round<'a> {
    groups: &'a [Group],
    gangs: &'a [Gang],
    times: Times,
    free: Free<'a>,
    wants: Vec<Want>,
    supply: Supply<'a>,
    reserved: Reserved<'a>,
    accounts: Accounts,
    started: Vec<Started<'a>>,
    /// When busy workers come free, the earliest first; the number of starts that it knows.
    releases: (Vec<(Duration, u32)>, Option<usize>),
    /// Jobs that are about to get workers, and why they wait.
    promised: Vec<(JobId, Reason)>,
    closed: Vec<Option<Closed>>,
    /// Classes that somebody who could be served one day waits for.
    waited_for: Vec<bool>,
    /// Members of the first job with a reservation.
    earlier: usize,
}

struct Started<'a> {
    group: usize,
    waiting: &'a Waiting,
    places: Vec<Place>,
}

/// What comes of a turn.
enum Turn {
    Start(Vec<Place>),
    /// It waits for what it is about to get; the next of its group has a turn.
    Promised(Reason),
    /// Nobody of its group starts.
    Closed(Closed),
}

impl<'a> Round<'a> {
    /// Before the first turn.
    pub(super) fn new(
        queue: &'a Queue,
        gangs: &'a [Gang],
        fleet: &'a [Worker],
        tenants: &[Tenant],
        times: Times,
    ) -> Self {
        let groups = queue.groups();
        let free = Free::new(fleet);
        let mut matching: QuickMap<*const Labels, Want> = QuickMap::default();
        let want = |group: &Group| {
            let selector = &group.shape.selector;
            matching.entry(Arc::as_ptr(selector)).or_insert_with(|| free.matching(selector)).clone()
        };
        let wants = groups.iter().map(want).collect();
        Self {
            groups,
            gangs,
            times,
            wants,
            supply: Supply::new(gangs, &free, times),
            reserved: Reserved::new(free.classes()),
            accounts: Accounts::new(groups, gangs, tenants, times),
            started: Vec::new(),
            releases: (Vec::new(), None),
            promised: Vec::new(),
            closed: vec![None; groups.len()],
            waited_for: vec![false; free.classes()],
            earlier: 0,
            free,
        }
    }

    /// Decides.
    pub(super) fn decide(mut self) -> Vec<Decision> {
        let mut line = Line::new(self.groups, vec![0; self.groups.len()], &mut self.accounts, self.times);
        while let Some((group, level)) = line.pop() {
            let Some(waiting) = line.first(group) else { continue };
            let tenant = line.tenant(group);
            let turn = self.turn(group, tenant, level, waiting);
            if !matches!(turn, Turn::Start(_)) {
                self.wait_for(group, &turn);
            }
            let closed = matches!(turn, Turn::Closed(_));
            match turn {
                Turn::Start(places) => {
                    line.take(group, 1);
                    self.accounts.give(tenant, places.len());
                    self.started.push(Started { group, waiting, places });
                }
                Turn::Promised(reason) => {
                    line.take(group, 1);
                    self.promised.push((waiting.job, reason));
                }
                Turn::Closed(closed) => self.closed[group] = Some(closed),
            }
            line.put_back(group, closed, &self.accounts);
        }
        self.finish(line.into_next())
    }

    fn turn(&mut self, group: usize, tenant: usize, level: i64, waiting: &Waiting) -> Turn {
        let shape = &self.groups[group].shape;
        let (min, want) = (shape.min, &self.wants[group]);
        let close = |first: Reason, rest: Reason| Turn::Closed(Closed { first, rest, estimate: None });
        if want.workers < min {
            let selector = shape.selector.clone();
            let reason = Reason::TooSmall { needs: min, has: want.workers, selector };
            return close(reason.clone(), reason);
        }
        if self.accounts.may_have(tenant) < min {
            let (runs, may) = self.accounts.runs(tenant);
            let reason = Reason::Quota { needs: min, runs, may };
            return close(reason.clone(), reason);
        }
        if self.reserved.concerns(want) {
            let may = self.reserved.may_overtake(min, waiting.run_estimate, want, &self.free);
            let want = may.then(|| self.free.want(want, waiting));
            return match want.and_then(|want| self.reserved.overtake(min, &want, &mut self.free)) {
                Some(places) => Turn::Start(places),
                None => {
                    let reason = Reason::Turn { earlier: self.earlier };
                    close(reason.clone(), reason)
                }
            };
        }
        let want = self.free.want(want, waiting);
        if self.free.count(&want) >= min {
            return Turn::Start(self.free.take(min, &want, &[]));
        }
        self.lacks(group, level, waiting, &want)
    }

    /// The turn of a job for which too few workers are free.
    fn lacks(&mut self, group: usize, level: i64, waiting: &Waiting, want: &Want) -> Turn {
        let Group { priority, shape, .. } = &self.groups[group];
        let min = shape.min;
        let busy = Reason::Busy { needs: min, selector: shape.selector.clone() };
        if self.promised.len() < MAX_TAKERS {
            let mine = self.free.take(min, want, &[]);
            let workers: BTreeSet<u32> = mine.iter().filter_map(|p| self.free.number(p.worker)).collect();
            let taker = Taker { job: waiting.job, min, priority: *priority, level, want };
            if let Some(reason) = self.supply.cover(&taker, workers, &self.free) {
                return Turn::Promised(reason.unwrap_or(busy));
            }
            self.free.put_back(&mine);
        }
        let rest = Reason::Turn { earlier: min };
        if self.reserved.is_full() {
            return Turn::Closed(Closed { first: busy, rest, estimate: None });
        }
        self.note_releases();
        let releases = self.releases.0.iter().copied();
        let releases = releases.filter(|(_, worker)| !self.supply.is_promised(*worker));
        let estimate = self.reserved.reserve(min, want, &mut self.free, releases);
        if self.earlier == 0 {
            self.earlier = min;
        }
        Turn::Closed(Closed { first: busy, rest, estimate })
    }

    /// Brings up to date when workers come free.
    fn note_releases(&mut self) {
        let (releases, known) = &mut self.releases;
        if known.is_none() {
            *releases = self.supply.releases(&self.free);
        }
        if *known == Some(self.started.len()) {
            return;
        }
        for started in &self.started[known.unwrap_or(0)..] {
            let Some(run) = started.waiting.run_estimate else { continue };
            let workers = started.places.iter().filter_map(|place| self.free.number(place.worker));
            releases.extend(workers.map(|worker| (run, worker)));
        }
        *known = Some(self.started.len());
        // Long runs in order, and what was added: what a stable sort is quick with.
        releases.sort();
    }

    fn wait_for(&mut self, group: usize, turn: &Turn) {
        let aside = |closed: &Closed| matches!(closed.first, Reason::TooSmall { .. } | Reason::Quota { .. });
        if !matches!(turn, Turn::Closed(closed) if aside(closed)) {
            self.wants[group].classes.iter().for_each(|class| self.waited_for[*class as usize] = true);
        }
    }

    /// Room for those that start, growth for those that run, words for those that wait.
    fn finish(mut self, next: Vec<usize>) -> Vec<Decision> {
        let free_now = self.free.total() + self.reserved.kept();
        self.free.withhold(&self.waited_for);
        let mut grown = Vec::new();
        let held_back = self.give_room();
        if held_back.is_none() {
            grown = grow::grow(self.gangs, &mut self.free, &mut self.accounts, self.times.gather);
        }
        self.note_releases();
        let releases = self.releases.0.iter().filter(|(_, worker)| !self.supply.is_promised(*worker));
        let forecast = Forecast::new(free_now, releases.map(|(at, _)| *at));
        let start =
            |started: Started<'_>| Decision::Start { job: started.waiting.job, places: started.places };
        let jobs: usize = self.groups.iter().map(|group| group.jobs.len()).sum();
        let mut decisions = Vec::with_capacity(jobs + grown.len());
        decisions.extend(self.started.into_iter().map(start));
        let said = held_back.into_iter().map(|job| (job, Reason::Moment)).chain(self.promised);
        let line = Line::new(self.groups, next, &mut self.accounts, self.times);
        let place = (self.wants.as_slice(), &self.free);
        line::waits(&mut decisions, line, &mut self.accounts, &self.closed, place, forecast, said);
        decisions.extend(self.supply.into_decisions());
        decisions.extend(grown);
        decisions
    }

    /// Deals what is left to the starting jobs, one member in turn, so that equals get equal shares; a job that came only
    /// a moment ago and could use what is left is held back until others had time to come. Returns that one: what is
    /// left is kept for it.
    fn give_room(&mut self) -> Option<JobId> {
        let mut wanting: Vec<usize> = (0..self.started.len()).collect();
        while !wanting.is_empty() && self.free.total() > 0 {
            let mut still = Vec::with_capacity(wanting.len());
            for i in wanting {
                let started = &mut self.started[i];
                let (group, want) = (
                    &self.groups[started.group],
                    self.free.want(&self.wants[started.group], started.waiting),
                );
                let tenant = self.accounts.of(group.tenant);
                let full = started.places.len() >= started.waiting.max || self.accounts.may_have(tenant) == 0;
                if full {
                    continue;
                }
                let more = self.free.take(1, &want, &started.places);
                if more.is_empty() {
                    continue;
                }
                if started.waiting.waited < self.times.gather {
                    // What it leaves may be wanted by jobs after it in the next round; not now, for it is next in line.
                    let started = self.started.remove(i);
                    self.free.put_back(&more);
                    self.accounts.take_back(tenant, started.places.len());
                    return Some(started.waiting.job);
                }
                started.places.extend(more);
                self.accounts.give(tenant, 1);
                still.push(i);
            }
            wanting = still;
        }
        None
    }
}
