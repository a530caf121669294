//! Train, evaluate and merge in one submission: one file of three documents ends in figures and in a model.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};

/// The file of a job that trains, and of two that are about its adapter.
fn pipeline(dir: &Path) -> Result<String> {
    let train = JobFile { name: "train", steps: 4, ..JobFile::default() }.write(dir)?;
    let yaml = fs::read_to_string(&train)?;
    let line =
        |start: &str| yaml.lines().find(|line| line.starts_with(start)).context("a line of the job file");
    let (base, how) = (line("base:")?, line("train:")?);
    let evaluate = format!("{base}\n{how}\ndata: {{eval: validation.jsonl}}\n");
    fs::write(
        &train,
        format!(
            "name: merge\naction: merge\n{base}\nadapter: jobs/train\n---\n{yaml}---\nname: evaluate\naction: evaluate\n\
             adapter: jobs/train\n{evaluate}"
        ),
    )?;
    Ok(train.display().to_string())
}

fn digest(path: &Path) -> Result<lorafleet_store::Digest> {
    Ok(lorafleet_store::Digest::of(&fs::read(path).with_context(|| path.display().to_string())?))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_trains_evaluates_and_merges() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    let path = pipeline(&fleet.home("client")?)?;
    let jobs = fleet.cli_json(&["submit", &path, "--json"])?["jobs"].clone();
    let name = |document: usize| jobs[document]["name"].as_str().unwrap_or_default().to_owned();
    let (merge, train, evaluate) = (name(0), name(1), name(2));
    let waits = fleet.cli(&["explain", &merge])?;
    let expected = format!("{merge} is queued: it waits for {train} to succeed\n");
    assert_eq!(String::from_utf8_lossy(&waits.stdout), expected);

    fleet.start_worker("a", 2)?;
    let trained = fleet.succeeded(&train).await?.result.context("a result")?;
    let evaluated = fleet.succeeded(&evaluate).await?;
    let result = evaluated.result.context("a result")?;
    // To the last bit: the same examples in the same company.
    assert_eq!(result.eval_loss_after, trained.eval_loss_after);
    assert_eq!((result.eval_tokens, &result.adapter_sha256), (trained.eval_tokens, &trained.adapter_sha256));
    let said = evaluated.state_message;
    assert!(said.starts_with(&format!("{train} (step 4): evaluation loss ")), "{said}");
    let shown = String::from_utf8_lossy(&fleet.cli(&["get", &evaluate])?.stdout).into_owned();
    assert!(shown.contains(&format!("evaluates       {train}\n")) && shown.contains("eval after"), "{shown}");

    let merged = fleet.succeeded(&merge).await?.result.context("a result")?;
    let (model, found) = fleet.download(&merge, "model.safetensors")?;
    assert_eq!(found, merged.adapter_sha256);
    let by_hand = fleet.home("merge")?.join("merged");
    let output = fleet.cli(&["merge", &train, &by_hand.display().to_string()])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for entry in fs::read_dir(&by_hand)? {
        let name = entry?.file_name();
        assert_eq!(digest(&model.join(&name))?, digest(&by_hand.join(&name))?, "{}", name.display());
    }
    // Nothing of it is left on the worker, and the model answers.
    assert_eq!(fs::read_dir(fleet.home("a")?.join("cache/merges"))?.count(), 0);
    let prompt = "Describe the Debian package tetris: falling blocks";
    let answer = fleet.cli(&["generate", &merge, "--prompt", prompt, "--max-new-tokens", "4"])?;
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    for job in [&train, &evaluate, &merge] {
        assert_eq!(fleet.attempts(job).await?.len(), 1);
    }
    wrong_adapters(&fleet, &path, &merge).await
}

/// An adapter that is none, or would never be one, is refused before anything is stored.
async fn wrong_adapters(fleet: &Fleet, path: &str, merge: &str) -> Result<()> {
    let before = fleet.cli_json(&["list", "--json"])?;
    let yaml = fs::read_to_string(path)?;
    for (adapter, mistake) in [
        ("jobs/trian", "adapter.start: is jobs/trian, and there is no job trian in this submission"),
        (merge, "which trains nothing: name the job that does"),
    ] {
        fs::write(path, yaml.replace("adapter: jobs/train", &format!("adapter: {adapter}")))?;
        let output = fleet.cli(&["submit", path])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(mistake), "{said}");
    }
    assert_eq!(fleet.cli_json(&["list", "--json"])?["jobs"].as_array().map(Vec::len), Some(3), "{before}");
    let states = fleet.job(merge).await?.state();
    assert_eq!(states, pb::JobState::Succeeded);
    Ok(())
}
