//! The fleet while a decision is made: which workers have free slots, by what tells them apart.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Gang, Labels, Place, Worker,
    queue::Waiting,
    words::{QuickMap, Words},
};
use crate::ids::WorkerId;

/// Workers by class, with their free slots.
pub(super) struct Free<'a> {
    fleet: &'a [Worker],
    classes: Vec<Class>,
    class_of: Vec<u32>,
    kinds: Words<'a, str>,
    bases: Words<'a, str>,
    /// Free slots of each worker, the next one last.
    slots: Vec<Vec<u32>>,
    /// Workers with a free slot that hold a base, by class and base.
    holders: QuickMap<(u32, u32), BTreeSet<u32>>,
    by_id: QuickMap<(u64, u64), u32>,
    total: usize,
}

/// Workers of one kind, device and set of labels.
struct Class {
    kind: u32,
    device: u32,
    kind_name: Arc<str>,
    labels: Arc<Labels>,
    workers: usize,
    /// Those with a free slot, in the fleet's order.
    free: BTreeSet<u32>,
}

/// What a job wants of its workers: those it may use, and those it likes best.
#[derive(Clone, Debug)]
pub(super) struct Want {
    /// Classes that match its selector, ascending.
    pub(super) classes: Arc<[u32]>,
    /// Workers in them.
    pub(super) workers: usize,
    kind: Option<u32>,
    base: Option<u32>,
}

/// A kind's free workers that a job may use, and how good they are for it.
struct Offer {
    kind: u32,
    device: u32,
    first_class: u32,
    free: usize,
    holders: usize,
}

impl<'a> Free<'a> {
    /// All that `fleet` has free.
    pub(super) fn new(fleet: &'a [Worker]) -> Self {
        let (mut kinds, mut devices, mut labels, mut bases) =
            (Words::new(), Words::new(), Words::new(), Words::new());
        let mut classes: Vec<Class> = Vec::new();
        let mut numbers: QuickMap<(u32, u32, u32), u32> = QuickMap::default();
        let mut class_of = Vec::with_capacity(fleet.len());
        let mut holders: QuickMap<(u32, u32), BTreeSet<u32>> = QuickMap::default();
        let mut by_id = QuickMap::with_capacity_and_hasher(fleet.len(), Default::default());
        for (i, worker) in (0u32..).zip(fleet) {
            let (kind, device) = (kinds.number(&worker.kind), devices.number(&worker.device));
            let key = (kind, device, labels.number(&worker.labels));
            let next = u32::try_from(classes.len()).unwrap_or(u32::MAX);
            let class = *numbers.entry(key).or_insert(next);
            if class == next {
                let (kind_name, labels) = (worker.kind.clone(), worker.labels.clone());
                classes.push(Class { kind, device, kind_name, labels, workers: 0, free: BTreeSet::new() });
            }
            let entry = &mut classes[class as usize];
            entry.workers += 1;
            if !worker.free.is_empty() {
                entry.free.insert(i);
                for base in &worker.bases {
                    holders.entry((class, bases.number(base))).or_default().insert(i);
                }
            }
            class_of.push(class);
            by_id.insert(worker.worker.0.as_u64_pair(), i);
        }
        let slots: Vec<Vec<u32>> = fleet.iter().map(|w| w.free.iter().rev().copied().collect()).collect();
        let total = fleet.iter().filter(|worker| !worker.free.is_empty()).count();
        Self { fleet, classes, class_of, kinds, bases, slots, holders, by_id, total }
    }

    /// Workers whose labels match a selector.
    pub(super) fn matching(&self, selector: &Labels) -> Want {
        let matching = (0u32..).zip(&self.classes).filter(|(_, class)| class.labels.match_all(selector));
        let classes: Arc<[u32]> = matching.map(|(i, _)| i).collect();
        let workers = classes.iter().map(|class| self.classes[*class as usize].workers).sum();
        Want { classes, workers, kind: None, base: None }
    }

    /// What a gang wants: workers of its kinds that match its selector, best those that hold its base.
    pub(super) fn want_more(&self, gang: &Gang) -> Want {
        let fits =
            |class: &Class| gang.kinds.contains(&class.kind_name) && class.labels.match_all(&gang.selector);
        let classes = (0u32..).zip(&self.classes).filter(|(_, class)| fits(class)).map(|(i, _)| i).collect();
        let base = gang.base.as_ref().and_then(|base| self.bases.find(base));
        Want { classes, workers: 0, kind: None, base }
    }

    /// What a job wants beside what all of its group want.
    pub(super) fn want(&self, group: &Want, job: &Waiting) -> Want {
        let kind = job.kind.as_ref().and_then(|kind| self.kinds.find(kind));
        let base = job.base.as_ref().and_then(|base| self.bases.find(base));
        Want { kind, base, ..group.clone() }
    }

    /// Workers with a free slot that a job may use.
    pub(super) fn count(&self, want: &Want) -> usize {
        if self.total == 0 || want.classes.len() == self.classes.len() {
            return self.total;
        }
        want.classes.iter().map(|class| self.classes[*class as usize].free.len()).sum()
    }

    /// Whether a job may use every worker.
    pub(super) fn is_any(&self, want: &Want) -> bool {
        want.classes.len() == self.classes.len()
    }

    /// Workers with a free slot.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// A worker's number in the fleet; none when it takes no work.
    pub(super) fn number(&self, worker: WorkerId) -> Option<u32> {
        self.by_id.get(&worker.0.as_u64_pair()).copied()
    }

    /// Whether a worker is one that a job may use.
    pub(super) fn matches(&self, worker: u32, want: &Want) -> bool {
        want.classes.binary_search(&self.class_of[worker as usize]).is_ok()
    }

    /// Whether a worker has a free slot.
    pub(super) fn is_free(&self, worker: u32) -> bool {
        !self.slots[worker as usize].is_empty()
    }

    /// How many classes there are.
    pub(super) fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Takes `n` places on workers that `gang` does not use yet, or as many as there are: of the wanted kind first (for
    /// one that has begun, its own), then all of one kind, or at least of one device, where that is possible; and where
    /// there is a choice those that hold the base.
    pub(super) fn take(&mut self, n: usize, want: &Want, gang: &[Place]) -> Vec<Place> {
        let workers = self.choose(n, want, gang);
        workers.into_iter().map(|worker| self.take_slot(worker)).collect()
    }

    /// Takes a place on the first worker that `suits`, one that holds the base if there is one.
    pub(super) fn take_where(&mut self, want: &Want, suits: impl Fn(&Worker) -> bool) -> Option<Place> {
        let suitable = |worker: &&u32| suits(&self.fleet[**worker as usize]);
        let holding = want.base.and_then(|base| {
            let sets = want.classes.iter().filter_map(|class| self.holders.get(&(*class, base)));
            sets.filter_map(|set| set.iter().find(suitable)).min().copied()
        });
        let any = || {
            let sets = want.classes.iter().map(|class| &self.classes[*class as usize].free);
            sets.filter_map(|set| set.iter().find(suitable)).min().copied()
        };
        let first = holding.or_else(any)?;
        Some(self.take_slot(first))
    }

    /// Nobody takes what is free on workers that are not `kept` any more.
    pub(super) fn keep_only(&mut self, kept: impl Fn(&Worker) -> bool) {
        let all: Vec<u32> = self.classes.iter().flat_map(|class| class.free.iter().copied()).collect();
        for worker in all.into_iter().filter(|worker| !kept(&self.fleet[*worker as usize])) {
            self.slots[worker as usize].truncate(1);
            self.take_slot(worker);
        }
    }

    /// Nobody takes what is free in the classes that are marked any more.
    pub(super) fn withhold(&mut self, marked: &[bool]) {
        for (class, _) in self.classes.iter_mut().zip(marked).filter(|(_, marked)| **marked) {
            for worker in std::mem::take(&mut class.free) {
                self.slots[worker as usize].clear();
                self.total -= 1;
            }
        }
        self.holders.retain(|(class, _), _| !marked[*class as usize]);
    }

    /// Gives places back.
    pub(super) fn put_back(&mut self, places: &[Place]) {
        for place in places {
            let Some(worker) = self.number(place.worker) else { continue };
            let slots = &mut self.slots[worker as usize];
            slots.push(place.slot);
            slots.sort_unstable_by(|a, b| b.cmp(a));
            let class = self.class_of[worker as usize];
            if self.classes[class as usize].free.insert(worker) {
                self.total += 1;
                for base in &self.fleet[worker as usize].bases {
                    let Some(base) = self.bases.find(base) else { continue };
                    self.holders.entry((class, base)).or_default().insert(worker);
                }
            }
        }
    }

    /// As many workers of `fleet` with nothing free: what is put there is what is reserved.
    pub(super) fn emptied(&self) -> Self {
        let mut empty = Self::new(self.fleet);
        empty.withhold(&vec![true; empty.classes.len()]);
        empty
    }

    fn choose(&self, n: usize, want: &Want, gang: &[Place]) -> Vec<u32> {
        let own = gang.first().and_then(|place| self.number(place.worker));
        let own = own.map(|worker| self.classes[self.class_of[worker as usize] as usize].kind);
        // One without another free slot is not found anyway.
        let used = gang.iter().filter_map(|place| self.number(place.worker));
        let used: Vec<u32> = used.filter(|worker| self.is_free(*worker)).collect();
        let offers = self.offers(n, want, want.kind.or(own));
        let mut chosen = Vec::with_capacity(n);
        for offer in offers {
            let of_kind = || want.classes.iter().filter(|c| self.classes[**c as usize].kind == offer.kind);
            let holders = want
                .base
                .filter(|_| offer.holders > 0)
                .map(|base| first(n, of_kind().filter_map(|class| self.holders.get(&(*class, base))), &used));
            chosen.extend(holders.into_iter().flatten().take(n - chosen.len()));
            if chosen.len() < n {
                let rest = first(n + chosen.len(), of_kind().map(|c| &self.classes[*c as usize].free), &used);
                let seen: BTreeSet<u32> = chosen.iter().copied().collect();
                let rest = rest.into_iter().filter(|worker| !seen.contains(worker));
                let lacking = n - chosen.len();
                chosen.extend(rest.take(lacking));
            }
            if chosen.len() == n {
                break;
            }
        }
        chosen
    }

    /// The kinds that have something free, the best first.
    fn offers(&self, n: usize, want: &Want, preferred: Option<u32>) -> Vec<Offer> {
        let mut offers: Vec<Offer> = Vec::new();
        for class in want.classes.iter().copied() {
            let entry = &self.classes[class as usize];
            if entry.free.is_empty() {
                continue;
            }
            let holders =
                want.base.and_then(|base| self.holders.get(&(class, base))).map_or(0, BTreeSet::len);
            let at = offers.iter_mut().find(|offer| offer.kind == entry.kind);
            if let Some(offer) = at {
                offer.free += entry.free.len();
                offer.holders += holders;
            } else {
                let (kind, device, free) = (entry.kind, entry.device, entry.free.len());
                offers.push(Offer { kind, device, first_class: class, free, holders });
            }
        }
        if offers.len() < 2 {
            return offers;
        }
        let of_device = |device| offers.iter().filter(move |offer| offer.device == device);
        let key = |offer: &Offer| {
            let on_device: usize = of_device(offer.device).map(|offer| offer.free).sum();
            let suffices = offer.free >= n;
            (
                Some(offer.kind) != preferred,
                !suffices,
                on_device < n,
                if suffices { 0 } else { usize::MAX - on_device },
                if suffices { 0 } else { offer.device },
                n - offer.holders.min(n),
                usize::MAX - offer.free,
                self.classes[offer.first_class as usize].kind_name.clone(),
            )
        };
        let mut keyed: Vec<_> = offers.iter().map(key).zip(0..).collect();
        keyed.sort_unstable();
        let order: Vec<usize> = keyed.into_iter().map(|(_, i)| i).collect();
        let mut offers: Vec<Option<Offer>> = offers.into_iter().map(Some).collect();
        order.into_iter().filter_map(|i| offers[i].take()).collect()
    }

    fn take_slot(&mut self, worker: u32) -> Place {
        let slots = &mut self.slots[worker as usize];
        let slot = slots.pop().expect("only workers with free slots are chosen");
        let known = &self.fleet[worker as usize];
        if slots.is_empty() {
            let class = self.class_of[worker as usize];
            self.classes[class as usize].free.remove(&worker);
            self.total -= 1;
            for base in &known.bases {
                let base = self.bases.find(base);
                if let Some(set) = base.and_then(|base| self.holders.get_mut(&(class, base))) {
                    set.remove(&worker);
                }
            }
        }
        Place { worker: known.worker, slot }
    }
}

/// The first `n` of some sets together that are not `used`, ascending.
fn first<'s>(n: usize, sets: impl Iterator<Item = &'s BTreeSet<u32>>, used: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    for set in sets {
        all.extend(set.iter().filter(|worker| !used.contains(worker)).take(n));
    }
    all.sort_unstable();
    all.truncate(n);
    all
}
