//! The rule's cases, and what holds in all of them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn seat(place: u32, standing: Standing) -> Seat {
    Seat { place: PlaceNo(place), index: Some(place - 1), standing, stream: Stream::Open, step: 7 }
}

fn newcomer(place: u32, standing: Standing) -> Seat {
    Seat { index: None, ..seat(place, standing) }
}

/// Parted with evidence against these indices.
fn parted(suspicions: &[(u32, Evidence)]) -> Standing {
    let suspicion = |(index, evidence): &(u32, Evidence)| Suspicion { index: *index, evidence: *evidence };
    Standing::Parted(suspicions.iter().map(suspicion).collect())
}

fn view(phase: Phase, seats: Vec<Seat>) -> View {
    View { min: 1, phase, seats, waited: Duration::ZERO, progressed: true, overdue: false }
}

fn gang(seats: Vec<Seat>) -> View {
    view(Phase::Training, seats)
}

fn after(view: &View, waited: Duration) -> Decision {
    decide(&View { waited, ..view.clone() })
}

/// The next generation's places and those that end.
fn opened(decision: Decision) -> (Vec<u32>, Vec<(u32, Why)>) {
    let Decision::Open { members, removed } = decision else { panic!("nothing is opened: {decision:?}") };
    let removed = removed.into_iter().map(|removal| (removal.place.0, removal.why)).collect();
    (members.into_iter().map(|place| place.0).collect(), removed)
}

const WAIT: Decision = Decision::Wait { again: None, regroup: false };
const REGROUP: Decision = Decision::Wait { again: None, regroup: true };

#[test]
fn a_gang_begins_when_all_are_ready_and_closes_below_its_minimum() {
    let loading = |seats| View { min: 2, ..view(Phase::Loading, seats) };
    let fresh = |place, standing| newcomer(place, standing);
    let half = loading(vec![fresh(1, Standing::Ready), fresh(2, Standing::Loading)]);
    assert_eq!(decide(&half), WAIT);
    assert_eq!(decide(&View { overdue: true, ..half.clone() }), Decision::Close);
    let late = View { overdue: true, min: 1, ..half };
    assert_eq!(opened(decide(&late)), (vec![1], vec![(2, Why::Late)]));
    let lost = Standing::Ended(MemberOutcome::Lost);
    let all = loading(vec![fresh(1, Standing::Ready), fresh(2, Standing::Ready), fresh(3, lost.clone())]);
    assert_eq!(opened(decide(&all)), (vec![1, 2], vec![]));
    assert_eq!(decide(&loading(vec![fresh(1, Standing::Ready), fresh(2, lost)])), Decision::Close);
}

#[test]
fn a_member_whose_sockets_closed_is_not_waited_for() {
    let gone = Seat { stream: Stream::Closed, ..seat(2, Standing::Ready) };
    let blames = || parted(&[(1, Evidence::Gone)]);
    let dead = Why::Dead { evidence: Evidence::Gone, by: vec![0, 2] };
    let closed = gang(vec![seat(1, blames()), gone.clone(), seat(3, blames())]);
    assert_eq!(opened(decide(&closed)), (vec![1, 3], vec![(2, dead.clone())]));
    let elsewhere = Seat { stream: Stream::Unknown, ..gone };
    let unsure = gang(vec![seat(1, blames()), elsewhere, seat(3, blames())]);
    assert_eq!(decide(&unsure), Decision::Wait { again: Some(GONE_GRACE), regroup: false });
    assert_eq!(opened(after(&unsure, GONE_GRACE)), (vec![1, 3], vec![(2, dead)]));
}

#[test]
fn the_silent_get_longer_and_the_quiet_longest() {
    let all = gang(vec![
        seat(1, parted(&[(1, Evidence::Silent)])),
        seat(2, Standing::Ready),
        seat(3, Standing::Ready),
    ]);
    assert_eq!(decide(&all), Decision::Wait { again: Some(SILENT_GRACE), regroup: false });
    let left = QUIET_GRACE.checked_sub(SILENT_GRACE);
    assert_eq!(after(&all, SILENT_GRACE), Decision::Wait { again: left, regroup: false });
    let dead = Why::Dead { evidence: Evidence::Silent, by: vec![0] };
    assert_eq!(opened(after(&all, QUIET_GRACE)), (vec![1], vec![(2, dead), (3, Why::Quiet)]));
}

#[test]
fn a_majority_need_not_wait_long_for_the_silent() {
    let silent = || parted(&[(2, Evidence::Silent)]);
    let all = gang(vec![seat(1, silent()), seat(2, silent()), seat(3, Standing::Ready)]);
    assert_eq!(decide(&all), Decision::Wait { again: Some(MAJORITY_GRACE), regroup: false });
    assert_eq!(opened(after(&all, MAJORITY_GRACE)).0, [1, 2]);
}

#[test]
fn what_a_member_holds_counts_more_than_its_links() {
    let silent = |other| parted(&[(other, Evidence::Silent)]);
    let new = |place, other| Seat { step: 0, ..seat(place, silent(other)) };
    // Place 1 alone has finished steps; those that joined a moment ago cannot reach it, but each other.
    let gang = gang(vec![seat(1, silent(1)), new(2, 0), new(3, 0)]);
    let (members, removed) = opened(decide(&gang));
    assert_eq!(members, [1]);
    assert_eq!(removed.iter().map(|(place, _)| *place).collect::<BTreeSet<_>>(), BTreeSet::from([2, 3]));
}

#[test]
fn two_that_blame_each_other_lose_the_higher_index_and_a_third_decides() {
    let cut = |from: &[u32]| Why::Cut { from: from.to_vec() };
    let silent = |index| parted(&[(index, Evidence::Silent)]);
    let two = gang(vec![seat(1, silent(1)), seat(2, silent(0))]);
    assert_eq!(opened(decide(&two)), (vec![1], vec![(2, cut(&[0]))]));
    // The first reaches nobody, the others reach each other.
    let three = gang(vec![
        seat(1, parted(&[(1, Evidence::Silent), (2, Evidence::Silent)])),
        seat(2, silent(0)),
        seat(3, parted(&[])),
    ]);
    assert_eq!(opened(decide(&three)), (vec![2, 3], vec![(1, cut(&[1, 2]))]));
    // One that hangs and does not complain goes before the one that waits for it.
    let stuck = gang(vec![seat(1, parted(&[])), seat(2, parted(&[(0, Evidence::Stuck)]))]);
    assert_eq!(opened(decide(&stuck)), (vec![2], vec![(1, cut(&[1]))]));
}

#[test]
fn a_connection_that_closed_between_the_living_is_tried_again_once() {
    let gone = |index| parted(&[(index, Evidence::Gone)]);
    let two = gang(vec![seat(1, gone(1)), seat(2, gone(0))]);
    assert_eq!(opened(decide(&two)), (vec![1, 2], vec![]));
    let again = View { progressed: false, ..two };
    assert_eq!(opened(decide(&again)), (vec![1], vec![(2, Why::Cut { from: vec![0] })]));
}

#[test]
fn newcomers_make_the_others_part_and_come_last() {
    let grow = |standing: Standing| {
        gang(vec![seat(1, standing.clone()), newcomer(3, Standing::Ready), seat(2, standing)])
    };
    assert_eq!(decide(&grow(Standing::Ready)), REGROUP);
    assert_eq!(opened(decide(&grow(parted(&[])))), (vec![1, 2, 3], vec![]));
    let loads = gang(vec![seat(1, Standing::Ready), newcomer(2, Standing::Loading)]);
    assert_eq!(decide(&loads), WAIT, "nobody waits for one that loads");
}

#[test]
fn one_that_left_or_lost_its_lease_makes_the_others_part() {
    for outcome in [MemberOutcome::Released, MemberOutcome::Lost] {
        let ended = seat(1, Standing::Ended(outcome));
        assert_eq!(decide(&gang(vec![ended.clone(), seat(2, Standing::Ready)])), REGROUP);
        assert_eq!(opened(decide(&gang(vec![ended, seat(2, parted(&[]))]))), (vec![2], vec![]));
    }
}

#[test]
fn when_all_left_it_is_released_and_when_one_was_lost_it_is_lost() {
    let ended = |place, outcome| seat(place, Standing::Ended(outcome));
    let of = |a, b| decide(&gang(vec![ended(1, a), ended(2, b), newcomer(3, Standing::Ready)]));
    use MemberOutcome::{Lost, Released, Stopped};
    assert_eq!(of(Released, Released), Decision::Dissolve { released: true });
    assert_eq!(of(Released, Lost), Decision::Dissolve { released: false });
    let closing = |a, b| decide(&view(Phase::Closing, vec![ended(1, a), ended(2, b)]));
    assert_eq!(closing(Released, Stopped), Decision::Dissolve { released: true });
    assert_eq!(closing(Stopped, Stopped), Decision::Dissolve { released: false });
    assert_eq!(decide(&view(Phase::Closing, vec![ended(1, Stopped), seat(2, Standing::Ready)])), WAIT);
}

fn evidence() -> impl Strategy<Value = Evidence> {
    prop::sample::select(vec![Evidence::Gone, Evidence::Unreachable, Evidence::Silent, Evidence::Stuck])
}

fn standing() -> impl Strategy<Value = Standing> {
    let suspicions = prop::collection::vec((0u32..6, evidence()), 0..4);
    prop_oneof![
        2 => Just(Standing::Ready),
        4 => suspicions.prop_map(|list| parted(&list)),
        1 => prop::sample::select(MemberOutcome::ALL.to_vec()).prop_map(Standing::Ended),
    ]
}

fn gangs() -> impl Strategy<Value = View> {
    let stream = prop::sample::select(vec![Stream::Open, Stream::Unknown, Stream::Closed]);
    let members = prop::collection::vec((standing(), stream), 1..6);
    let newcomers = prop::collection::vec(any::<bool>(), 0..3);
    (members, newcomers, 0u64..6000, any::<bool>()).prop_map(|(members, newcomers, millis, progressed)| {
        let members = members.into_iter().zip(1..);
        let mut seats: Vec<Seat> =
            members.map(|((standing, stream), place)| Seat { stream, ..seat(place, standing) }).collect();
        // What is said about oneself says nothing.
        for seat in &mut seats {
            if let Standing::Parted(suspicions) = &mut seat.standing {
                suspicions.retain(|suspicion| Some(suspicion.index) != seat.index);
            }
        }
        let loaded = |ready| if ready { Standing::Ready } else { Standing::Loading };
        seats.extend(newcomers.into_iter().zip(11..).map(|(ready, place)| newcomer(place, loaded(ready))));
        View { waited: Duration::from_millis(millis), progressed, ..gang(seats) }
    })
}

fn suspicions(seat: &Seat) -> &[Suspicion] {
    if let Standing::Parted(suspicions) = &seat.standing { suspicions } else { &[] }
}

proptest! {
    #[test]
    fn decisions_are_sound(view in gangs()) {
        let decision = decide(&view);
        prop_assert_eq!(&decision, &decide(&view), "same view, same decision");
        let find = |place: PlaceNo| view.seats.iter().find(|seat| seat.place == place).expect("a seat");
        match decision {
            Decision::Open { members, removed } => {
                let next: Vec<&Seat> = members.iter().map(|place| find(*place)).collect();
                let old: Vec<u32> = next.iter().filter_map(|seat| seat.index).collect();
                prop_assert!(!old.is_empty(), "one that holds the state goes on");
                prop_assert!(old.windows(2).all(|pair| pair[0] < pair[1]), "survivors keep their order");
                prop_assert!(next[..old.len()].iter().all(|seat| seat.index.is_some()), "newcomers come last");
                for seat in &next {
                    let may = if seat.index.is_some() {
                        matches!(seat.standing, Standing::Parted(_))
                    } else {
                        seat.standing == Standing::Ready
                    };
                    prop_assert!(may, "only who waits for it is taken along: {:?}", seat);
                }
                let gone: BTreeSet<PlaceNo> = removed.iter().map(|removal| removal.place).collect();
                prop_assert_eq!(gone.len(), removed.len());
                for seat in &view.seats {
                    let ended = matches!(seat.standing, Standing::Ended(_));
                    let loads = seat.standing == Standing::Loading;
                    let named = usize::from(gone.contains(&seat.place))
                        + usize::from(members.contains(&seat.place));
                    prop_assert_eq!(named, usize::from(!ended && !loads), "each goes on or ends: {:?}", seat);
                }
                for a in &next {
                    for suspicion in suspicions(a) {
                        let counts = suspicion.evidence != Evidence::Gone || !view.progressed;
                        prop_assert!(!(counts && old.contains(&suspicion.index)), "no bad link is left");
                    }
                }
            }
            Decision::Wait { again, .. } => {
                let parted = view.seats.iter().any(|seat| matches!(seat.standing, Standing::Parted(_)));
                prop_assert_eq!(again.is_some(), parted, "a broken gang is looked at again");
                prop_assert!(view.seats.iter().any(|s| s.index.is_some() && s.standing == Standing::Ready));
            }
            Decision::Dissolve { .. } => {
                prop_assert!(view.seats.iter().all(|s| s.index.is_none() || s.has_ended()));
            }
            Decision::Close => prop_assert!(false, "survivors are never too few"),
        }
    }

    /// Whatever its members say or leave unsaid: once one has parted, waiting ends.
    #[test]
    fn a_broken_gang_goes_on_within_the_longest_grace(view in gangs()) {
        let mut view = View { waited: Duration::ZERO, ..view };
        let parted = view.seats.iter().any(|seat| matches!(seat.standing, Standing::Parted(_)));
        for _ in 0..4 {
            let Decision::Wait { again, .. } = decide(&view) else { return Ok(()) };
            let Some(again) = again else {
                prop_assert!(!parted);
                return Ok(());
            };
            prop_assert!(again > Duration::ZERO);
            view.waited += again;
            prop_assert!(view.waited <= QUIET_GRACE);
        }
        prop_assert!(false, "it waits for ever: {:?}", view);
    }

    /// One that parted, complains about nobody and that nobody complains about goes on.
    #[test]
    fn the_blameless_go_on(view in gangs()) {
        let Decision::Open { members, .. } = decide(&view) else { return Ok(()) };
        for seat in view.seats.iter().filter(|seat| seat.standing == parted(&[])) {
            let accused = view.seats.iter().any(|other| {
                suspicions(other).iter().any(|suspicion| Some(suspicion.index) == seat.index)
            });
            prop_assert!(accused || members.contains(&seat.place));
        }
    }
}
