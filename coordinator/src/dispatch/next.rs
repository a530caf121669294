//! What to tell a worker about a place that it holds: pure, given what it was told before and what it lists.

use lorafleet_proto::v1 as pb;

use crate::{
    ids::Fence,
    job::{AttemptState, Phase},
    queue::Held,
};

/// Heartbeats without a trace of what was told after which it is told again.
const TELL_AGAIN: u64 = 3;
/// Heartbeats that do not list a place which had loaded after which its worker has lost it.
const FORGOTTEN_AFTER: u64 = 3;
/// Heartbeats without a trace of a job that was told to stop after which it counts as stopped.
const STOPPED_AFTER: u64 = 2;

/// What was told about one place on one stream, counted in heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) assign: Option<u64>,
    pub(super) regroup: Option<(Fence, u64)>,
    pub(super) leave: Option<u64>,
    pub(super) stop: Option<u64>,
    pub(super) missing: Option<u64>,
}

/// What to tell a worker about a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Assign,
    Begin,
    Regroup,
    Leave(String),
    Stop(pb::StopReason),
    /// Nothing: it has stopped without saying so.
    HasStopped,
    /// Nothing: it had loaded, and knows of it no more.
    HasForgotten,
}

/// What the stream shows about the place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    /// The fence under which the worker lists it, if it does.
    pub(super) listed: Option<&'a Fence>,
    /// The generation that it was told to begin on this stream, and at which heartbeat.
    pub(super) begun: Option<&'a (Fence, u64)>,
    /// Heartbeats on this stream so far.
    pub(super) heartbeats: u64,
}

/// What to tell about a place that is held.
pub(super) fn next(held: &Held, told: &mut Told, shown: Shown<'_>) -> Vec<Tell> {
    if matches!(held.phase, Phase::Closing | Phase::Ended) {
        return stop(held, told, shown).into_iter().collect();
    }
    let mut tell: Vec<Tell> = assign(held, told, shown).into_iter().collect();
    if tell.contains(&Tell::HasForgotten) {
        return tell;
    }
    let is_member = held.phase == Phase::Training && held.index.is_some();
    if is_member && shown.listed != Some(&held.fence) && begin_is_due(held, shown) {
        tell.push(Tell::Begin);
    }
    let asked = told.regroup.as_ref().filter(|(fence, _)| *fence == held.fence).map(|(_, at)| *at);
    if is_member && held.regroup && !held.parted && is_due(asked, shown.heartbeats) {
        tell.push(Tell::Regroup);
        told.regroup = Some((held.fence.clone(), shown.heartbeats));
    }
    if let Some(reason) = &held.leaving
        && is_due(told.leave, shown.heartbeats)
    {
        tell.push(Tell::Leave(reason.clone()));
        told.leave = Some(shown.heartbeats);
    }
    tell
}

fn stop(held: &Held, told: &mut Told, shown: Shown<'_>) -> Option<Tell> {
    match told.stop {
        Some(at) if shown.listed.is_none() && shown.heartbeats >= at + STOPPED_AFTER => {
            Some(Tell::HasStopped)
        }
        Some(at) if shown.heartbeats < at + TELL_AGAIN => None,
        _ => {
            told.stop = Some(shown.heartbeats);
            Some(Tell::Stop(stop_reason(held.state)))
        }
    }
}

fn assign(held: &Held, told: &mut Told, shown: Shown<'_>) -> Option<Tell> {
    if shown.listed.is_some() {
        // It has the assignment, maybe from another coordinator.
        told.assign.get_or_insert(shown.heartbeats);
        told.missing = None;
        return None;
    }
    if held.ready {
        // A place is loaded once: its holder would come back without the state that the others count on.
        let since = *told.missing.get_or_insert(shown.heartbeats);
        return (shown.heartbeats >= since + FORGOTTEN_AFTER).then_some(Tell::HasForgotten);
    }
    if !is_due(told.assign, shown.heartbeats) {
        return None;
    }
    *told = Told { assign: Some(shown.heartbeats), ..Told::default() };
    Some(Tell::Assign)
}

fn begin_is_due(held: &Held, shown: Shown<'_>) -> bool {
    match shown.begun {
        Some((fence, at)) if *fence == held.fence => shown.heartbeats >= at + TELL_AGAIN,
        _ => true,
    }
}

fn is_due(told: Option<u64>, heartbeats: u64) -> bool {
    told.is_none_or(|at| heartbeats >= at + TELL_AGAIN)
}

/// Why the members of an attempt in this state are to stop.
pub(super) fn stop_reason(state: AttemptState) -> pb::StopReason {
    match state {
        AttemptState::Cancelled => pb::StopReason::Cancelled,
        AttemptState::Running | AttemptState::Lost | AttemptState::Released => pb::StopReason::GangLost,
        AttemptState::Succeeded | AttemptState::Failed => pb::StopReason::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, PlaceNo, RunId, WorkerId};

    fn held(state: AttemptState, phase: Phase) -> Held {
        let fence = if phase == Phase::Loading { Fence::loading(1) } else { Fence::loading(1).next(0) };
        Held {
            worker: WorkerId::random(),
            run: RunId { job: JobId::new(), attempt: 1, place: PlaceNo(1) },
            fence,
            index: (phase != Phase::Loading).then_some(0),
            state,
            phase,
            ready: phase != Phase::Loading,
            parted: false,
            leaving: None,
            regroup: false,
        }
    }

    fn silent(heartbeats: u64) -> Shown<'static> {
        Shown { listed: None, begun: None, heartbeats }
    }

    #[test]
    fn an_assignment_is_told_once_and_again_when_it_leaves_no_trace() {
        let place = held(AttemptState::Running, Phase::Loading);
        let mut told = Told::default();
        assert_eq!(next(&place, &mut told, silent(1)), [Tell::Assign]);
        assert_eq!(next(&place, &mut told, silent(2)), []);
        assert_eq!(next(&place, &mut told, silent(1 + TELL_AGAIN)), [Tell::Assign]);
        let listed = Shown { listed: Some(&place.fence), ..silent(100) };
        assert_eq!(next(&place, &mut told, listed), []);
    }

    #[test]
    fn a_generation_is_told_until_the_worker_shows_it() {
        let place = held(AttemptState::Running, Phase::Training);
        let (before, mut told) = (Fence::loading(1), Told::default());
        let loading = |begun, heartbeats| Shown { listed: Some(&before), begun, heartbeats };
        assert_eq!(next(&place, &mut told, loading(None, 1)), [Tell::Begin]);
        let begun = (place.fence.clone(), 1);
        assert_eq!(next(&place, &mut told, loading(Some(&begun), 2)), []);
        assert_eq!(next(&place, &mut told, loading(Some(&begun), 1 + TELL_AGAIN)), [Tell::Begin]);
        let shows = Shown { listed: Some(&place.fence), begun: None, heartbeats: 9 };
        assert_eq!(next(&place, &mut told, shows), []);
    }

    #[test]
    fn a_place_that_had_loaded_is_not_assigned_again() {
        let place = held(AttemptState::Running, Phase::Training);
        let mut told = Told::default();
        assert_eq!(next(&place, &mut told, silent(1)), [Tell::Begin]);
        assert_eq!(next(&place, &mut told, silent(1 + FORGOTTEN_AFTER)), [Tell::HasForgotten]);
    }

    #[test]
    fn members_are_asked_to_part_while_there_is_cause_and_they_have_not() {
        let place = Held { regroup: true, ..held(AttemptState::Running, Phase::Training) };
        let mut told = Told::default();
        let shows = |heartbeats| Shown { listed: Some(&place.fence), begun: None, heartbeats };
        assert_eq!(next(&place, &mut told, shows(1)), [Tell::Regroup]);
        assert_eq!(next(&place, &mut told, shows(2)), []);
        assert_eq!(next(&place, &mut told, shows(1 + TELL_AGAIN)), [Tell::Regroup]);
        let parted = Held { parted: true, ..place.clone() };
        assert_eq!(next(&parted, &mut Told::default(), shows(1)), []);
    }

    #[test]
    fn a_place_that_is_to_be_given_back_is_asked_for() {
        let place = Held { leaving: Some("wanted".into()), ..held(AttemptState::Running, Phase::Training) };
        let shows = Shown { listed: Some(&place.fence), begun: None, heartbeats: 1 };
        assert_eq!(next(&place, &mut Told::default(), shows), [Tell::Leave("wanted".into())]);
    }

    #[test]
    fn a_stop_is_repeated_until_the_job_is_gone() {
        let place = held(AttemptState::Cancelled, Phase::Ended);
        let mut told = Told::default();
        let listed = |heartbeats| Shown { listed: Some(&place.fence), begun: None, heartbeats };
        assert_eq!(next(&place, &mut told, listed(1)), [Tell::Stop(pb::StopReason::Cancelled)]);
        assert_eq!(next(&place, &mut told, listed(2)), []);
        assert_eq!(next(&place, &mut told, listed(1 + TELL_AGAIN)), [Tell::Stop(pb::StopReason::Cancelled)]);
        assert_eq!(next(&place, &mut told, silent(1 + TELL_AGAIN + STOPPED_AFTER)), [Tell::HasStopped]);
    }

    #[test]
    fn a_gang_that_lost_a_member_before_it_began_is_told_so() {
        let place = held(AttemptState::Running, Phase::Closing);
        let listed = Shown { listed: Some(&place.fence), begun: None, heartbeats: 1 };
        assert_eq!(next(&place, &mut Told::default(), listed), [Tell::Stop(pb::StopReason::GangLost)]);
    }
}
