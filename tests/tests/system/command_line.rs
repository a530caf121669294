//! What a person types, and what scripts read of it.

use anyhow::Result;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_from_submit_to_an_answer() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 2)?;
    let home = fleet.home("client")?;
    let path =
        JobFile { steps: 4, checkpoint_every: 2, ..JobFile::default() }.write(&home)?.display().to_string();

    let output = fleet.cli(&["validate", &path])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = fleet.cli(&["submit", &path, "--watch"])?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");

    let list = fleet.cli_json(&["list", "--json"])?;
    let name = list["jobs"][0]["name"].as_str().unwrap_or_default().to_string();
    let id = name.trim_start_matches("jobs/");
    assert_eq!(fleet.cli_json(&["get", id, "--json"])?["state"], "JOB_STATE_SUCCEEDED");
    assert_eq!(
        fleet.cli_json(&["checkpoints", id, "--json"])?["checkpoints"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(fleet.cli_json(&["workers", "--json"])?["workers"][0]["name"], "workers/a");
    let used = fleet.cli_json(&["usage", "--by", "job", "--json"])?["entries"][0].clone();
    assert_eq!((used["job"].as_str(), used["tenant"].as_str()), (Some(name.as_str()), Some("default")));
    assert!(used["workerSeconds"].as_f64() > Some(0.0) && used["flops"].as_f64() > Some(0.0), "{used}");
    assert!(used["tokens"].is_string() && used["storedBytes"].is_string(), "{used}");
    for command in [
        vec!["usage"],
        vec!["list"],
        vec!["get", id],
        vec!["watch", id],
        vec!["logs", id],
        vec!["checkpoints", id],
        vec!["workers"],
    ] {
        let output = fleet.cli(&command)?;
        assert!(output.status.success() && !output.stdout.is_empty(), "lorafleet {command:?} said nothing");
    }
    // A job that has ended is replayed whole.
    let replay = String::from_utf8(fleet.cli(&["watch", id, "--json"])?.stdout)?;
    assert_eq!(
        replay.lines().filter(|line| line.starts_with("{\"point\"")).count(),
        5,
        "steps 0 to 4 in {replay}"
    );
    let prompt = "Describe the Debian package tetris: falling blocks";
    let output = fleet.cli(&["generate", id, "--prompt", prompt, "--max-new-tokens", "8"])?;
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let merged = fleet.home("merge")?.join("merged");
    let output = fleet.cli(&["merge", id, &merged.display().to_string()])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(merged.join("model.safetensors").is_file() && merged.join("tokenizer.json").is_file());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_have_exit_codes_and_explanations() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let home = fleet.home("client")?;
    let path = JobFile::default().write(&home)?;
    let yaml = std::fs::read_to_string(&path)?;
    let bad = yaml
        .replace("rank: 4", "rank: 0")
        .replace("max_length", "max_lenght")
        .replace("alpha: 8", "alpha: -1");
    std::fs::write(home.join("bad.yaml"), bad)?;
    let bad = home.join("bad.yaml").display().to_string();
    for command in ["validate", "submit"] {
        let output = fleet.cli(&[command, &bad])?;
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success());
        for word in ["adapter.rank", "adapter.alpha", "max_lenght", "max_length"] {
            assert!(text.contains(word), "{command} does not say {word}: {text}");
        }
    }
    let missing = fleet.cli(&["get", "00000000-0000-7000-8000-000000000000"])?;
    let invalid = fleet.cli(&["validate", &bad])?;
    let nowhere = fleet.cli(&["list", "--coordinator", "http://127.0.0.1:9"])?;
    let codes = [&missing, &invalid, &nowhere].map(|o| o.status.code());
    assert!(codes.iter().all(|c| c.is_some_and(|c| c > 0)), "{codes:?}");
    assert!(
        codes[0] != codes[1] && codes[1] != codes[2] && codes[0] != codes[2],
        "{codes:?} tell nothing apart"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_data_line_is_refused_with_its_number() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let home = fleet.home("client")?;
    let path = JobFile::default().write(&home)?.display().to_string();
    let train = home.join("train.jsonl");
    let mut lines: Vec<String> = std::fs::read_to_string(&train)?.lines().map(String::from).collect();
    lines[6] = "{\"messages\": 7}".into();
    std::fs::write(&train, lines.join("\n"))?;
    let output = fleet.cli(&["submit", &path])?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("line 7"), "{text}");
    Ok(())
}
