//! watch: survives broken streams, tells each thing once, and ends as the job ended.

use lorafleet_proto::v1::{self as pb, watch_job_response::Update};
use tonic::Status;

use crate::{
    coordinator::{Coordinator, State},
    lorafleet,
};

fn job(state: pb::JobState) -> Update {
    Update::Job(pb::Job {
        name: "jobs/a".into(),
        spec: Some(pb::JobSpec { display_name: "games".into(), ..Default::default() }),
        state: state.into(),
        state_message: if state == pb::JobState::Failed {
            "the loss is not a number".into()
        } else {
            String::new()
        },
        step: 3,
        total_steps: 3,
        result: (state == pb::JobState::Succeeded).then(|| pb::JobResult {
            eval_loss_before: Some(4.0),
            eval_loss_after: Some(3.0),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn event(number: u64) -> Update {
    let message = format!("message {number}");
    Update::Event(pb::JobEvent { number, kind: "started".into(), message, ..Default::default() })
}

fn point(step: u64) -> Update {
    let eval_loss = Some(step as f64);
    Update::Point(pb::MetricPoint { step, loss: 3.5, eval_loss, ..Default::default() })
}

async fn watched(watches: Vec<Vec<Result<Update, Status>>>) -> Coordinator {
    let jobs = vec![pb::Job { name: "jobs/a".into(), ..Default::default() }];
    Coordinator::start(State { jobs, watches: watches.into(), ..Default::default() }).await
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_was() {
    let coordinator = watched(vec![
        vec![
            Ok(job(pb::JobState::Running)),
            Ok(event(1)),
            Ok(point(1)),
            Err(Status::unavailable("going down")),
        ],
        // Ended early, and told again what was told.
        vec![Ok(job(pb::JobState::Running)), Ok(event(1)), Ok(event(2)), Ok(point(1)), Ok(point(2))],
        vec![Ok(point(3)), Ok(job(pb::JobState::Succeeded))],
    ])
    .await;
    let ran = lorafleet(&coordinator, &["watch", "a"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for told in ["message 1", "message 2", "step 1/3", "step 2/3", "step 3/3"] {
        assert_eq!(ran.stderr.matches(told).count(), 1, "{told}:\n{}", ran.stderr);
    }
    assert!(ran.stdout.contains("4.0000 before, 3.0000 after (-25.0 %"), "{}", ran.stdout);
    let state = coordinator.state();
    let from: Vec<_> =
        state.watched.iter().map(|request| (request.after_event, request.after_step)).collect();
    assert_eq!(from, [(0, 0), (1, 1), (2, 2)]);
}

#[tokio::test]
async fn a_job_that_ends_badly_is_exit_code_one() {
    for (state, told) in [(pb::JobState::Failed, "failed"), (pb::JobState::Cancelled, "cancelled")] {
        let coordinator = watched(vec![vec![Ok(job(state))]]).await;
        let ran = lorafleet(&coordinator, &["watch", "a"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stdout.contains(told), "{}", ran.stdout);
    }
}

#[tokio::test]
async fn updates_are_json_lines() {
    let coordinator = watched(vec![vec![Ok(event(1)), Ok(point(1)), Ok(job(pb::JobState::Failed))]]).await;
    let ran = lorafleet(&coordinator, &["watch", "a", "--json"]).await;
    assert_eq!(ran.code, 1);
    let lines: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["event"]["number"], "1");
    assert_eq!(lines[1]["point"]["step"], "1");
    assert_eq!(lines[2]["job"]["stateMessage"], "the loss is not a number");
}

#[tokio::test]
async fn logs_can_follow() {
    let coordinator =
        watched(vec![vec![Ok(event(1)), Ok(point(1)), Ok(event(2)), Ok(job(pb::JobState::Succeeded))]]).await;
    let ran = lorafleet(&coordinator, &["logs", "a", "--follow"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
}
