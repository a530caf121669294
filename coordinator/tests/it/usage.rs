//! What a job used is told once: while it runs, when it has ended, and after another coordinator counted it.

use lorafleet_proto::v1 as pb;
use pb::{JobState, UsageGrouping, usage_client::UsageClient};

use crate::{
    bed::{Bed, Coordinator, soon},
    pair::gang_of_two,
    worker::stopped,
};

async fn usage(coordinator: &Coordinator, group_by: UsageGrouping) -> Vec<pb::UsageEntry> {
    let request = pb::GetUsageRequest { group_by: group_by.into(), ..Default::default() };
    let mut client = UsageClient::new(coordinator.channel().await);
    client.get_usage(request).await.expect("usage").into_inner().entries
}

async fn of_default(coordinator: &Coordinator) -> pb::UsageEntry {
    let [entry] = usage(coordinator, UsageGrouping::Tenant).await.try_into().expect("one tenant");
    entry
}

/// The time for which workers held the places of ended gangs, by their own rows, in milliseconds.
const HELD: &str =
    "select round(1000 * coalesce(sum(extract(epoch from end_time - start_time)), 0))::bigint from places";

#[tokio::test]
async fn what_a_job_used_is_told_once_whoever_counts_it() {
    let bed = Bed::new().await;
    let first = bed.coordinator().await;
    assert_eq!(usage(&first, UsageGrouping::Tenant).await, []);
    let (job, (mut a, place_a), (mut b, place_b)) = gang_of_two(&bed, &first, 2).await;
    let begun = of_default(&first).await;
    a.progress(&place_a, 1..=10).await;
    a.checkpoint(&place_a, 10).await;
    let trains = of_default(&first).await;
    assert!(trains.worker_seconds > begun.worker_seconds, "{trains:?}");
    assert_eq!((trains.tokens, trains.bytes_written, trains.stored_bytes), (1280, 1, 1));
    a.finish(&place_a, place_a.succeeded(12)).await;
    first.until_state(&job, JobState::Succeeded).await;
    b.stopped().await;
    b.finish(&place_b, stopped()).await;
    first.stop().await;
    let second = bed.coordinator().await;
    soon("everything to be counted", || async {
        let left = "select (select count(*) from places where not counted)
                           + (select count(*) from checkpoints where not counted)";
        (bed.count(left).await == 0).then_some(())
    })
    .await;
    let held = bed.count(HELD).await as f64 / 1000.0;
    let ended = of_default(&second).await;
    assert!((ended.worker_seconds - held).abs() < 0.01, "{held} {ended:?}");
    assert!(ended.worker_seconds > trains.worker_seconds, "{trains:?} {ended:?}");
    assert_eq!((ended.tenant.as_str(), ended.tokens, ended.flops), ("default", 1280, 1280e6));
    assert_eq!((ended.bytes_written, ended.stored_bytes), (2, 2));
    // Each way of summing up tells the same.
    let [by_job] = usage(&second, UsageGrouping::Job).await.try_into().expect("one job");
    assert_eq!((&by_job.job, by_job.display_name.as_str()), (&job, "games"));
    let same = |entry: &pb::UsageEntry| {
        let pb::UsageEntry { tokens, flops, bytes_written, worker_seconds, .. } = entry;
        assert_eq!((*tokens, *flops, *bytes_written), (ended.tokens, ended.flops, ended.bytes_written));
        assert!((worker_seconds - ended.worker_seconds).abs() < 1e-6, "{entry:?}");
    };
    same(&by_job);
    let hours = usage(&second, UsageGrouping::Hour).await;
    same(&hours.iter().fold(pb::UsageEntry::default(), |sum, hour| pb::UsageEntry {
        tokens: sum.tokens + hour.tokens,
        flops: sum.flops + hour.flops,
        bytes_written: sum.bytes_written + hour.bytes_written,
        worker_seconds: sum.worker_seconds + hour.worker_seconds,
        ..sum
    }));
}

#[tokio::test]
async fn usage_of_an_unknown_tenant_and_of_a_window_that_is_none_is_refused() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut client = UsageClient::new(coordinator.channel().await);
    let request = pb::GetUsageRequest { tenant: "nobody".into(), ..Default::default() };
    let refused = client.get_usage(request).await.expect_err("no such tenant");
    assert_eq!((refused.code(), refused.message()), (tonic::Code::NotFound, "tenants/nobody was not found"));
    let start_time = Some(pbjson_types::Timestamp { seconds: 0, nanos: 0 });
    let request = pb::GetUsageRequest { start_time, ..Default::default() };
    let refused = client.get_usage(request).await.expect_err("too long");
    assert!(refused.message().contains("start_time: is more than 366 days"), "{}", refused.message());
}
