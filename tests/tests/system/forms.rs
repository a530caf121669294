//! Classification by an adapter, and full fine-tuning, through real processes: killed, resumed, the same result.

use anyhow::{Context as _, Result};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{
    Fleet, Options,
    classifier::{self, ClassifierJob, LABELS},
};

fn job(name: &'static str, workers: u32) -> ClassifierJob {
    ClassifierJob {
        name,
        adapter: "rank: 4, targets: [query, value]",
        steps: 200,
        lr: 0.01,
        checkpoint_every: 4,
        more: "eval: {every: 20, metric: accuracy}\n",
        workers,
    }
}

impl Kill<'_> {
    /// Kills both workers midway and lets two new ones finish; returns the job.
    async fn run(self) -> Result<pb::Job> {
        let Kill { fleet, name, steps } = self;
        fleet.job_when(name, "a checkpoint", |job| job.step >= 9).await?;
        fleet.worker("a")?.kill()?;
        fleet.worker("b")?.kill()?;
        let at_kill = fleet.job(name).await?.step;
        assert!(at_kill < steps, "it was killed too late, at step {at_kill}");
        fleet.start_worker("c", 1)?;
        fleet.start_worker("d", 2)?;
        let done = fleet.succeeded(name).await?;
        assert_eq!(fleet.attempts(name).await?.len(), 2);
        Ok(done)
    }
}

struct Kill<'a> {
    fleet: &'a mut Fleet,
    name: &'a str,
    steps: u64,
}

fn score(scores: &[pb::Score], name: &str) -> Result<f64> {
    scores
        .iter()
        .find(|score| score.name == name)
        .map(|score| score.value)
        .with_context(|| format!("no {name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_is_trained_killed_resumed_and_asked() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let home = fleet.home("client")?;
    let undisturbed = fleet.submit_file(&job("undisturbed", 1).write(&home.join("one"))?)?;
    fleet.succeeded(&undisturbed).await?;
    let (_, expected) = fleet.adapter(&undisturbed)?;

    fleet.start_worker("b", 1)?;
    let name = fleet.submit_file(&job("killed", 2).write(&home.join("two"))?)?;
    let done = Kill { fleet: &mut fleet, name: &name, steps: 200 }.run().await?;
    let (folder, found) = fleet.adapter(&name)?;
    assert_eq!(found, expected, "another adapter after the kill");

    let result = done.result.context("a result")?;
    let (before, after) =
        (score(&result.scores_before, "accuracy")?, score(&result.scores_after, "accuracy")?);
    assert!(after > before && after > 0.6, "accuracy {before} before, {after} after");
    assert!(score(&result.scores_after, "f1")? > 0.5 && score(&result.scores_after, "matthews")? > 0.5);
    assert_eq!(result.eval_tokens, 25);
    // The result is the best evaluation's, whose checkpoint is kept beside the latest.
    let evaluated: Vec<_> =
        fleet.points(&name).await?.into_iter().filter(|p| p.step > 0 && p.eval_loss.is_some()).collect();
    let best = evaluated.iter().map(|p| score(&p.eval_scores, "accuracy").unwrap_or(0.0)).fold(0.0, f64::max);
    assert_eq!(best, after);
    let of_best = evaluated.iter().find(|p| p.step == result.best_step).context("its evaluation")?;
    assert_eq!(score(&of_best.eval_scores, "accuracy")?, best);

    let labels: Vec<String> = serde_json::from_slice(&std::fs::read(folder.join("labels.json"))?)?;
    assert_eq!(labels, LABELS);
    let shown = fleet.cli(&["get", &name])?;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("accuracy"));
    asked(&fleet, &name)
}

/// What the command line says of texts of every label is mostly right.
fn asked(fleet: &Fleet, job: &str) -> Result<()> {
    let texts: Vec<String> = (0..LABELS.len()).map(|label| classifier::text(label, 1)).collect();
    let mut args = vec!["classify", job, "--json"];
    texts.iter().for_each(|text| args.extend(["--text", text]));
    let output = fleet.cli(&args)?;
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    let mut right = 0;
    for (line, label) in out.lines().zip(LABELS) {
        let answer: serde_json::Value = serde_json::from_str(line)?;
        right += u32::from(answer["label"] == label);
        let sum: f64 = LABELS.iter().filter_map(|label| answer["probabilities"][label].as_f64()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{answer}");
    }
    assert!(right >= 3, "{right} of 5 are right:\n{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn full_fine_tuning_ends_in_a_whole_model() -> Result<()> {
    let full = |name, workers| ClassifierJob { adapter: "method: full", lr: 0.003, ..job(name, workers) };
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let home = fleet.home("client")?;
    let undisturbed = fleet.submit_file(&full("undisturbed", 1).write(&home.join("one"))?)?;
    fleet.succeeded(&undisturbed).await?;
    let (_, expected) = fleet.download(&undisturbed, "model.safetensors")?;

    fleet.start_worker("b", 1)?;
    let name = fleet.submit_file(&full("killed", 2).write(&home.join("two"))?)?;
    let done = Kill { fleet: &mut fleet, name: &name, steps: 200 }.run().await?;
    let (folder, found) = fleet.download(&name, "model.safetensors")?;
    assert_eq!(found, expected, "another model after the kill");
    let result = done.result.context("a result")?;
    assert_eq!(result.adapter_sha256, found);
    assert!(score(&result.scores_after, "accuracy")? > 0.6);
    // A whole Hugging Face folder, without what only training needs.
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    assert_eq!(config["id2label"]["3"], "red");
    assert!(folder.join("tokenizer.json").is_file() && !folder.join("optimizer.safetensors").exists());
    asked(&fleet, &name)?;
    asked(&fleet, &folder.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn training_stops_early_where_nothing_gets_better() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let more = "eval: {every: 2, patience: 2, metric: accuracy, min_delta: 1.0}\n";
    let job = ClassifierJob { more, checkpoint_every: 0, ..job("stops", 2) };
    let name = fleet.submit_file(&job.write(&fleet.home("client")?.join("stops"))?)?;
    let done = fleet.succeeded(&name).await?;
    // The first evaluation is the best; two more are not better by the margin.
    assert_eq!((done.step, done.total_steps), (6, 200));
    let result = done.result.context("a result")?;
    assert!(result.stopped_early);
    assert_eq!(result.best_step, 2);
    let events = fleet.events(&name).await?;
    let last = events.last().context("its end")?;
    assert!(last.kind == "succeeded" && last.message.contains("no longer got better"), "{}", last.message);
    Ok(())
}
