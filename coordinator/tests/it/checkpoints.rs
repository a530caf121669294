//! Which checkpoints stay, and what becomes of those that never became whole.

use lorafleet_proto::v1 as pb;
use lorafleet_store::{CheckpointId, layout};

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
    let in_store = job.trim_start_matches("jobs/").parse().expect("an id");
    let name = "optimizer.safetensors".parse().expect("a name");
    let file = |fence: &pb::Fence, step| {
        layout::checkpoint_file(&in_store, &CheckpointId::new(step, fence).expect("a checkpoint"), &name)
    };
    let fence = place.fence();
    let torn = file(&fence, 20);
    // Under the next attempt's fence, whoever it is: not its business.
    let later = file(&pb::Fence { attempt: fence.attempt + 1, ..fence.clone() }, 20);
    for path in [&torn, &later] {
        bed.store.put(path, "half".into()).await.expect("stored");
    }
    a.finish(&place, lost()).await;
    a.start().await;
    let mut tries = 0;
    while bed.store.size(&torn).await.expect("looked up").is_some() {
        tries += 1;
        assert!(tries < 1000, "the unfinished checkpoint stays");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(bed.store.size(&later).await.expect("looked up").is_some());
    coordinator.stop().await;
}
