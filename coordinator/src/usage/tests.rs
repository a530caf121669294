//! Hours add up to the whole, and whatever is counted, by whomever, is counted once.

use std::{str::FromStr as _, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use lorafleet_postgres::Postgres;
use proptest::{
    prelude::{Strategy as _, any},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

use super::{decayed, fold::fold};
use crate::ids::TenantId;

/// So long that nothing is forgotten.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

async fn database() -> (Postgres, PgPool) {
    let postgres = Postgres::throwaway().expect("a throwaway Postgres");
    let options = PgConnectOptions::from_str(&postgres.url("postgres")).expect("a URL");
    let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
    sqlx::migrate!("../migrations").run(&pool).await.expect("migrated");
    (postgres, pool)
}

/// Spans from nothing to some days, many of them on the hour.
fn spans(count: usize) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let second = (1_600_000_000_i64..1_900_000_000, any::<bool>(), 0..1_000_000_i64);
    let length = (0..300_000_i64, any::<bool>(), 0..1_000_000_i64);
    let at = |(seconds, whole, micros): (i64, bool, i64)| {
        if whole { seconds / 3600 * 3600 * 1_000_000 } else { seconds * 1_000_000 + micros }
    };
    let span = (second, length).prop_map(move |(start, length)| {
        let start = DateTime::from_timestamp_micros(at(start)).expect("a time");
        (start, start + TimeDelta::microseconds(at(length)))
    });
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| span.new_tree(&mut runner).expect("a span").current()).collect()
}

#[tokio::test]
async fn the_parts_of_a_span_lie_in_their_hours_and_add_up_to_it() {
    let (_postgres, pool) = database().await;
    let spans = spans(2000);
    let (starts, ends): (Vec<_>, Vec<_>) = spans.iter().copied().unzip();
    // Half of an hour off from UTC: hours are UTC's all the same.
    let mut connection = pool.acquire().await.expect("a connection");
    sqlx::query("set timezone = 'Asia/Kolkata'").execute(&mut *connection).await.expect("set");
    let parts: Vec<(i64, DateTime<Utc>, f64)> = sqlx::query_as(
        "select n, hour, seconds from unnest($1::timestamptz[], $2::timestamptz[]) with ordinality span (s, e, n)
         cross join lateral hour_parts(s, e) order by n, hour",
    )
    .bind(&starts)
    .bind(&ends)
    .fetch_all(&mut *connection)
    .await
    .expect("parts");
    let mut sums = vec![0.0; spans.len()];
    let mut last = (0, DateTime::UNIX_EPOCH);
    for (n, hour, seconds) in parts {
        let index = usize::try_from(n - 1).expect("from 1");
        assert_eq!(hour.timestamp() % 3600, 0);
        assert!(seconds > 0.0 && seconds <= 3600.0, "{seconds}");
        assert!((n, hour) > last, "one part an hour");
        let (start, end) = spans[index];
        assert!(hour < end && hour + TimeDelta::hours(1) > start);
        last = (n, hour);
        sums[index] += seconds;
    }
    for ((start, end), sum) in spans.into_iter().zip(sums) {
        let whole = (end - start).num_microseconds().expect("days") as f64 / 1e6;
        assert!((whole - sum).abs() < 1e-3, "{start} to {end}: {sum}");
    }
}

/// A job with places that ended, each after so many seconds, an hour ago; `live` more began a minute ago.
async fn job(pool: &PgPool, seconds: &[f64], live: usize) -> Uuid {
    let job = Uuid::now_v7();
    for sql in [
        "insert into jobs (job_id, spec, workers_min, workers_max, flops_per_token) values ($1, '{}', 1, 8, 10)",
        "insert into attempts (job_id, attempt) values ($1, 1)",
    ] {
        sqlx::query(sql).bind(job).execute(pool).await.expect("inserted");
    }
    for place in 1..=seconds.len() + live {
        let ended = seconds.get(place - 1);
        sqlx::query(
            "insert into places (job_id, attempt, place, worker_id, worker, address, slot, live, outcome, start_time,
                                 end_time)
             select $1, 1, $2, gen_random_uuid(), 'w', '', 0, $3::float8 is null,
                    case when $3 is not null then 'RELEASED' end,
                    case when $3 is null then now() - interval '1 minute' else t end, t + make_interval(secs => $3)
             from (select now() - interval '1 hour' as t) began",
        )
        .bind(job)
        .bind(i32::try_from(place).expect("few"))
        .bind(ended)
        .execute(pool)
        .await
        .expect("inserted");
    }
    job
}

async fn points(pool: &PgPool, job: Uuid, steps: std::ops::RangeInclusive<i64>) {
    sqlx::query(
        "insert into metric_points (job_id, step, attempt, generation, loss, lr, grad_norm, tokens, tokens_per_second,
                                    step_seconds, reduce_seconds, bytes_sent, seconds_left)
         select $1, s, 1, 1, 1, 1, 1, 100, 1, 1, 1, 1, 1 from generate_series($2, $3) s
         on conflict (job_id, step) do update set attempt = 2",
    )
    .bind(job)
    .bind(steps.start())
    .bind(steps.end())
    .execute(pool)
    .await
    .expect("inserted");
}

async fn used(pool: &PgPool) -> f64 {
    decayed(pool, FOREVER).await.expect("usage").get(&TenantId::DEFAULT).copied().unwrap_or_default()
}

/// Of `usage_hours`: worker-seconds, tokens, FLOPs.
async fn counted(pool: &PgPool) -> (f64, i64, f64) {
    sqlx::query_as(
        "select coalesce(sum(worker_seconds), 0), coalesce(sum(tokens), 0)::bigint, coalesce(sum(flops), 0) from usage_hours",
    )
    .fetch_one(pool)
    .await
    .expect("a row")
}

async fn count(pool: &PgPool) {
    while fold(pool).await.expect("counted") {}
}

#[tokio::test]
async fn what_several_count_at_once_is_counted_once() {
    let (_postgres, pool) = database().await;
    let first = job(&pool, &[10.0, 20.5], 1).await;
    points(&pool, first, 1..=5).await;
    let before = used(&pool).await;
    assert!((before - 90.5).abs() < 5.0, "{before}");
    let counts: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { count(&pool).await })
        })
        .collect();
    for count in counts {
        count.await.expect("no panic");
    }
    count(&pool).await;
    assert_eq!(counted(&pool).await, (30.5, 500, 5000.0));
    let after = used(&pool).await;
    assert!(after >= before && after - before < 5.0, "{before} {after}");
    // Steps that are taken again are not new; those after them are. The last ones are counted with the last place.
    points(&pool, first, 4..=7).await;
    let ended = "update places set live = false, outcome = 'LOST', end_time = start_time + interval '40 s' where live";
    sqlx::query(ended).execute(&pool).await.expect("ended");
    count(&pool).await;
    count(&pool).await;
    assert_eq!(counted(&pool).await, (70.5, 700, 7000.0));
    assert!((used(&pool).await - 70.5).abs() < 0.01);
    let costs: (f64, i64, f64, i64) =
        sqlx::query_as("select worker_seconds, tokens, flops, counted_step from job_costs where job_id = $1")
            .bind(first)
            .fetch_one(&pool)
            .await
            .expect("costs");
    assert_eq!(costs, (70.5, 700, 7000.0, 7));
    // Half of it is left after a half-life: an hour ago counts half an hour by its middle, so between both.
    let half = decayed(&pool, Duration::from_secs(3600)).await.expect("usage")[&TenantId::DEFAULT];
    assert!(half > 70.5 * 0.3 && half < 70.5, "{half}");
}
