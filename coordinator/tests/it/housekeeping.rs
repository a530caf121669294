//! What is kept and what is not: partitions made and dropped, jobs forgotten with all they left, points thinned.

use lorafleet_proto::v1 as pb;
use pb::JobState;
use sqlx::{Connection as _, PgConnection};

use crate::{
    bed::{Bed, connect, soon},
    worker::Worker,
};

/// A round begins as soon as one is over.
const BUSY: [&str; 2] = ["--housekeeping", "50ms"];

/// Stores an ended job as if it had been submitted and had ended so many days ago; with an attempt and two events.
async fn old_job(connection: &mut PgConnection, submitted: i32, ended: i32) -> uuid::Uuid {
    let made = "insert into jobs (job_id, spec, workers_min, workers_max, state, create_time, end_time, attempt, last_event)
         select (left(first_job_id(now() - make_interval(days => $1))::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid,
                '{}', 1, 1, 'SUCCEEDED', now() - make_interval(days => $1), now() - make_interval(days => $2), 1, 2
         returning job_id";
    let job: uuid::Uuid =
        sqlx::query_scalar(made).bind(submitted).bind(ended).fetch_one(&mut *connection).await.expect("made");
    for rest in [
        "insert into attempts (job_id, attempt, state, phase, end_time) values ($1, 1, 'SUCCEEDED', 'ENDED', now())",
        "insert into job_events (job_id, number, kind, message) select $1, n, 'x', 'x' from generate_series(1, 2) n",
    ] {
        sqlx::query(rest).bind(job).execute(&mut *connection).await.expect("made");
    }
    job
}

async fn points(connection: &mut PgConnection, job: uuid::Uuid, count: i64) {
    let made = "insert into metric_points (job_id, step, attempt, generation, loss, lr, grad_norm, tokens, tokens_per_second,
                  step_seconds, reduce_seconds, bytes_sent, seconds_left, eval_loss)
         select $1, n, 1, 1, 3 + sin(n * n), 0, 0, 1, 0, 0, 0, 0, 0, case when n % 97 = 0 then 1.0 end
         from generate_series(0, $2) n";
    sqlx::query(made).bind(job).bind(count).execute(connection).await.expect("made");
}

/// Makes a partition of a week as if its time had been now.
async fn partition(connection: &mut PgConnection, days_ago: i32) {
    for table in ["job_events", "metric_points"] {
        let make = "select make_job_partition($1, now() - make_interval(days => $2))";
        sqlx::query(make).bind(table).bind(days_ago).execute(&mut *connection).await.expect("made");
    }
}

/// As if this database had been there for a year: the first partition ends before the weeks that a test makes.
async fn age(connection: &mut PgConnection) {
    for table in ["job_events", "metric_points"] {
        let statements = format!(
            "alter table {table} detach partition {table}_first;
             alter table {table} attach partition {table}_first for values from (minvalue)
               to ('00000000-0000-0000-0000-000000000001')"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut *connection).await.expect("aged");
    }
}

#[tokio::test]
async fn partitions_are_made_ahead_and_take_over_what_came_before_them() {
    let bed = Bed::new().await;
    bed.coordinator().await.stop().await;
    let mut connection = connect(&bed.database_url).await;
    // Nobody made the next week's partition in time.
    let ahead = "select name from job_partitions where first_id is not null";
    let ahead: Vec<String> = sqlx::query_scalar(ahead).fetch_all(&mut connection).await.expect("names");
    for name in ahead {
        let drop = sqlx::AssertSqlSafe(format!("drop table {name}"));
        sqlx::query(drop).execute(&mut connection).await.expect("dropped");
    }
    let late = old_job(&mut connection, -7, -7).await;
    assert_eq!(bed.count("select count(*) from job_events_default").await, 2);
    let coordinator = bed.coordinator().await;
    // Beside the first one: next week's, and that of the week after.
    soon("partitions", || async {
        (bed.count("select count(*) from job_partitions where first_id is not null").await == 4).then_some(())
    })
    .await;
    assert_eq!(bed.count("select count(*) from job_events_default").await, 0);
    assert_eq!(coordinator.events(&format!("jobs/{late}")).await.len(), 2);
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn what_is_past_its_time_is_dropped_and_forgotten_and_nothing_else_is() {
    let bed = Bed::new().await;
    bed.coordinator().await.stop().await;
    let mut connection = connect(&bed.database_url).await;
    age(&mut connection).await;
    for days in [100, 120, 140] {
        partition(&mut connection, days).await;
    }
    // Of week 100 one job ended only lately; week 120 is past its time; in week 140 one job still lives.
    let (lately, past) = (old_job(&mut connection, 100, 60).await, old_job(&mut connection, 120, 119).await);
    let beside = old_job(&mut connection, 140, 139).await;
    let live = old_job(&mut connection, 140, 139).await;
    let revive = "update jobs set state = 'PAUSED', end_time = null where job_id = $1";
    sqlx::query(revive).bind(live).execute(&mut connection).await.expect("alive");
    let ancient = old_job(&mut connection, 400, 399).await;
    let coordinator = bed.coordinator_with(&BUSY).await;
    let events = async |job: uuid::Uuid| coordinator.events(&format!("jobs/{job}")).await.len();
    let name = |job: uuid::Uuid| pb::GetJobRequest { name: format!("jobs/{job}") };
    soon("the ancient job to go", || async {
        let answer = coordinator.jobs().await.get_job(name(ancient)).await;
        answer.is_err_and(|status| status.code() == tonic::Code::NotFound).then_some(())
    })
    .await;
    soon("the partition to go", || async { (events(past).await == 0).then_some(()) }).await;
    for kept in [lately, beside, live] {
        assert_eq!(events(kept).await, 2);
    }
    assert_eq!(
        coordinator.get(&name(past).name).await.state(),
        JobState::Succeeded,
        "the job itself is kept"
    );
    let left =
        "select count(*) from attempts a where not exists (select 1 from jobs j where j.job_id = a.job_id)";
    assert_eq!(bed.count(left).await, 0);
    assert_eq!(
        bed.count("select count(*) from job_events").await,
        6,
        "no event is left of a job that is not"
    );
}

#[tokio::test]
async fn too_many_jobs_and_workers_that_are_gone_are_forgotten() {
    let bed = Bed::new().await;
    bed.coordinator().await.stop().await;
    let mut connection = connect(&bed.database_url).await;
    let mut jobs = Vec::new();
    for days in [5, 4, 3, 2] {
        jobs.push(old_job(&mut connection, days, days).await);
    }
    // Somebody still waits to hear of the oldest.
    let waits = "insert into job_dependencies (job_id, after_job_id) values ($1, $2)";
    sqlx::query(waits).bind(jobs[3]).bind(jobs[0]).execute(&mut connection).await.expect("waits");
    let gone =
        "insert into workers (worker_id, name, state, resources, kind, slots, collective_address, gone_time)
         select gen_random_uuid(), 'w' || n, 'GONE', '{}', '', 1, '', now() - make_interval(days => n)
         from generate_series(29, 31) n";
    sqlx::query(gone).execute(&mut connection).await.expect("gone");
    let _coordinator = bed.coordinator_with(&[BUSY[0], BUSY[1], "--most-jobs", "2"]).await;
    soon("jobs to go", || async { (bed.count("select count(*) from jobs").await == 3).then_some(()) }).await;
    let left: Vec<uuid::Uuid> = sqlx::query_scalar("select job_id from jobs order by end_time")
        .fetch_all(&mut connection)
        .await
        .expect("jobs");
    assert_eq!(left, [jobs[0], jobs[2], jobs[3]]);
    soon("workers to go", || async { (bed.count("select count(*) from workers").await == 1).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_thinned_curve_keeps_its_shape_and_a_live_one_all_its_points() {
    let bed = Bed::new().await;
    let first = bed.coordinator().await;
    let live = first.submit(bed.spec(1, 1)).await;
    first.stop().await;
    let mut connection = connect(&bed.database_url).await;
    let (old, young) = (old_job(&mut connection, 9, 8).await, old_job(&mut connection, 9, 6).await);
    let live = live.trim_start_matches("jobs/").parse().expect("an id");
    for job in [old, young, live] {
        points(&mut connection, job, 5_400).await;
    }
    let extremes = "select array_agg((low, high, evaluated, last)::text) from (
           select min(loss) as low, max(loss) as high, count(eval_loss) as evaluated, max(step) as last
           from metric_points where job_id = $1 group by step / 10 order by step / 10) bucket";
    let before: Vec<String> =
        sqlx::query_scalar(extremes).bind(old).fetch_one(&mut connection).await.expect("a shape");
    let _coordinator = bed.coordinator_with(&BUSY).await;
    soon("the walk", || async {
        (bed.count("select count(*) from housekeeping where thinned_time > '-infinity'").await == 1)
            .then_some(())
    })
    .await;
    let counts: Vec<i64> = sqlx::query_scalar(
        "select (select count(*) from metric_points p where p.job_id = w.id)
                            from unnest($1::uuid[]) with ordinality w(id, n) order by n",
    )
    .bind([old, young, live])
    .fetch_all(&mut connection)
    .await
    .expect("counts");
    assert!(counts[0] <= 2000 && counts[1..] == [5_401, 5_401], "{counts:?}");
    let after: Vec<String> =
        sqlx::query_scalar(extremes).bind(old).fetch_one(&mut connection).await.expect("a shape");
    assert_eq!(before, after);
}

/// Nothing of this is visible to a job that runs meanwhile.
#[tokio::test]
async fn a_job_runs_beside_busy_housekeeping() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--housekeeping", "1ms"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    for step in 1..=20 {
        worker.progress(&place, step..=step).await;
    }
    worker.finish(&place, place.succeeded(100)).await;
    let done = coordinator.until_state(&job, JobState::Succeeded).await;
    assert_eq!((done.attempt, coordinator.points(&job).await.len()), (1, 20));
}
