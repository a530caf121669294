//! The fault suite, for a moment: two runs of a fixed seed; `cargo xtask chaos` goes on from there.

use std::time::Duration;

use anyhow::Result;
use lorafleet_tests::chaos::{
    kind::Kind,
    plan::USUAL_FAULTS,
    suite::{Options, suite},
};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_come_to_the_same_whatever_is_killed() -> Result<()> {
    let options = Options {
        seed: 2,
        time: Duration::from_secs(60),
        runs: 2,
        only: vec![Kind::KillWorker, Kind::KillAll, Kind::KillCoordinator, Kind::RestartPostgres],
        faults: USUAL_FAULTS,
        defect: None,
        planted: true,
        stop_at_violation: true,
    };
    let mut story = String::new();
    let mut say = |line: &str| {
        story += line;
        story.push('\n');
    };
    let tally = suite(&options, &mut say, &mut |_| Ok(())).await?;
    assert_eq!(tally.violations, 0, "{story}");
    assert!(tally.kinds.values().any(|count| count.effective > 0), "no fault had an effect\n{story}");
    Ok(())
}
