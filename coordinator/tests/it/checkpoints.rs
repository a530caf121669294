//! Which checkpoints stay, and what becomes of those that never became whole.

use std::time::Duration;

use lorafleet_coordinator::sweeper::Sweeper;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{CheckpointId, Path, layout};

use crate::{
    bed::Bed,
    worker::{Worker, lost},
};

#[tokio::test]
async fn every_nth_stays_beside_the_newest() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let checkpoint = pb::CheckpointSpec { every: 10, keep: 1, keep_every: 20, ..Default::default() };
    let job = coordinator.submit(pb::JobSpec { checkpoint: Some(checkpoint), ..bed.spec(1, 1) }).await;
    let (place, _) = a.start().await;
    let mut gone = Vec::new();
    for step in [10, 20, 30, 40, 50, 60] {
        gone.push(a.checkpoint(&place, step).await);
    }
    let name = |step| vec![place.checkpoint(step).name];
    assert_eq!(gone, [vec![], vec![], name(10), vec![], name(30), vec![]]);
    let kept: Vec<u64> = coordinator.checkpoints(&job).await.iter().map(|c| c.step).collect();
    assert_eq!(kept, [60, 50, 40, 20]);
    coordinator.stop().await;
}

/// What an attempt left unfinished is gone once the next has begun; what it finished is not.
#[tokio::test]
async fn unfinished_ones_of_an_earlier_attempt_are_deleted() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    let fence = place.fence();
    let torn = optimizer(&job, &fence, 20);
    // Under the next attempt's fence, whoever it is: not its business.
    let later = optimizer(&job, &pb::Fence { attempt: fence.attempt + 1, ..fence.clone() }, 20);
    for path in [&torn, &later] {
        bed.store.put(path, "half".into()).await.expect("stored");
    }
    a.finish(&place, lost()).await;
    a.start().await;
    let mut tries = 0;
    while bed.store.size(&torn).await.expect("looked up").is_some() {
        tries += 1;
        assert!(tries < 1000, "the unfinished checkpoint stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bed.store.size(&later).await.expect("looked up").is_some());
    coordinator.stop().await;
}

/// After a job's end nobody finishes what was begun: it goes, once the job has rested. What is whole stays, and so does what
/// belongs to a job that runs.
#[tokio::test]
async fn unfinished_ones_of_ended_jobs_are_swept() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let ended = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.finish(&place, place.succeeded(30)).await;
    coordinator.until_state(&ended, pb::JobState::Succeeded).await;
    let runs = coordinator.submit(bed.spec(1, 1)).await;
    let (running, _) = a.start().await;
    let [torn, whole] = [20, 30].map(|step| optimizer(&ended, &place.fence(), step));
    let begun = optimizer(&runs, &running.fence(), 10);
    for path in [&torn, &whole, &begun] {
        bed.store.put(path, "state".into()).await.expect("stored");
    }
    let manifest = CheckpointId::new(30, &place.fence()).expect("a checkpoint");
    let manifest = layout::manifest(&in_store(&ended), &manifest);
    bed.store.put(&manifest, "{}".into()).await.expect("stored");

    let pool = sqlx::PgPool::connect(&bed.database_url).await.expect("a pool");
    let mut sweeper = Sweeper::new(pool, bed.store.clone());
    let there = async |path: &Path| bed.store.size(path).await.expect("looked up").is_some();
    sweeper.sweep(Duration::from_secs(3600)).await.expect("swept");
    assert!(there(&torn).await, "the job ended a moment ago: its worker may still write");
    sweeper.sweep(Duration::ZERO).await.expect("swept");
    assert!(!there(&torn).await, "nobody finishes it");
    assert!(there(&whole).await && there(&manifest).await && there(&begun).await);
    coordinator.stop().await;
}

fn in_store(job: &str) -> lorafleet_store::JobId {
    job.trim_start_matches("jobs/").parse().expect("an id")
}

/// A file of the checkpoint that was begun under this fence.
fn optimizer(job: &str, fence: &pb::Fence, step: u64) -> Path {
    let name = "optimizer.safetensors".parse().expect("a name");
    let checkpoint = CheckpointId::new(step, fence).expect("a checkpoint");
    layout::checkpoint_file(&in_store(job), &checkpoint, &name)
}
