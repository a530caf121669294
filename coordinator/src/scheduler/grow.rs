//! Idle workers join running jobs.

use std::{collections::HashSet, time::Duration};

use super::{Decision, Gang, Place, Standing, Worker, free::Free};
use crate::ids::WorkerId;

/// Deals idle workers to training gangs below their maximum, one at a time: the highest priority first, then the
/// smallest gang, then the oldest.
pub(super) fn grow(gangs: &[Gang], fleet: &[Worker], free: &mut Free, gather: Duration) -> Vec<Decision> {
    let idle: HashSet<WorkerId> =
        fleet.iter().filter(|worker| worker.idle >= gather).map(|worker| worker.worker).collect();
    let mut joining: Vec<Vec<Place>> = vec![Vec::new(); gangs.len()];
    loop {
        let mut order: Vec<usize> = (0..gangs.len()).filter(|i| wants(&gangs[*i], &joining[*i])).collect();
        order.sort_by_key(|i| {
            let gang = &gangs[*i];
            (std::cmp::Reverse(gang.priority), gang.seats.len() + joining[*i].len(), *i)
        });
        let given = order.into_iter().find_map(|i| {
            let suits =
                |worker, kind: &str| idle.contains(&worker) && fits(&gangs[i], &joining[i], worker, kind);
            free.take_where(suits).map(|place| (i, place))
        });
        let Some((i, place)) = given else { break };
        joining[i].push(place);
    }
    let grown = gangs.iter().zip(joining).filter(|(_, places)| !places.is_empty());
    grown.map(|(gang, places)| Decision::Grow { job: gang.job, places }).collect()
}

/// A place that was asked to leave still counts: its worker is there until the next step boundary.
fn wants(gang: &Gang, joining: &[Place]) -> bool {
    gang.standing == Standing::Training && gang.seats.len() + joining.len() < gang.max
}

fn fits(gang: &Gang, joining: &[Place], worker: WorkerId, kind: &str) -> bool {
    let there = gang.seats.iter().map(|seat| seat.worker).chain(joining.iter().map(|place| place.worker));
    !gang.barred.contains(&worker)
        && !there.into_iter().any(|member| member == worker)
        && gang.kinds.iter().any(|own| &**own == kind)
}
