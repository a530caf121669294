//! Every order of events in small gangs, with faults; and mutants of the protocol, which must be found out.

use lorafleet_model::{AGAIN, Faults, Gangs, Mutant, ONCE, WHOLE};
use stateright::{Checker, HasDiscoveries, Model as _};

const NONE: Faults = Faults { crashes: 0, silences: 0, cuts: 0, failovers: 0, leaves: 0 };

/// A fleet of which some start, and a job of so many steps.
fn gangs(workers: u8, starters: u8, steps: u8, faults: Faults) -> Gangs {
    Gangs { workers, starters, steps, checkpoints: false, faults, victim: None, mutant: None }
}

/// Tries every order; whatever can be reached keeps the invariants.
fn holds(gangs: Gangs) {
    judge(&gangs.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join());
}

/// Tries the shortest orders, where all are too many for a test.
fn holds_for(states: usize, gangs: Gangs) {
    let checker = gangs.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(states);
    judge(&checker.spawn_bfs().join());
}

fn judge(checker: &impl Checker<Gangs>) {
    println!("{} states, the longest order has {}", checker.unique_state_count(), checker.max_depth());
    if let Some((name, path)) = checker.discoveries().into_iter().next() {
        let last = path.last_state().clone();
        let actions: String = path.into_actions().iter().map(|action| format!("  {action:?}\n")).collect();
        panic!("it does not hold that {name}; after\n{actions}stands\n{last:#?}");
    }
}

/// A mutant is found out by this invariant.
fn falls(mutant: Mutant, gangs: Gangs, invariant: &'static str) {
    let found = HasDiscoveries::AllOf(std::iter::once(invariant).collect());
    let mutated = Gangs { mutant: Some(mutant), ..gangs };
    let checker = mutated.checker().finish_when(found).spawn_bfs().join();
    let path = checker.discovery(invariant);
    assert!(path.is_some(), "{mutant:?} was not found out: {invariant}");
}

#[test]
fn a_member_dies() {
    holds(gangs(2, 2, 3, Faults { crashes: 1, ..NONE }));
}

#[test]
fn all_die_and_the_job_resumes_from_its_checkpoints() {
    holds(Gangs { checkpoints: true, ..gangs(2, 2, 2, Faults { crashes: 2, ..NONE }) });
}

#[test]
fn all_die_twice() {
    holds(Gangs { checkpoints: true, ..gangs(2, 2, 2, Faults { crashes: 3, ..NONE }) });
}

#[test]
fn any_two_of_three_die() {
    holds(gangs(3, 3, 2, Faults { crashes: 2, ..NONE }));
}

#[test]
fn a_newcomer_enters_while_one_of_two_dies() {
    holds(gangs(3, 2, 2, Faults { crashes: 1, ..NONE }));
}

#[test]
fn a_newcomer_enters_while_any_two_die() {
    holds(gangs(3, 2, 1, Faults { crashes: 2, ..NONE }));
}

#[test]
fn a_member_freezes_and_comes_back() {
    holds(gangs(2, 2, 2, Faults { silences: 1, ..NONE }));
}

#[test]
fn a_member_of_three_freezes_and_comes_back() {
    holds(Gangs { victim: Some(0), ..gangs(3, 3, 1, Faults { silences: 1, ..NONE }) });
}

#[test]
fn a_member_freezes_while_another_dies() {
    holds(gangs(2, 2, 2, Faults { silences: 1, crashes: 1, ..NONE }));
}

#[test]
fn all_leave_politely() {
    holds(gangs(2, 2, 2, Faults { leaves: 2, ..NONE }));
}

#[test]
fn a_member_leaves_politely_while_one_dies() {
    holds(gangs(2, 2, 2, Faults { leaves: 1, crashes: 1, ..NONE }));
}

#[test]
fn a_newcomer_enters_while_a_member_leaves() {
    holds(gangs(3, 2, 2, Faults { leaves: 1, ..NONE }));
}

#[test]
fn two_members_can_not_reach_each_other() {
    holds(gangs(2, 2, 2, Faults { cuts: 1, crashes: 1, ..NONE }));
}

#[test]
fn two_of_three_can_not_reach_each_other() {
    holds(gangs(3, 3, 2, Faults { cuts: 1, ..NONE }));
}

#[test]
fn a_newcomer_can_not_reach_a_member() {
    holds(gangs(3, 2, 2, Faults { cuts: 1, ..NONE }));
}

#[test]
fn the_database_forgets_its_last_commit() {
    holds(Gangs { checkpoints: true, ..gangs(2, 2, 2, Faults { failovers: 1, ..NONE }) });
}

#[test]
fn the_database_forgets_while_a_member_dies() {
    holds(gangs(2, 2, 1, Faults { failovers: 1, crashes: 1, ..NONE }));
}

#[test]
fn the_database_forgets_while_a_member_freezes() {
    holds_for(300_000, gangs(2, 2, 1, Faults { failovers: 1, silences: 1, ..NONE }));
}

#[test]
fn the_database_forgets_while_a_newcomer_enters() {
    holds(gangs(2, 1, 2, Faults { failovers: 1, ..NONE }));
}

#[test]
fn fences_compared_by_number_are_found_out() {
    falls(Mutant::FenceByNumber, gangs(2, 2, 1, Faults { failovers: 1, silences: 1, ..NONE }), ONCE);
}

#[test]
fn dealing_by_the_old_membership_is_found_out() {
    falls(Mutant::DealByOldMembership, gangs(2, 2, 1, Faults { crashes: 1, ..NONE }), ONCE);
}

#[test]
fn a_broadcast_in_place_is_found_out() {
    falls(Mutant::BroadcastInPlace, gangs(2, 2, 2, Faults { silences: 1, ..NONE }), WHOLE);
}

#[test]
fn opening_without_waiting_for_partings_is_found_out() {
    falls(Mutant::OpenEarly, gangs(2, 2, 2, Faults { silences: 1, ..NONE }), AGAIN);
}
