//! Idle workers join running jobs.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::{Decision, Gang, Place, Standing, free::Free, order::Accounts};
use crate::ids::WorkerId;

/// Deals idle workers to training gangs below their maximum, one at a time: the highest priority first, then the
/// smallest gang, then the oldest. No tenant gets more than it may run.
pub(super) fn grow(
    gangs: &[Gang],
    free: &mut Free<'_>,
    accounts: &mut Accounts,
    gather: Duration,
) -> Vec<Decision> {
    free.keep_only(|worker| worker.idle >= gather);
    let mut joining: Vec<Vec<Place>> = vec![Vec::new(); gangs.len()];
    let turn = |i: usize, size: usize| (gangs[i].priority, Reverse(size), Reverse(i));
    let mut turns: BinaryHeap<_> =
        (0..gangs.len()).filter(|i| wants(&gangs[*i], 0)).map(|i| turn(i, gangs[i].seats.len())).collect();
    while free.total() > 0
        && let Some((_, Reverse(size), Reverse(i))) = turns.pop()
    {
        let (gang, tenant) = (&gangs[i], accounts.of(gangs[i].tenant));
        if accounts.may_have(tenant) == 0 {
            continue;
        }
        let place = free.take_where(&free.want_more(gang), |worker| fits(gang, &joining[i], worker.worker));
        let Some(place) = place else { continue };
        accounts.give(tenant, 1);
        joining[i].push(place);
        if wants(gang, joining[i].len()) {
            turns.push(turn(i, size + 1));
        }
    }
    let grown = gangs.iter().zip(joining).filter(|(_, places)| !places.is_empty());
    grown.map(|(gang, places)| Decision::Grow { job: gang.job, places }).collect()
}

/// It trains, and could use one more beside those that join.
fn wants(gang: &Gang, joining: usize) -> bool {
    gang.standing == Standing::Training && gang.seats.len() + joining < gang.max
}

fn fits(gang: &Gang, joining: &[Place], worker: WorkerId) -> bool {
    let there = gang.seats.iter().map(|seat| seat.worker).chain(joining.iter().map(|place| place.worker));
    !gang.barred.contains(&worker) && !there.into_iter().any(|member| member == worker)
}
