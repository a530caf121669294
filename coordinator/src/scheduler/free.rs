//! The fleet's free slots while a decision is made.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{Place, Worker};
use crate::ids::WorkerId;

/// The free slots, by worker.
pub(super) struct Free {
    /// Slots of each worker that has free ones, in the order of the fleet's description.
    slots: BTreeMap<usize, (WorkerId, Arc<str>, Vec<u32>)>,
    index: BTreeMap<WorkerId, (usize, Arc<str>)>,
}

impl Free {
    /// All that `fleet` has free.
    pub(super) fn new(fleet: &[Worker]) -> Self {
        let with_slots = fleet.iter().enumerate().filter(|(_, worker)| !worker.free.is_empty());
        let slots = with_slots.map(|(i, w)| (i, (w.worker, w.kind.clone(), w.free.clone()))).collect();
        let index = fleet.iter().enumerate().map(|(i, w)| (w.worker, (i, w.kind.clone()))).collect();
        Self { slots, index }
    }

    /// Workers with a free slot.
    pub(super) fn workers(&self) -> usize {
        self.slots.len()
    }

    /// Whether a worker that is not in `places` has a free slot.
    pub(super) fn has_other_than(&self, places: &[Place]) -> bool {
        let taken: HashSet<WorkerId> = places.iter().map(|place| place.worker).collect();
        self.slots.values().any(|(worker, ..)| !taken.contains(worker))
    }

    /// Takes `n` places on workers that `gang` does not use yet: of the wanted kind first, then of the gang's own, then
    /// of the kind with most free workers.
    pub(super) fn take(&mut self, n: usize, kind: Option<&str>, gang: &[Place]) -> Vec<Place> {
        let mut of_kind: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, kind, _) in self.slots.values() {
            *of_kind.entry(kind).or_default() += 1;
        }
        let gang_kind = gang.first().and_then(|p| self.index.get(&p.worker)).map(|(_, kind)| &**kind);
        let used: HashSet<WorkerId> = gang.iter().map(|place| place.worker).collect();
        let mut order: Vec<usize> =
            self.slots.iter().filter(|(_, (worker, ..))| !used.contains(worker)).map(|(i, _)| *i).collect();
        order.sort_by_key(|i| {
            let own = &*self.slots[i].1;
            let preferred = Some(own) == kind || (kind.is_none() && Some(own) == gang_kind);
            (!preferred, usize::MAX - of_kind.get(own).copied().unwrap_or(0), own, *i)
        });
        order.truncate(n);
        order.into_iter().map(|i| self.take_slot(i)).collect()
    }

    /// Takes up to `n` places, on any workers, for a job that cannot start yet; returns the workers.
    pub(super) fn reserve(&mut self, n: usize) -> BTreeSet<WorkerId> {
        let first: Vec<usize> = self.slots.keys().copied().take(n).collect();
        first.into_iter().map(|i| self.take_slot(i).worker).collect()
    }

    /// Takes a place on the first worker that `suits`.
    pub(super) fn take_where(&mut self, suits: impl Fn(WorkerId, &str) -> bool) -> Option<Place> {
        let found = self.slots.iter().find(|(_, (worker, kind, _))| suits(*worker, kind)).map(|(i, _)| *i);
        found.map(|i| self.take_slot(i))
    }

    /// Gives places back.
    pub(super) fn put_back(&mut self, places: &[Place]) {
        for place in places {
            let Some((i, kind)) = self.index.get(&place.worker) else { continue };
            let entry = self.slots.entry(*i).or_insert_with(|| (place.worker, kind.clone(), Vec::new()));
            entry.2.push(place.slot);
            entry.2.sort_unstable();
        }
    }

    fn take_slot(&mut self, i: usize) -> Place {
        let (worker, _, slots) = self.slots.get_mut(&i).expect("only workers with free slots are offered");
        let place = Place { worker: *worker, slot: slots.remove(0) };
        if slots.is_empty() {
            self.slots.remove(&i);
        }
        place
    }
}
