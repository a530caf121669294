//! Postgres away: at the start, and in the middle of a job.

use clap::Parser as _;
use lorafleet_coordinator::{Config, RunError, run};
use lorafleet_proto::v1 as pb;
use pb::JobState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    bed::{Bed, connect, soon},
    worker::Worker,
};

/// Ends every other client's connection, as a failover or an operator does.
const TERMINATE: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
     where pid <> pg_backend_pid() and backend_type = 'client backend'";

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

#[tokio::test]
async fn a_job_survives_the_end_of_every_backend_again_and_again() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    for step in 1..=10 {
        assert!(bed.count(TERMINATE).await > 0, "somebody was connected");
        worker.progress(&place, step..=step).await;
    }
    worker.finish(&place, place.succeeded(100)).await;
    // The answer to a question may be lost with its connection; the next one comes through.
    soon("the end", || async {
        let request = pb::GetJobRequest { name: job.clone() };
        let answer = coordinator.jobs().await.get_job(request).await.ok()?.into_inner();
        (answer.state() == JobState::Succeeded).then_some(())
    })
    .await;
    let done = coordinator.get(&job).await;
    assert_eq!((done.attempt, coordinator.points(&job).await.len()), (1, 10));
}

#[tokio::test]
async fn a_job_survives_a_postgres_without_a_free_connection() {
    let mut options = lorafleet_postgres::Options::throwaway();
    options.max_connections = 12;
    let bed = Bed::with(options).await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    // Others take every connection there is, those that the coordinator had too.
    let own = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'lorafleet-coordinator'";
    let mut hogs = vec![connect(&bed.database_url).await];
    let mut refused = None;
    while refused.is_none() {
        sqlx::query(own).execute(&mut hogs[0]).await.expect("terminated");
        while let Ok(hog) = <sqlx::PgConnection as sqlx::Connection>::connect(&bed.database_url).await {
            hogs.push(hog);
        }
        let request = pb::GetJobRequest { name: job.clone() };
        refused = coordinator.jobs().await.get_job(request).await.err();
    }
    assert_eq!(refused.map(|status| status.code()), Some(tonic::Code::Unavailable));
    worker.send(pb::worker_message::Message::Progress(place.progress(1..=5))).await;
    drop(hogs);
    let acked =
        |m| matches!(&m, pb::coordinator_message::Message::ProgressAck(a) if a.step == 5).then_some(());
    worker.expect("ProgressAck", acked).await;
    worker.finish(&place, place.succeeded(100)).await;
    let done = coordinator.until_state(&job, JobState::Succeeded).await;
    assert_eq!((done.attempt, coordinator.points(&job).await.len()), (1, 5));
}

/// Somebody's long transaction holds rows of the job locked for a while.
#[tokio::test]
async fn a_job_survives_an_idle_transaction_that_holds_its_row() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    let mut holder = connect(&bed.database_url).await;
    sqlx::query("begin").execute(&mut holder).await.expect("a transaction");
    sqlx::query("select * from jobs for update").execute(&mut holder).await.expect("locked");
    worker.send(pb::worker_message::Message::Progress(place.progress(1..=5))).await;
    soon("a write that waits", || async {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        (bed.count(waiting).await > 0).then_some(())
    })
    .await;
    drop(holder);
    let acked =
        |m| matches!(&m, pb::coordinator_message::Message::ProgressAck(a) if a.step == 5).then_some(());
    worker.expect("ProgressAck", acked).await;
    worker.finish(&place, place.succeeded(100)).await;
    let done = coordinator.until_state(&job, JobState::Succeeded).await;
    assert_eq!(done.attempt, 1);
}

/// The worker is connected to the leader only, and so is silent until long after the standby has taken over.
#[tokio::test]
async fn leases_outlive_a_takeover() {
    let bed = Bed::new().await;
    let leader = bed.coordinator_with(&["--lease", "3s"]).await;
    let mut worker = Worker::join(&leader, "a").await;
    let job = leader.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    worker.progress(&place, 1..=3).await;
    let standby = bed.coordinator_with(&["--lease", "3s"]).await;
    standby.jobs().await;
    leader.kill();
    soon("a takeover", || async {
        (bed.count("select epoch from scheduler_lease").await == 2).then_some(())
    })
    .await;
    // Silent for longer than a lease by now, but not before the new leader's eyes.
    let mut worker = worker.reattach(&standby).await;
    worker.progress(&place, 4..=6).await;
    worker.finish(&place, place.succeeded(100)).await;
    let done = standby.until_state(&job, JobState::Succeeded).await;
    assert_eq!((done.attempt, standby.points(&job).await.len()), (1, 6));
}
