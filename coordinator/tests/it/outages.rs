//! Postgres away: at the start, and in the middle of a job.

use clap::Parser as _;
use lorafleet_coordinator::{Config, RunError, run};
use lorafleet_proto::v1 as pb;
use pb::JobState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{bed::Bed, worker::Worker};

async fn run_with(database_url: &str, store: &str) -> RunError {
    let args = ["c", "--database-url", database_url, "--store", store, "--database-timeout", "300ms"];
    let config = Config::try_parse_from(args).expect("valid flags");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    run(&config, listener, CancellationToken::new()).await.expect_err("it cannot start")
}

#[tokio::test]
async fn without_postgres_a_coordinator_says_so_and_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("postgres://nobody@localhost/none?host={}", folder.path().display());
    let error = run_with(&url, "memory://").await;
    assert!(matches!(error, RunError::Database(_)), "{error}");
    assert!(error.to_string().contains("Is it running"), "{error}");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_told_at_the_start() {
    let error = run_with("postgres://nobody@localhost/none", "file:///proc/lorafleet").await;
    assert!(matches!(error, RunError::Store(_)), "{error}");
}

#[tokio::test]
async fn a_job_survives_a_restart_of_postgres() {
    let mut bed = Bed::durable().await;
    // Stopping Postgres holds this test's own heartbeats up, which is not what it is about.
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    worker.progress(&place, 1..=3).await;
    bed.postgres.stop().expect("stopped");
    let report = pb::worker_message::Message::Progress(place.progress(4..=6));
    worker.send(report).await;
    bed.postgres.start_again().expect("started again");
    let acked =
        |m| matches!(&m, pb::coordinator_message::Message::ProgressAck(a) if a.step == 6).then_some(());
    worker.expect("ProgressAck", acked).await;
    worker.finish(&place, place.succeeded(100)).await;
    let done = coordinator.until_state(&job, JobState::Succeeded).await;
    assert_eq!((done.attempt, coordinator.points(&job).await.len()), (1, 6));
}
