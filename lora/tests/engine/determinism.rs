//! The same adapter, byte for byte: for any number of threads, of members, and after a restart from a checkpoint.

use lorafleet_lora::{EvalSums, Trainer};
use lorafleet_spec::job::{Job, Precision};

use crate::fixtures::{Files, Gang, base, base_in_bf16, examples, job};

const STEPS: u64 = 10;
const LINES: usize = 40;

fn small_job(reduce: &str) -> Job {
    let train = format!(
        "steps: {STEPS}, global_batch: 5, micro_batches: 4, max_length: 64, lr: 2e-3, warmup: 2, \
         weight_decay: 0.01, seed: 5, reduce: {reduce}"
    );
    job(&train, "rank: 8, alpha: 16")
}

/// The whole job on `world_size` members with `threads` threads; the losses of its steps and its last state.
fn run(job: &Job, world_size: usize, threads: usize) -> (Vec<f64>, Files) {
    let data = examples("train.jsonl", LINES, job.train.max_length as usize);
    let base = match job.train.precision {
        Precision::F32 => base(),
        Precision::Bf16 => base_in_bf16(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut gang = Gang::new(&base, job, data.len(), STEPS, world_size);
        let losses = (0..STEPS).map(|_| gang.step(&data).loss).collect();
        (losses, gang.files())
    })
}

#[test]
fn threads_and_members_do_not_change_a_bit() {
    let job = small_job("exact");
    let (losses, files) = run(&job, 1, 1);
    assert!(losses[STEPS as usize - 1] < losses[0], "it learns: {losses:?}");
    for (world_size, threads) in [(1, 2), (1, 3), (2, 1), (3, 2)] {
        let (other_losses, other_files) = run(&job, world_size, threads);
        assert_eq!(losses, other_losses, "{world_size} members, {threads} threads: losses");
        assert!(files == other_files, "{world_size} members, {threads} threads: another adapter");
    }
}

#[test]
fn bf16_trains_like_f32_and_does_not_change_a_bit_either() {
    let exact = run(&small_job("exact"), 1, 2).0;
    let job = small_job("exact, precision: bf16");
    let (losses, files) = run(&job, 1, 1);
    for (world_size, threads) in [(1, 3), (2, 2)] {
        let (other_losses, other_files) = run(&job, world_size, threads);
        assert_eq!(losses, other_losses, "{world_size} members, {threads} threads: losses");
        assert!(files == other_files, "{world_size} members, {threads} threads: another adapter");
    }
    for (f32, bf16) in exact.iter().zip(&losses) {
        assert!((f32 - bf16).abs() < 0.01 * f32, "{f32} {bf16}");
    }
    let refused = Trainer::new(base(), &job, STEPS, 0).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("F32") && refused.contains("Bf16"), "{refused}");
}

#[test]
fn every_form_ends_in_the_same_bytes_too() {
    // Draws by place, starts made from the base, norms: none may depend on who computes, or on a restart.
    for form in [
        "rank: 4, alpha: 8, method: dora, dropout: 0.2",
        "rank: 4, alpha: 8, init: pissa, dropout: 0.1",
        "rank: 4, alpha: 8, init: olora, method: dora, targets: [q_proj, down_proj], modules_to_save: [norm]",
    ] {
        let train =
            format!("steps: {STEPS}, global_batch: 5, micro_batches: 4, max_length: 48, lr: 2e-3, seed: 5");
        let job = job(&train, form);
        let data = examples("train.jsonl", LINES, job.train.max_length as usize);
        let base = base();
        let run = |world_size, threads, restart| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut gang = Gang::new(&base, &job, data.len(), STEPS, world_size);
                for step in 1..=3 {
                    gang.step(&data);
                    if step == restart {
                        let files = gang.files();
                        gang = Gang::new(&base, &job, data.len(), STEPS, world_size);
                        gang.members.iter_mut().for_each(|member| member.restore(&files).unwrap());
                    }
                }
                gang.files()
            })
        };
        let alone = run(1, 1, 0);
        for (world_size, threads, restart) in [(1, 3, 2), (3, 2, 0)] {
            let files = run(world_size, threads, restart);
            assert!(alone == files, "{form}: {world_size} members, {threads} threads, restart at {restart}");
        }
    }
}

#[test]
fn f32_sums_train_too() {
    let exact = run(&small_job("exact"), 1, 2).0;
    let f32 = run(&small_job("f32"), 2, 2).0;
    for (exact, f32) in exact.iter().zip(&f32) {
        assert!((exact - f32).abs() < 1e-3 * exact, "{exact} {f32}");
    }
}

#[test]
fn a_restored_checkpoint_goes_on_to_the_same_bytes() {
    let job = small_job("exact");
    let data = examples("train.jsonl", LINES, job.train.max_length as usize);
    let base = base();
    let mut whole = Gang::new(&base, &job, data.len(), STEPS, 1);
    let mut checkpoint = Files::new();
    for step in 1..=STEPS {
        whole.step(&data);
        if step == 4 {
            checkpoint = whole.files();
        }
    }
    let mut resumed = Gang::new(&base, &job, data.len(), STEPS, 2);
    for member in &mut resumed.members {
        // Work that was lost with the gang must leave no trace.
        member.micro_batch(&[&data[0]]).unwrap();
        member.restore(&checkpoint).unwrap();
        assert_eq!(member.step(), 4);
        assert!(member.snapshot().files == checkpoint);
    }
    for _ in 4..STEPS {
        resumed.step(&data);
    }
    assert!(whole.files() == resumed.files());
}

#[test]
fn an_abandoned_step_can_be_computed_again() {
    let job = small_job("exact");
    let data = examples("train.jsonl", LINES, job.train.max_length as usize);
    let base = base();
    let (mut steady, mut shaken) =
        (Gang::new(&base, &job, data.len(), STEPS, 1), Gang::new(&base, &job, data.len(), STEPS, 1));
    for _ in 0..2 {
        steady.step(&data);
        shaken.members[0].micro_batch(&[&data[7], &data[8]]).unwrap();
        shaken.members[0].abandon_step();
        shaken.step(&data);
    }
    assert!(steady.files() == shaken.files());
}

#[test]
fn evaluation_sums_do_not_depend_on_order() {
    let job = small_job("exact");
    let data = examples("validation.jsonl", 24, 96);
    let trainer = Trainer::new(base(), &job, STEPS, 0).unwrap();
    let parts: Vec<_> = data.chunks(4).collect();
    let sum = |parts: &mut dyn Iterator<Item = &&[lorafleet_spec::data::Example]>| {
        let mut sums = EvalSums::default();
        for part in parts {
            sums.add(&trainer.evaluate(&part.iter().collect::<Vec<_>>()).unwrap().sums);
        }
        sums
    };
    assert_eq!(sum(&mut parts.iter()), sum(&mut parts.iter().rev()));
}
