//! Every way of training: the same bytes for any number of members and threads, and after a restart midway.

use std::sync::Arc;

use lorafleet_lora::{Base, Trainer};
use lorafleet_spec::base::Head;
use lorafleet_spec::data::{Example, Target};
use lorafleet_spec::job::{Job, Precision, fill_defaults, parse_yaml};

use crate::fixtures::{Files, Gang, workspace};

const STEPS: u64 = 6;

/// The base of a parity case: small enough to be trained whole.
fn base(case: &str, head: Head) -> Arc<Base> {
    let dir = workspace("lora/tests/parity").join(case).join("base");
    Arc::new(Base::load_as(&dir, head, Precision::F32).unwrap())
}

fn job(more: &str) -> Job {
    let yaml = format!(
        "name: test\nbase: ./base\ndata: {{train: train.jsonl, eval: eval.jsonl}}\nworkers: {{max: 3}}\n{more}"
    );
    let mut spec = parse_yaml(&yaml).unwrap();
    fill_defaults(&mut spec);
    Job::try_from(&spec).unwrap()
}

/// Sequences of a few tokens, each followed by its successor more often than not.
fn texts() -> Vec<Example> {
    let text = |seed: u32| {
        let tokens: Vec<u32> =
            (0..6 + seed % 9).map(|i| 10 + (seed * 7 + i * (1 + seed % 3)) % 180).collect();
        let labels = (0..tokens.len()).map(|i| i > 0).collect();
        Example::causal(tokens, labels)
    };
    (0..20).map(text).collect()
}

/// Sequences whose second token tells the class, or the score.
fn labelled(target: impl Fn(u32) -> Target) -> Vec<Example> {
    let example = |seed: u32| {
        let class = seed % 5;
        let mut tokens = vec![2, 20 + class * 11];
        tokens.extend((0..3 + seed % 7).map(|i| 100 + (seed * 13 + i * 5) % 98));
        Example { tokens, second: None, target: target(class) }
    };
    (0..40).map(example).collect()
}

/// The files after all steps on `world_size` members with `threads` threads; each loss, and the files after step 3.
fn run(
    base: &Arc<Base>,
    job: &Job,
    data: &[Example],
    world_size: usize,
    threads: usize,
) -> (Vec<f64>, [Files; 2]) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut gang = Gang::new(base, job, data.len(), STEPS, world_size);
        let mut half = Files::new();
        let mut losses = Vec::new();
        for step in 1..=STEPS {
            losses.push(gang.step(data).loss);
            if step == STEPS / 2 {
                half = gang.files();
            }
        }
        (losses, [half, gang.files()])
    })
}

/// Any number of members and threads, and a restart midway, come to the same bytes. Returns the losses.
fn check(base: &Arc<Base>, job: &Job, data: &[Example], what: &str) -> (Vec<f64>, Files) {
    let (losses, [half, whole]) = run(base, job, data, 1, 1);
    for (world_size, threads) in [(1, 3), (2, 1), (3, 2)] {
        let (other, [_, files]) = run(base, job, data, world_size, threads);
        assert_eq!(losses, other, "{what}: {world_size} members, {threads} threads");
        assert!(files == whole, "{what}: {world_size} members, {threads} threads");
    }
    let mut resumed = Gang::new(base, job, data.len(), STEPS, 2);
    for member in &mut resumed.members {
        member.restore(&half).unwrap();
        assert!(member.snapshot().files == half, "{what}: what was restored is written again");
    }
    for _ in STEPS / 2..STEPS {
        resumed.step(data);
    }
    assert!(resumed.files() == whole, "{what}: resumed");
    (losses, whole)
}

#[test]
fn every_optimizer_and_schedule() {
    let (base, data) = (base("llama-qv", Head::LanguageModel), texts());
    let mut results = Vec::new();
    for (optimizer, schedule) in [
        ("optimizer: adamw, lr: 0.01", "cosine"),
        ("optimizer: adamw_8bit, lr: 0.01", "linear"),
        ("optimizer: sgd, momentum: 0.9, lr: 0.5", "constant"),
        ("optimizer: sgd, momentum: 0, lr: 0.5", "inverse_sqrt"),
        ("optimizer: lion, lr: 0.001, beta2: 0.99", "wsd"),
        ("optimizer: adamw, loraplus_lr_ratio: 16, lr: 0.001", "cosine"),
    ] {
        // Rank 48 makes matrices of 5,376 values, which AdamW in 8 bits keeps in blocks.
        let job = job(&format!(
            "adapter: {{rank: 48, targets: [gate_proj, up_proj, down_proj]}}\ntrain: {{steps: {STEPS}, global_batch: 8, micro_batches: 5, \
             warmup: 1, weight_decay: 0.01, seed: 3, schedule: {schedule}, {optimizer}}}"
        ));
        let (losses, files) = check(&base, &job, &data, optimizer);
        assert!(losses.iter().all(|loss| loss.is_finite()), "{optimizer}: {losses:?}");
        results.push(files["adapter_model.safetensors"].clone());
    }
    results.sort_unstable();
    results.dedup();
    assert_eq!(results.len(), 6, "each trains in its own way");
}

#[test]
fn full_fine_tuning_of_a_language_model() {
    let (base, data) = (base("llama-all-linear", Head::LanguageModel), texts());
    let job = job(&format!(
        "adapter: {{method: full}}\ntrain: {{steps: {STEPS}, global_batch: 8, micro_batches: 3, warmup: 0, lr: 0.003, \
         schedule: constant}}"
    ));
    let (losses, files) = check(&base, &job, &data, "full");
    assert!(losses[STEPS as usize - 1] < 0.9 * losses[0], "it learns: {losses:?}");
    // Its result is a base: loaded anew, it has the trained model's loss.
    let mut trainer = Trainer::new(base, &job, STEPS, 0).unwrap();
    trainer.restore(&files).unwrap();
    let trained = trainer.evaluate(&data.iter().collect::<Vec<_>>()).unwrap().sums;
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(dir.path().join(name), &files[name]).unwrap();
    }
    let loaded = Arc::new(Base::load(dir.path()).unwrap());
    let anew = Trainer::new(loaded, &self::job("adapter: {rank: 2}"), 1, 0).unwrap();
    let sums = anew.evaluate(&data.iter().collect::<Vec<_>>()).unwrap().sums;
    assert_eq!(sums.mean_loss(), trained.mean_loss());
}

#[test]
fn classes_by_an_adapter_and_by_full_fine_tuning() {
    let data = labelled(Target::Class);
    for method in ["method: lora, rank: 4, targets: [query, value]", "method: full"] {
        let base = base("bert-classify", Head::Classifier { labels: 5 });
        let job = job(&format!(
            "task: classification\nadapter: {{{method}}}\ntrain: {{steps: {STEPS}, global_batch: 20, micro_batches: 4, \
             warmup: 0, lr: 0.005, schedule: constant}}"
        ));
        let (losses, files) = check(&base, &job, &data, method);
        assert!(losses[STEPS as usize - 1] < losses[0], "{method} learns: {losses:?}");
        let mut trainer = Trainer::new(base, &job, STEPS, 0).unwrap();
        trainer.restore(&files).unwrap();
        let all = trainer.evaluate(&data.iter().collect::<Vec<_>>()).unwrap().sums;
        assert_eq!((all.labelled_tokens, all.confusion.iter().sum::<i64>()), (40, 40));
        let row = |class: usize| all.confusion[5 * class..5 * class + 5].iter().sum::<i64>();
        assert!((0..5).all(|class| row(class) == 8), "a row for each true class: {:?}", all.confusion);
        if method == "method: full" {
            let config = String::from_utf8(files["config.json"].clone()).unwrap();
            assert!(config.contains("BertForSequenceClassification"), "{config}");
        }
    }
}

#[test]
fn scores() {
    let data = labelled(|class| Target::Score(class as f32 / 4.0));
    // The decoder has no head for it: a fresh one is drawn and trained whole.
    let base = base("llama-qv", Head::Classifier { labels: 1 });
    let job = job(&format!(
        "task: classification\nadapter: {{rank: 4}}\ntrain: {{steps: {STEPS}, global_batch: 20, \
         micro_batches: 4, warmup: 0, lr: 0.003, schedule: constant}}"
    ));
    let (losses, _) = check(&base, &job, &data, "scores");
    assert!(losses[STEPS as usize - 1] < losses[0], "it learns: {losses:?}");
    let trainer = Trainer::new(base, &job, STEPS, 0).unwrap();
    let part = trainer.evaluate(&data.iter().collect::<Vec<_>>()).unwrap();
    let error = |(score, example): (&f32, &Example)| match example.target {
        Target::Score(truth) => f64::from(score - truth).powi(2),
        _ => f64::NAN,
    };
    let mean = part.scores.iter().zip(&data).map(error).sum::<f64>() / 40.0;
    assert!((part.sums.mean_loss().unwrap() - mean).abs() < 1e-6);
}

#[test]
fn recompute_changes_no_bit_and_dropout_does_not_depend_on_the_cut() {
    let (base, data) = (base("llama-qv", Head::LanguageModel), texts());
    let with = |more: &str, dropout: f64| {
        job(&format!(
            "adapter: {{rank: 8, dropout: {dropout}}}\ntrain: {{steps: {STEPS}, global_batch: 8, warmup: 0, lr: 0.01, \
             schedule: constant, {more}}}"
        ))
    };
    let losses = |job: &Job| run(&base, job, &data, 1, 2);
    let (plain, [_, files]) = losses(&with("micro_batches: 3", 0.25));
    let (_, [_, again]) = losses(&with("micro_batches: 3, recompute: true", 0.25));
    assert!(files == again, "recompute");
    // Another cut sums in another order; other masks would be another order of magnitude away.
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * a);
    let (other_cut, _) = losses(&with("micro_batches: 8", 0.25));
    assert!(near(&plain, &other_cut), "{plain:?} {other_cut:?}");
    let (without, _) = losses(&with("micro_batches: 3", 0.0));
    assert!(!near(&plain, &without), "dropout does something");
}

#[test]
fn the_best_weights_survive_a_restart_and_become_the_result() {
    let (base, data) = (base("llama-qv", Head::LanguageModel), texts());
    let job = job(&format!(
        "adapter: {{rank: 4}}\ntrain: {{steps: {STEPS}, global_batch: 8, lr: 0.01}}\neval: {{every: 1, patience: 2}}\n\
         checkpoint: {{best: true}}"
    ));
    let mut gang = Gang::new(&base, &job, data.len(), STEPS, 1);
    let figures = [3.0, 2.0, 2.5, 2.25];
    let mut best = Files::new();
    for (step, figure) in (1..).zip(figures) {
        gang.step(&data);
        assert_eq!(gang.members[0].judge(figure), step <= 2);
        assert_eq!(gang.members[0].is_exhausted(), step == 4);
        if step == 2 {
            best = gang.files();
            assert!(!best.contains_key("best.safetensors"), "the current weights are the best");
        }
    }
    let files = gang.files();
    assert_eq!(files["best.safetensors"], best["adapter_model.safetensors"]);
    let mut resumed = Trainer::new(base.clone(), &job, STEPS, 0).unwrap();
    resumed.restore(&files).unwrap();
    assert!(resumed.snapshot().files == files && resumed.is_exhausted());
    assert_eq!(resumed.best().unwrap().figure, 2.0);
    // What one member gives another is the whole state, or nothing.
    let sha256 = resumed.state_sha256();
    assert_eq!(gang.members[0].state_sha256(), sha256);
    let mut newcomer = Trainer::new(base.clone(), &job, STEPS, 0).unwrap();
    let initial = newcomer.state_sha256();
    assert!(!newcomer.receive(&files, &initial).unwrap() && newcomer.step() == 0);
    assert_eq!(newcomer.state_sha256(), initial);
    assert!(newcomer.receive(&files, &sha256).unwrap() && newcomer.step() == 4);
    assert_eq!(newcomer.state_sha256(), sha256);
    assert_eq!((resumed.adopt_best(), resumed.step()), (2, 4));
    assert_ne!(resumed.state_sha256(), sha256);
    let result = resumed.snapshot().files;
    assert_eq!(result["adapter_model.safetensors"], best["adapter_model.safetensors"]);
    assert!(!result.contains_key("best.safetensors"));
    // The result itself, taken over again, is the same result.
    let mut again = resumed;
    again.restore(&result).unwrap();
    assert_eq!(again.adopt_best(), 2);
    assert!(again.snapshot().files == result);
}
