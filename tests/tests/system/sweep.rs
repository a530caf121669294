//! A sweep from its file to the best adapter, with a real worker.

use std::fs;

use anyhow::Result;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_from_its_file_to_the_best_adapter() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 2)?;
    let path = JobFile { steps: 4, eval_every: 2, train_lines: 20, ..JobFile::default() }
        .write(&fleet.home("client")?)?;
    // The second job still warms up at step 2, and so has learned less by then; it cannot end by itself in time.
    let section =
        "sweep: {parameters: {train.steps: [4, 4000]}, halving: {every: 1 evaluations, keep: 0.5}}\n";
    fs::write(&path, fs::read_to_string(&path)? + section)?;
    let path = path.display().to_string();

    let output = fleet.cli(&["sweep", "submit", &path, "--dry-run"])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "test-1  train.steps=4\ntest-2  train.steps=4000\n");
    let dry = fleet.cli_json(&["sweep", "submit", &path, "--dry-run", "--json"])?;
    assert_eq!(dry["children"][1]["parameters"][0]["json"], "4000");
    assert_eq!(dry["children"][1]["spec"]["train"]["steps"], "4000");
    let output = fleet.cli(&["sweep", "submit", &path, "--watch"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("best: child 1, jobs/"), "{text}");

    let sweeps = fleet.cli_json(&["sweep", "list", "--json"])?;
    let sweep = sweeps["sweeps"][0]["name"].as_str().unwrap_or_default().to_string();
    let children = fleet.cli_json(&["sweep", "show", &sweep, "--json"])?;
    let [first, second] = [0, 1].map(|child| children["children"][child].clone());
    assert_eq!(
        (&first["state"], &second["state"]),
        (&"JOB_STATE_SUCCEEDED".into(), &"JOB_STATE_CANCELLED".into())
    );
    assert_eq!(second["endedAt"], "2", "{second}");
    let job = first["job"].as_str().unwrap_or_default();
    assert_eq!(fleet.cli_json(&["get", job, "--json"])?["sweep"], sweep.as_str());
    let listed = fleet.cli(&["list"])?;
    let (listed, id) = (String::from_utf8_lossy(&listed.stdout), sweep.trim_start_matches("sweeps/"));
    assert!(
        listed.lines().next().is_some_and(|head| head.contains("SWEEP")) && listed.contains(id),
        "{listed}"
    );
    fleet.adapter(job)?;
    assert!(!fleet.cli(&["sweep", "cancel", &sweep])?.status.success(), "a sweep that is over was cancelled");
    Ok(())
}
