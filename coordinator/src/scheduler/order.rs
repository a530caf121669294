//! Whose turn it is: the higher priority first, then the tenant that has had least of its share, then the older job.
//!
//! **Ageing.** Waiting raises a job by one class of priority each `ageing`, so that nothing starves. A tenant above its
//! share competes with no more than the highest priority that it queues: its age orders its own jobs, and a flood of
//! jobs gets nobody ahead of the others.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::{
    Gang, Tenant, Times,
    queue::{Group, Waiting},
    words::QuickMap,
};
use crate::ids::TenantId;

/// Points of priority between two classes.
const CLASS: i64 = 100;

/// What each tenant has had.
#[derive(Clone)]
pub(super) struct Accounts {
    accounts: Vec<Account>,
    by_id: QuickMap<(u64, u64), usize>,
    charge: f64,
}

#[derive(Clone)]
struct Account {
    weight: f64,
    used: f64,
    runs: usize,
    may_run: usize,
    /// The highest priority that it queues, if it is above its share; as high as can be otherwise.
    at_most: i64,
}

/// Groups in the order in which their first jobs have their turn.
pub(super) struct Line<'a> {
    groups: &'a [Group],
    /// The first job of each group that has not had its turn.
    next: Vec<usize>,
    tenants: Vec<BinaryHeap<Head>>,
    turns: BinaryHeap<Turn>,
    tenant_of: Vec<usize>,
    times: Times,
}

/// A group, by its first job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    level: i64,
    age: std::time::Duration,
    earlier: Reverse<u32>,
    group: usize,
}

/// A tenant, by its best group.
#[derive(Clone, Copy)]
struct Turn {
    level: i64,
    had: f64,
    head: Head,
    tenant: usize,
}

/// The priority of a job that waited for `age`.
pub(super) fn level(priority: i32, age: std::time::Duration, times: Times) -> i64 {
    let millis = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let classes = millis(age) / millis(times.ageing).max(1);
    i64::from(priority).saturating_add(classes.saturating_mul(CLASS))
}

// === impl Accounts ===

impl Accounts {
    /// What `tenants` had, with what their `gangs` hold, and who of those that queue is above its share.
    pub(super) fn new(groups: &[Group], gangs: &[Gang], tenants: &[Tenant], times: Times) -> Self {
        let mut this =
            Self { accounts: Vec::new(), by_id: QuickMap::default(), charge: times.charge.as_secs_f64() };
        tenants.iter().for_each(|tenant| this.open(*tenant));
        for gang in gangs {
            let tenant = this.of(gang.tenant);
            this.accounts[tenant].runs += gang.seats.len();
        }
        let mut queues: Vec<Option<i64>> = vec![None; this.accounts.len()];
        for group in groups {
            let tenant = this.of(group.tenant);
            queues.resize(this.accounts.len(), None);
            queues[tenant] = queues[tenant].max(Some(i64::from(group.priority)));
        }
        this.cap(&queues);
        this
    }

    fn open(&mut self, tenant: Tenant) {
        let sound = |x: f64, least: f64| if x.is_finite() { x.max(least) } else { least };
        self.by_id.insert(tenant.id.0.as_u64_pair(), self.accounts.len());
        self.accounts.push(Account {
            weight: sound(tenant.weight, 1e-9),
            used: sound(tenant.used, 0.0),
            runs: 0,
            may_run: tenant.max_workers.unwrap_or(usize::MAX),
            at_most: i64::MAX,
        });
    }

    /// The tenant's number.
    pub(super) fn of(&mut self, id: TenantId) -> usize {
        if let Some(number) = self.by_id.get(&id.0.as_u64_pair()) {
            return *number;
        }
        self.open(Tenant::unknown(id));
        self.accounts.len() - 1
    }

    fn cap(&mut self, queues: &[Option<i64>]) {
        let takes_part = |i: usize| queues.get(i).copied().flatten().is_some() || self.accounts[i].runs > 0;
        let sum = |part: &dyn Fn(&Account) -> f64| -> f64 {
            (0..self.accounts.len()).filter(|i| takes_part(*i)).map(|i| part(&self.accounts[i])).sum()
        };
        let fair =
            sum(&|account| account.used + account.runs as f64 * self.charge) / sum(&|account| account.weight);
        for i in 0..self.accounts.len() {
            if let Some(Some(highest)) = queues.get(i)
                && self.had(i) > fair * (1.0 + 1e-9)
            {
                self.accounts[i].at_most = *highest;
            }
        }
    }

    /// What a tenant had of its share.
    fn had(&self, tenant: usize) -> f64 {
        let account = &self.accounts[tenant];
        (account.used + account.runs as f64 * self.charge) / account.weight
    }

    /// A tenant gets workers.
    pub(super) fn give(&mut self, tenant: usize, workers: usize) {
        self.accounts[tenant].runs += workers;
    }

    /// What was given is taken back.
    pub(super) fn take_back(&mut self, tenant: usize, workers: usize) {
        self.accounts[tenant].runs -= workers;
    }

    /// Workers that a tenant runs, and that it may run.
    pub(super) fn runs(&self, tenant: usize) -> (usize, usize) {
        (self.accounts[tenant].runs, self.accounts[tenant].may_run)
    }

    /// Workers that a tenant may still be given.
    pub(super) fn may_have(&self, tenant: usize) -> usize {
        let (runs, may) = self.runs(tenant);
        may.saturating_sub(runs)
    }

    /// The level at which a job of a tenant competes with others'.
    pub(super) fn level(&self, tenant: usize, level: i64) -> i64 {
        level.min(self.accounts[tenant].at_most)
    }
}

// === impl Line ===

impl<'a> Line<'a> {
    /// The groups' jobs, from the `next` of each.
    pub(super) fn new(groups: &'a [Group], next: Vec<usize>, accounts: &mut Accounts, times: Times) -> Self {
        let tenant_of: Vec<usize> = groups.iter().map(|group| accounts.of(group.tenant)).collect();
        let mut line = Self { groups, next, tenants: Vec::new(), turns: BinaryHeap::new(), tenant_of, times };
        let mut heads: Vec<Vec<Head>> = Vec::new();
        for group in 0..groups.len() {
            let tenant = line.tenant_of[group];
            if heads.len() <= tenant {
                heads.resize_with(tenant + 1, Vec::new);
            }
            heads[tenant].extend(line.head(group));
        }
        line.tenants = heads.into_iter().map(BinaryHeap::from).collect();
        for tenant in 0..line.tenants.len() {
            line.queue_turn(tenant, accounts);
        }
        line
    }

    fn head(&self, group: usize) -> Option<Head> {
        let first = self.groups[group].jobs.get(self.next[group])?;
        let level = level(self.groups[group].priority, first.age, self.times);
        Some(Head { level, age: first.age, earlier: Reverse(first.number), group })
    }

    fn queue_turn(&mut self, tenant: usize, accounts: &Accounts) {
        if let Some(head) = self.tenants[tenant].peek().copied() {
            let level = accounts.level(tenant, head.level);
            self.turns.push(Turn { level, had: accounts.had(tenant), head, tenant });
        }
    }

    /// The group whose first job is next, and at which level; it stands aside until it is [put back](Self::put_back).
    pub(super) fn pop(&mut self) -> Option<(usize, i64)> {
        let turn = self.turns.pop()?;
        let head = self.tenants[turn.tenant].pop()?;
        Some((head.group, turn.level))
    }

    /// The turn of a group that was popped is over. It stays in line, unless it is `closed`.
    pub(super) fn put_back(&mut self, group: usize, closed: bool, accounts: &Accounts) {
        let tenant = self.tenant_of[group];
        if !closed && let Some(head) = self.head(group) {
            self.tenants[tenant].push(head);
        }
        self.queue_turn(tenant, accounts);
    }

    /// Takes the first `n` jobs of a group that have not had their turn.
    pub(super) fn take(&mut self, group: usize, n: usize) -> &'a [Waiting] {
        let from = self.next[group];
        let to = self.groups[group].jobs.len().min(from + n);
        self.next[group] = to;
        &self.groups[group].jobs[from..to]
    }

    /// The first job of a group that has not had its turn.
    pub(super) fn first(&self, group: usize) -> Option<&'a Waiting> {
        self.groups[group].jobs.get(self.next[group])
    }

    /// Members that a job of a group needs.
    pub(super) fn min(&self, group: usize) -> usize {
        self.groups[group].shape.min
    }

    /// Whose a group is.
    pub(super) fn tenant(&self, group: usize) -> usize {
        self.tenant_of[group]
    }

    /// Where each group's turn has come.
    pub(super) fn into_next(self) -> Vec<usize> {
        self.next
    }
}

// === impl Turn ===

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let had = || other.had.total_cmp(&self.had);
        self.level
            .cmp(&other.level)
            .then_with(had)
            .then_with(|| (self.head.age, self.head.earlier).cmp(&(other.head.age, other.head.earlier)))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Turn {}
