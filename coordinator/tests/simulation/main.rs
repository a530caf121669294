//! Whole gangs in simulated time: the real rules of the coordinator and of the sampler in a world of workers, network,
//! Postgres and store, each passed in, with faults drawn from a seed. A failing seed is printed; run it again with
//! `LORAFLEET_SIM_SEED`.

mod coordinator;
mod database;
mod faults;
mod messages;
mod training;
mod worker;
mod world;

use database::Job;
use training::{Dice, MICRO_BATCHES, Work, mix};
use worker::Defect;
use world::World;

/// Seeds that one test tries.
const SEEDS: u64 = 1_000;

/// Lives through one seed, perhaps with a defect.
fn live(seed: u64, defect: Option<Defect>) -> World {
    let mut dice = Dice::new(mix(seed, 1));
    let workers = dice.between(1, MICRO_BATCHES as u64 - 1) as usize;
    let jobs = dice.between(1, 2) as usize;
    let work = |dice: &mut Dice| Work::new(dice.below(1 << 40), dice.between(30, 120));
    let works: Vec<Work> = (0..jobs).map(|_| work(&mut dice)).collect();
    let job = |dice: &mut Dice, number: usize| {
        let min = dice.between(1, workers as u64) as usize;
        Job::new(number, dice.below(2) as i32, min, dice.between(min as u64, workers as u64) as usize)
    };
    let jobs: Vec<Job> = (0..jobs).map(|number| job(&mut dice, number)).collect();
    let mut world = World::new(seed, workers, jobs, works);
    world.defect = defect;
    world.plan_faults();
    world.live();
    world.check_end();
    world
}

/// The seeds of one test, or the one that is asked for.
fn seeds(test: u64) -> Vec<u64> {
    match std::env::var("LORAFLEET_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("LORAFLEET_SIM_SEED is a number")],
        Err(_) => (test * SEEDS..(test + 1) * SEEDS).collect(),
    }
}

fn live_all(test: u64) {
    let worlds: Vec<World> = seeds(test).into_iter().map(|seed| live(seed, None)).collect();
    let (lost, resumed): (u32, u32) =
        worlds.iter().fold((0, 0), |(a, b), world| (a + world.attempts_lost, b + world.resumed));
    println!("{} worlds, {lost} attempts lost, {resumed} checkpoints read", worlds.len());
}

#[test]
fn a_seed_replays() {
    for seed in seeds(0).into_iter().take(50) {
        assert_eq!(live(seed, None).story(), live(seed, None).story(), "seed {seed}");
    }
}

#[test]
fn gangs_survive_a_thousand_seeds() {
    live_all(0);
}

#[test]
fn gangs_survive_another_thousand_seeds() {
    live_all(1);
}

#[test]
fn gangs_survive_a_third_thousand_seeds() {
    live_all(2);
}

/// A defect is found out within so many seeds.
fn is_found(defect: Defect, seeds: u64) {
    let found = (0..seeds).find(|seed| std::panic::catch_unwind(|| live(*seed, Some(defect))).is_err());
    assert!(found.is_some(), "{defect:?} was not found in {seeds} seeds");
}

#[test]
fn fences_that_are_off_are_found() {
    is_found(Defect::FenceOff, 4 * SEEDS);
}

#[test]
fn a_deal_by_the_old_membership_is_found() {
    is_found(Defect::DealByOldMembership, SEEDS);
}

#[test]
fn a_broadcast_in_place_is_found() {
    is_found(Defect::BroadcastInPlace, SEEDS);
}

#[test]
fn a_state_that_is_dropped_is_found() {
    is_found(Defect::ForgetState, SEEDS);
}
