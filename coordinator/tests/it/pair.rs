//! Two workers that train one job, which many tests begin with.

use crate::{
    bed::{Bed, Coordinator},
    worker::{Place, Worker},
};

/// Workers "a" and "b" in the first generation of a job that needs `min` of at most two.
pub async fn gang_of_two(
    bed: &Bed,
    coordinator: &Coordinator,
    min: u32,
) -> (String, (Worker, Place), (Worker, Place)) {
    let (mut a, mut b) = (Worker::join(coordinator, "a").await, Worker::join(coordinator, "b").await);
    let job = coordinator.submit(bed.spec(min, 2)).await;
    let (place_a, place_b) = (a.assigned().await, b.assigned().await);
    a.ready(&place_a).await;
    b.ready(&place_b).await;
    let (begin_a, begin_b) = (a.begun().await, b.begun().await);
    (job, (a, place_a.entered(&begin_a)), (b, place_b.entered(&begin_b)))
}
