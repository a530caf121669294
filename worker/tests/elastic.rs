//! Gangs that change while they train: whoever dies, comes or leaves, the adapter is the same file.

#![allow(clippy::unwrap_used)]

mod gang;
mod support;

use std::collections::BTreeMap;

use gang::{Bomb, Deed, Gang, Trace, What};
use lorafleet_proto::v1 as pb;
use pb::finished::Outcome;
use support::Fleet;

/// Trains the job on a gang of this size, with these bombs by place, while these deeds are done.
fn train(fleet: &Fleet, spec: &pb::JobSpec, size: u32, bombs: &[(u32, Bomb)], deeds: &[Deed]) -> Traces {
    static ATTEMPT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let attempt = ATTEMPT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let mut gang = Gang::new(fleet, spec, attempt, &[]);
    for place in 1..=size {
        gang.place(bombs.iter().find(|(at, _)| *at == place).map(|(_, bomb)| *bomb));
    }
    let places = gang.run(deeds);
    Traces { places, generations: gang.generations() }
}

struct Traces {
    places: BTreeMap<u32, Trace>,
    generations: u32,
}

impl Traces {
    /// The adapter's sha256, which every place that came to the end tells alike; how many did.
    fn adapter(&self) -> (String, usize) {
        let results: Vec<&pb::JobResult> = self.places.values().filter_map(Trace::result).collect();
        let outcomes: Vec<_> = self.places.values().map(|trace| &trace.outcome).collect();
        let first = results.first().unwrap_or_else(|| panic!("nobody succeeded: {outcomes:?}"));
        assert!(results.iter().all(|result| result == first), "members tell different results");
        (first.adapter_sha256.clone(), results.len())
    }

    /// Every member that came to the end keeps one point of each step, and no checkpoint was read.
    fn assert_nothing_lost(&self, steps: u64) {
        for (place, trace) in &self.places {
            assert!(!trace.kinds().contains(&"resumed"), "{place} read a checkpoint");
            if trace.result().is_some() {
                let points: Vec<u64> = trace.points.keys().copied().collect();
                assert_eq!(points, (0..=steps).collect::<Vec<_>>(), "points that place {place} keeps");
            }
        }
    }
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn deed(who: u32, after: u64, what: What) -> Deed {
    Deed { who, after, what }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_costs_nothing() {
    let fleet = Fleet::start().await;
    let spec = fleet.spec(7);
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        for bombs in [
            &[(2, Bomb::Point(4))][..],
            &[(1, Bomb::Point(4))],
            &[(1, Bomb::Point(2)), (3, Bomb::Point(5))],
            // Two at once, one of them within an evaluation's record.
            &[(1, Bomb::Evaluated(3)), (2, Bomb::Point(3))],
        ] {
            let traces = train(&fleet, &spec, 3, bombs, &[]);
            let (adapter, left) = traces.adapter();
            assert_eq!(adapter, undisturbed, "{bombs:?}");
            // One that gets the step from another by broadcast does not come to where it was to die.
            assert!((3 - bombs.len()..3).contains(&left), "{bombs:?}: {left} are left");
            assert!(traces.generations > 1, "{bombs:?}");
            traces.assert_nothing_lost(7);
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_at_step_boundaries() {
    let fleet = Fleet::start().await;
    let spec = fleet.spec(10);
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        let traces = train(&fleet, &spec, 1, &[], &[deed(1, 2, What::Join), deed(1, 4, What::Join)]);
        assert_eq!((traces.adapter(), traces.generations), ((undisturbed.clone(), 3), 3));
        traces.assert_nothing_lost(10);
        let traces = train(&fleet, &spec, 3, &[], &[deed(2, 3, What::Leave(1)), deed(3, 6, What::Leave(2))]);
        assert_eq!(traces.adapter(), (undisturbed.clone(), 1));
        assert!(
            traces.places[&3].parted.iter().all(|parted| parted.polite),
            "{:?}",
            traces.places[&3].parted
        );
        assert!(matches!(traces.places[&1].outcome, Some(Outcome::Released(_))));
        traces.assert_nothing_lost(10);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_while_it_gives_its_state_harms_nobody() {
    let fleet = Fleet::start().await;
    let mut spec = fleet.spec(10);
    // A checkpoint asks for what is not acknowledged, too: there is none before the gift.
    spec.checkpoint.as_mut().unwrap().every = 100;
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        let traces = train(&fleet, &spec, 2, &[(1, Bomb::Give)], &[deed(1, 2, What::Join)]);
        assert_eq!(traces.adapter(), (undisturbed, 2));
        assert!(traces.places[&1].outcome.is_none() && traces.generations > 2);
        traces.assert_nothing_lost(10);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_that_leaves_whole_writes_a_checkpoint_and_resumes() {
    let fleet = Fleet::start().await;
    let mut spec = fleet.spec(12);
    spec.checkpoint.as_mut().unwrap().every = 100;
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        let traces = train(&fleet, &spec, 2, &[], &[deed(1, 4, What::LeaveAll)]);
        let Some(Outcome::Released(pb::Released { step })) = traces.places[&1].outcome else { panic!() };
        assert_eq!(traces.places[&2].outcome, traces.places[&1].outcome);
        let resume = &traces.places[&1].checkpoints;
        assert_eq!(resume.len(), 1);
        assert!((4..12).contains(&step) && resume[0].step == step);
        let mut gang = Gang::new(&fleet, &spec, 1000, resume);
        (0..3).for_each(|_| gang.place(None));
        let traces = Traces { places: gang.run(&[]), generations: 1 };
        assert_eq!(traces.adapter(), (undisturbed, 3));
        assert!(traces.places.values().all(|trace| trace.kinds().contains(&"resumed")));
    });
}

/// A member that is put out ends alone; the others were told nothing of a breakage by themselves, and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_stopped_leaves_the_others_whole() {
    let fleet = Fleet::start().await;
    let spec = fleet.spec(8);
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        let deeds = [deed(1, 3, What::Stop(2)), deed(3, 5, What::Regroup)];
        let traces = train(&fleet, &spec, 3, &[], &deeds);
        assert_eq!(traces.adapter(), (undisturbed, 2));
        assert!(matches!(traces.places[&2].outcome, Some(Outcome::Stopped(_))));
        // The step in flight needs place 1, which goes on only after the stop.
        assert!(traces.places[&2].points.keys().max() <= Some(&3));
        traces.assert_nothing_lost(8);
    });
}

/// Cancelling takes effect within a step: none is finished after that in which the word came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_stopped_takes_no_further_step() {
    let fleet = Fleet::start_tiny().await;
    let spec = fleet.spec(100_000);
    blocking(|| {
        let traces = train(&fleet, &spec, 1, &[], &[deed(1, 3, What::Stop(1))]);
        assert!(matches!(traces.places[&1].outcome, Some(Outcome::Stopped(_))));
        assert_eq!(traces.places[&1].points.keys().max(), Some(&3));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_member_without_the_coordinator_writes_a_checkpoint_and_gives_up() {
    let fleet = Fleet::start().await;
    let mut spec = fleet.spec(8);
    spec.checkpoint.as_mut().unwrap().every = 100;
    blocking(|| {
        let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
        let traces = train(&fleet, &spec, 2, &[(2, Bomb::Point(4))], &[deed(1, 2, What::Away)]);
        let alone = &traces.places[&1];
        assert!(matches!(&alone.outcome, Some(Outcome::Lost(lost)) if lost.message.contains("coordinator")));
        let [checkpoint] = alone.checkpoints.as_slice() else { panic!("{:?}", alone.checkpoints) };
        assert!(checkpoint.step >= 3, "{checkpoint:?}");
        let mut gang = Gang::new(&fleet, &spec, 1000, &alone.checkpoints);
        (0..2).for_each(|_| gang.place(None));
        let traces = Traces { places: gang.run(&[]), generations: 1 };
        assert_eq!(traces.adapter(), (undisturbed, 2));
    });
}

/// Of a job that resumed, every checkpoint tells of which: also those of members that came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_knows_what_its_gang_resumed_from() {
    let fleet = Fleet::start_tiny().await;
    let spec = fleet.spec(12);
    blocking(|| {
        let first = train(&fleet, &spec, 1, &[], &[deed(1, 4, What::LeaveAll)]);
        let resume = &first.places[&1].checkpoints[..];
        let newest = resume.iter().max_by_key(|checkpoint| checkpoint.step).unwrap().clone();
        let mut gang = Gang::new(&fleet, &spec, 2000, std::slice::from_ref(&newest));
        gang.place(Some(Bomb::Point(10)));
        let traces = Traces { places: gang.run(&[deed(1, newest.step + 1, What::Join)]), generations: 3 };
        assert_eq!(traces.adapter().1, 1);
        let result = traces.places[&2].result().unwrap();
        let manifest = fleet.dir.path().join("store").join(&result.checkpoint).join("manifest.json");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        let parent = newest.name.rsplit('/').next().unwrap();
        assert_eq!(manifest["parent"], parent);
    });
}

/// 200 steps of packed micro-batches that members cannot share evenly, with dropout.
fn long(fleet: &Fleet, change: impl FnOnce(&mut pb::TrainSpec)) -> pb::JobSpec {
    let mut spec = fleet.spec(200);
    let train = spec.train.as_mut().unwrap();
    (train.global_batch, train.micro_batches, train.lr) = (10, 5, 0.01);
    change(train);
    spec.adapter.as_mut().unwrap().dropout = 0.1;
    spec.eval.as_mut().unwrap().every = 70;
    spec.checkpoint.as_mut().unwrap().every = 80;
    spec.workers.as_mut().unwrap().max = 4;
    spec
}

/// A newcomer, a death, a polite leave.
const EVENTS: [Deed; 2] =
    [Deed { who: 1, after: 30, what: What::Join }, Deed { who: 1, after: 140, what: What::Leave(3) }];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_adapter_after_200_steps() {
    let fleet = Fleet::start_tiny().await;
    blocking(|| {
        for precision in [pb::Precision::F32, pb::Precision::Bf16] {
            let spec = long(&fleet, |train| train.set_precision(precision));
            let (alone, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
            for size in 2..=4 {
                assert_eq!(train(&fleet, &spec, size, &[], &[]).adapter(), (alone.clone(), size as usize));
            }
            let traces = train(&fleet, &spec, 3, &[(2, Bomb::Point(77))], &EVENTS);
            assert_eq!(traces.adapter(), (alone, 2), "{precision:?}");
            assert!(traces.generations >= 4, "{}", traces.generations);
            traces.assert_nothing_lost(200);
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_in_f32_stay_close_for_200_steps() {
    let fleet = Fleet::start_tiny().await;
    let spec = long(&fleet, |train| train.set_reduce(pb::Reduce::F32));
    blocking(|| {
        let points = |traces: &Traces| traces.places[&1].points.clone();
        let alone = points(&train(&fleet, &spec, 1, &[], &[]));
        for (size, bombs, deeds) in [(4, &[][..], &[][..]), (3, &[(2, Bomb::Point(77))], &EVENTS)] {
            let together = points(&train(&fleet, &spec, size, bombs, deeds));
            assert_eq!(together.len(), alone.len());
            for (step, point) in &alone {
                let limit = if *step <= 10 { 1e-5 } else { 1e-3 };
                let loss = together[step].loss;
                let apart = (loss - point.loss).abs();
                assert!(apart <= limit * point.loss.abs(), "step {step}: {loss}, {}", point.loss);
            }
        }
    });
}

/// As many jobs as there are ways to cut a step; each on several sizes, with a death.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_adapter_for_every_kind_of_job() {
    let fleet = Fleet::start().await;
    type Change = fn(&mut pb::JobSpec);
    let kinds: [(&str, Change); 4] = [
        ("uneven shares, with dropout", |spec| {
            let train = spec.train.as_mut().unwrap();
            (train.global_batch, train.micro_batches) = (10, 5);
            spec.adapter.as_mut().unwrap().dropout = 0.1;
        }),
        ("few tokens in a micro-batch", |spec| spec.train.as_mut().unwrap().micro_tokens = 64),
        ("bf16", |spec| spec.train.as_mut().unwrap().set_precision(pb::Precision::Bf16)),
        ("the best of all, patience", |spec| {
            spec.eval.as_mut().unwrap().every = 2;
            spec.eval.as_mut().unwrap().patience = 2;
            spec.checkpoint.as_mut().unwrap().best = true;
            spec.train.as_mut().unwrap().lr = 0.05;
        }),
    ];
    blocking(|| {
        for (kind, change) in kinds {
            let mut spec = fleet.spec(6);
            change(&mut spec);
            let (undisturbed, _) = train(&fleet, &spec, 1, &[], &[]).adapter();
            let together = train(&fleet, &spec, 3, &[], &[]).adapter();
            assert_eq!(together, (undisturbed.clone(), 3), "{kind}");
            let survived = train(&fleet, &spec, 3, &[(1, Bomb::Point(2))], &[]).adapter();
            assert_eq!(survived, (undisturbed, 2), "{kind}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_in_f32_agree_closely_and_members_with_each_other() {
    let fleet = Fleet::start().await;
    let mut spec = fleet.spec(10);
    spec.train.as_mut().unwrap().set_reduce(pb::Reduce::F32);
    blocking(|| {
        let alone = train(&fleet, &spec, 1, &[], &[]);
        let survived = train(&fleet, &spec, 3, &[(2, Bomb::Point(4))], &[]);
        assert_eq!(survived.adapter().1, 2);
        let points = |traces: &Traces| traces.places[&1].points.clone();
        for (step, point) in points(&alone) {
            let loss = points(&survived)[&step].loss;
            assert!(
                (loss - point.loss).abs() <= 1e-5 * point.loss.abs(),
                "step {step}: {loss}, {}",
                point.loss
            );
        }
    });
}
