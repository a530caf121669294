//! A job whose only worker dies at a write of its checkpoints, or whose last checkpoint is no good, goes on with another,
//! to the same adapter.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};

const EVERY: u64 = 4;

fn job(name: &'static str) -> JobFile {
    JobFile { name, steps: 14, checkpoint_every: EVERY, ..JobFile::default() }
}

/// Where a worker dies, and after which step the next one goes on.
struct Crash {
    name: &'static str,
    point: &'static str,
    resumes_after: u64,
}

/// Before anything of the checkpoint of step 8 is written, after its first file, after all of them, after the manifest
/// but before the row; and the same of the final one, where nothing is left to do but the end.
const CRASHES: [Crash; 6] = [
    Crash { name: "files", point: "checkpoint-before-files@8", resumes_after: 4 },
    Crash { name: "between", point: "checkpoint-between-files@8", resumes_after: 4 },
    Crash { name: "manifest", point: "checkpoint-before-manifest@8", resumes_after: 4 },
    Crash { name: "row", point: "checkpoint-before-row@8", resumes_after: 8 },
    Crash { name: "end-files", point: "checkpoint-between-files@14", resumes_after: 12 },
    Crash { name: "end-manifest", point: "checkpoint-before-manifest@14", resumes_after: 12 },
];

/// A fleet without a worker, and the sha256 of what the job comes to when nothing happens.
async fn undisturbed() -> Result<(Fleet, String)> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("steady", 1)?;
    let undisturbed = fleet.submit(&job("undisturbed"))?;
    fleet.succeeded(&undisturbed).await?;
    fleet.worker("steady")?.kill()?;
    let expected = fleet.adapter(&undisturbed)?.1;
    Ok((fleet, expected))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_write_of_a_checkpoint_changes_nothing() -> Result<()> {
    let (mut fleet, expected) = undisturbed().await?;
    for Crash { name, point, resumes_after } in CRASHES {
        let doomed = format!("doomed-{name}");
        let rule = format!("{point}=kill");
        fleet.start_worker_with(&doomed, 1, &[(lorafleet_failpoint::FAILPOINT, &rule)])?;
        let killed = fleet.submit(&job(name))?;
        let status = fleet.worker(&doomed)?.wait(Duration::from_secs(120));
        status.with_context(|| format!("{point}: the worker lives on"))?;
        ensure!(fleet.worker(&doomed)?.log().contains("failpoint"), "{point}: it died of something else");

        let heir = format!("heir-{name}");
        fleet.start_worker(&heir, 1)?;
        let done = fleet.succeeded(&killed).await.context(point)?;
        ensure!(done.step == 14, "{point}: it ended after step {}", done.step);
        ensure!(fleet.adapter(&killed)?.1 == expected, "{point}: another adapter");
        check(&fleet, &killed, resumes_after).await.context(point)?;
        fleet.worker(&heir)?.kill()?;
    }
    Ok(())
}

/// The last attempt went on after that step; each step has one point; nothing unfinished is left in the store. There may
/// be an attempt more than deaths: a place can be given to a worker that died a moment ago.
async fn check(fleet: &Fleet, job: &str, resumes_after: u64) -> Result<()> {
    let attempts = fleet.attempts(job).await?;
    let (last, before) = attempts.split_last().context("no attempt")?;
    ensure!((1..=2).contains(&before.len()), "it took {} attempts: {attempts:?}", attempts.len());
    ensure!(before.iter().all(|attempt| attempt.state() == pb::AttemptState::Lost), "{attempts:?}");
    ensure!(last.start_step == resumes_after, "it went on after step {}", last.start_step);
    let steps: Vec<u64> =
        fleet.points(job).await?.iter().map(|point| point.step).filter(|step| *step > 0).collect();
    ensure!(steps == (1..=14).collect::<Vec<_>>(), "its points are of the steps {steps:?}");
    let folder = fleet.dir.path().join("store").join(job).join("checkpoints");
    lorafleet_tests::wait::until("unfinished checkpoints to be deleted", Duration::from_secs(60), || async {
        let torn = fs::read_dir(&folder)?.flatten().any(|entry| !entry.path().join("manifest.json").exists());
        Ok((!torn).then_some(()))
    })
    .await
}

/// What is done to a checkpoint that is whole.
type Damage = fn(&Path) -> Result<()>;

const DAMAGES: [(&str, Damage); 4] = [
    ("truncated", |folder| {
        let file = File::options().write(true).open(folder.join("optimizer.safetensors"))?;
        Ok(file.set_len(file.metadata()?.len() / 2)?)
    }),
    ("tampered", |folder| {
        let path = folder.join("adapter_model.safetensors");
        let mut bytes = fs::read(&path)?;
        *bytes.last_mut().context("an empty file")? ^= 1;
        Ok(fs::write(path, bytes)?)
    }),
    ("manifest", |folder| {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(&path, text.replace("\"kind\": \"", "\"kind\": \"x"))?)
    }),
    ("missing", |folder| Ok(fs::remove_file(folder.join("adapter_model.safetensors"))?)),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_or_tampered_checkpoint_is_refused_and_the_one_before_it_used() -> Result<()> {
    let (mut fleet, expected) = undisturbed().await?;
    for (name, damage) in DAMAGES {
        let doomed = format!("doomed-{name}");
        fleet.start_worker_with(
            &doomed,
            1,
            &[(lorafleet_failpoint::FAILPOINT, "checkpoint-before-files@12=kill")],
        )?;
        let killed = fleet.submit(&job(name))?;
        fleet.worker(&doomed)?.wait(Duration::from_secs(120))?;
        let newest = newest(&fleet, &killed)?;
        damage(&newest).with_context(|| format!("{name}: cannot damage {}", newest.display()))?;

        let heir = format!("heir-{name}");
        fleet.start_worker(&heir, 1)?;
        fleet.succeeded(&killed).await.context(name)?;
        ensure!(fleet.adapter(&killed)?.1 == expected, "{name}: another adapter");
        let events = fleet.events(&killed).await?;
        let refused: Vec<_> = events.iter().filter(|event| event.kind == "checkpoint-refused").collect();
        ensure!(refused.len() == 1 && refused[0].message.contains("step 8"), "{name}: {refused:?}");
        let resumed = events.iter().any(|event| event.kind == "resumed" && event.message.contains("step 4"));
        ensure!(resumed, "{name}: it did not go on after step 4");
        fleet.worker(&heir)?.kill()?;
    }
    Ok(())
}

/// The folder of a job's newest whole checkpoint: names begin with the step.
fn newest(fleet: &Fleet, job: &str) -> Result<PathBuf> {
    let folder = fleet.dir.path().join("store").join(job).join("checkpoints");
    let folders = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    folders.filter(|path| path.join("manifest.json").exists()).max().context("no checkpoint is whole")
}
