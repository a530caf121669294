//! Every query that the coordinator makes reaches the big tables by an index, as Postgres plans it for a million jobs.
//!
//! A million rows take most of a minute to insert. So there are ten thousand jobs with what belongs to them, analyzed,
//! and then Postgres is told that each page holds a hundred times as many rows: the planner reads the pages' number
//! from the file, and how many rows a page holds from `pg_class`.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::bed::{Bed, connect, soon};

/// Rows in the tables below, in thousandths of those that the planner is told of.
const SCALE: i64 = 100;

/// Tables that grow with jobs; parts of the partitioned ones count as they.
const BIG: [&str; 12] = [
    "jobs",
    "attempts",
    "generations",
    "places",
    "members",
    "checkpoints",
    "job_dependencies",
    "job_costs",
    "job_events",
    "metric_points",
    "sweeps",
    "sweep_scores",
];

/// Queries that may read a big table from end to end, by a piece of their text, each with the reason. Every other query
/// is held to the rule, new ones too.
const COLD: &[(&str, &str)] = &[(
    "select exists (select 1 from jobs where tenant_id = $1)",
    "asked when a tenant is deleted; here all jobs are of one tenant, so that the first row answers",
)];

/// Ten thousand jobs: one in a hundred waits, one in two hundred runs, one in a thousand is paused, the rest has ended.
const FILL: &str = "
insert into sweeps (sweep_id, number, spec, sweep, children, rung_steps, end_time) overriding system value
  select gen_random_uuid(), n, '{}', '{}', 5, 10, case when n > 3 then now() - interval '1 hour' * n end
  from generate_series(1, 400) n;
insert into jobs (job_id, number, spec, workers_min, workers_max, priority, state, create_time, end_time, attempt, generation,
                  world_size, step, last_event, held, ready_time, deadline, max_run_seconds, request_id, sweep_id, sweep_child)
overriding system value
  select (left(first_job_id(now() + interval '2 minutes' * n)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid,
    n, '{}', 1 + n % 4, 1 + n % 4, n % 3, state, now(), case when state in ('SUCCEEDED', 'FAILED') then now() - interval '1 minute' * n end,
    case when state = 'QUEUED' then 0 else 1 end, 1, case when state = 'RUNNING' then 1 else 0 end, n % 100, 5,
    state = 'QUEUED' and n % 1000 = 0, case when n % 1000 = 0 then now() end, case when n % 50 = 0 then now() end,
    case when n % 40 = 0 then 100 end, gen_random_uuid(), sweep_id, case when sweep_id is not null then (n - 1) / 400 + 1 end
  from (select n, case when n % 100 = 0 then 'QUEUED' when n % 200 = 1 then 'RUNNING' when n % 1000 = 2 then 'PAUSED'
                       when n % 10 = 3 then 'FAILED' else 'SUCCEEDED' end as state from generate_series(1, 10000) n) j
  left join sweeps s on s.number = 1 + n % 400 and n <= 2000;
insert into workers (worker_id, name, resources, kind, slots, collective_address)
  select gen_random_uuid(), 'w' || n, '{}', '', 1, '' from generate_series(1, 500) n;
insert into worker_leases (worker_id) select worker_id from workers;
insert into attempts (job_id, attempt, state, phase, end_time)
  select job_id, 1, case state when 'RUNNING' then 'RUNNING' when 'FAILED' then 'FAILED' else 'SUCCEEDED' end,
         case state when 'RUNNING' then 'TRAINING' else 'ENDED' end, case when state <> 'RUNNING' then now() end
  from jobs where attempt = 1;
insert into generations (job_id, attempt, generation, generation_id, world_size) select job_id, 1, 1, 'x', 1 from attempts;
insert into places (job_id, attempt, place, worker_id, worker, address, slot, live, outcome, end_time, ready, counted)
  select a.job_id, 1, 1, w.worker_id, w.name, '', a.n, a.state = 'RUNNING', case when a.state <> 'RUNNING' then 'SUCCEEDED' end,
         a.end_time, '{}', a.state <> 'RUNNING'
  from (select *, row_number() over () as n from attempts) a join workers w on w.name = 'w' || 1 + a.n % 500;
insert into members (job_id, attempt, generation, index, place) select job_id, 1, 1, 0, 1 from places;
insert into job_costs (job_id) select job_id from attempts;
insert into job_dependencies (job_id, after_job_id, ended, settled)
  select j.job_id, k.job_id, j.state <> 'QUEUED', j.state <> 'QUEUED' from jobs j join jobs k on k.number = j.number - 1 where j.number % 3 = 1;
insert into checkpoints (job_id, name, step, attempt, generation, files, manifest_sha256, expired, counted)
  select job_id, n::text, n, 1, 1, '[]', '', n = 1, j.state <> 'RUNNING' from jobs j, generate_series(1, 2) n;
insert into job_events (job_id, number, kind, message, attempt, key)
  select job_id, n, 'x', 'a sentence about what came of it', 1, case when n % 3 = 0 then n::text end from jobs, generate_series(1, 4) n;
insert into metric_points (job_id, step, attempt, generation, loss, lr, grad_norm, tokens, tokens_per_second, step_seconds,
                           reduce_seconds, bytes_sent, seconds_left, eval_loss)
  select job_id, n, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, case when n % 4 = 0 then 1.0 end from jobs, generate_series(1, 4) n;
insert into sweep_scores (sweep_id, rung, child, loss, beaten, ending, settled)
  select sweep_id, n, c, 1, n = 2, case when n = 2 then 'x' end, true from sweeps, generate_series(1, 2) n, generate_series(1, 5) c;
-- Ten times as many jobs have ten times as many sweeps; what Postgres finds by itself is a fixed number of them.
alter table jobs alter column sweep_id set (n_distinct = -0.04);
alter table sweep_scores alter column sweep_id set (n_distinct = -0.1);
analyze;
";

/// A query that reads a big table from end to end, and where its plan does so.
type Fault = (String, String);

#[tokio::test]
async fn every_query_reaches_the_big_tables_by_an_index() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    bed.until_led().await;
    soon("partitions", || async {
        (bed.count("select count(*) from job_partitions").await == 6).then_some(())
    })
    .await;
    coordinator.stop().await;
    let mut connection = connect(&bed.database_url).await;
    sqlx::raw_sql(FILL).execute(&mut connection).await.expect("filled");
    let grow = format!(
        "update pg_class set reltuples = reltuples * {SCALE} where relnamespace = 'public'::regnamespace and reltuples > 0
           and relname not like 'worker%'"
    );
    sqlx::raw_sql(AssertSqlSafe(grow)).execute(&mut connection).await.expect("grown");
    let told = "select sum(reltuples)::bigint from pg_class where relname = 'jobs'";
    assert_eq!(bed.count(told).await, 10_000 * SCALE);
    let settings = "set plan_cache_mode = force_generic_plan";
    sqlx::raw_sql(settings).execute(&mut connection).await.expect("set");
    let partial = partial_indexes(&mut connection).await;
    let (mut faults, mut used) = (Vec::new(), BTreeMap::new());
    for query in queries() {
        let cold = COLD.iter().find(|(piece, _)| query.contains(piece));
        if let Some((piece, _)) = cold {
            used.insert(*piece, ());
            continue;
        }
        if let Some(plan) = plan(&mut connection, &query).await {
            faults.extend(whole_reads(&plan, &partial).into_iter().map(|at| (query.clone(), at)));
        }
    }
    assert_eq!(used.len(), COLD.len(), "a piece of text in COLD is in no query any more: {used:?}");
    let told: Vec<String> = faults.iter().map(|(query, at): &Fault| format!("{at}: {query}")).collect();
    assert!(faults.is_empty(), "{} queries read a big table whole:\n{}", faults.len(), told.join("\n\n"));
}

/// The text of every query in `.sqlx`, which is every query that the coordinator makes.
fn queries() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../.sqlx");
    let files = std::fs::read_dir(folder).expect("the folder of queries");
    let text = |path| -> String {
        let file = std::fs::read_to_string(path).expect("a file");
        let described: Value = serde_json::from_str(&file).expect("JSON");
        described["query"].as_str().expect("a query").to_owned()
    };
    let queries: Vec<String> = files.map(|file| text(file.expect("an entry").path())).collect();
    assert!(queries.len() > 100, "{} queries are not all", queries.len());
    queries
}

/// Indexes over part of a table: reading one whole is reading what it is for.
async fn partial_indexes(connection: &mut PgConnection) -> Vec<String> {
    let partial = "select indexrelid::regclass::text from pg_index where indpred is not null";
    sqlx::query_scalar(partial).fetch_all(connection).await.expect("names")
}

/// How Postgres goes about a query whose parameters it does not know. `None`: it is not planned at all.
async fn plan(connection: &mut PgConnection, query: &str) -> Option<Value> {
    if ["lock ", "set "].iter().any(|utility| query.trim_start().starts_with(utility)) {
        return None;
    }
    let prepare = AssertSqlSafe(format!("prepare q as {query}"));
    sqlx::raw_sql(prepare).execute(&mut *connection).await.unwrap_or_else(|error| panic!("{error}: {query}"));
    let count = "select cardinality(parameter_types) from pg_prepared_statements where name = 'q'";
    let count: i32 = sqlx::query_scalar(count).fetch_one(&mut *connection).await.expect("a count");
    let nulls = vec!["null"; usize::try_from(count).expect("a number")].join(", ");
    let arguments = if count == 0 { String::new() } else { format!("({nulls})") };
    let explain = AssertSqlSafe(format!("explain (format json) execute q{arguments}"));
    let plan: Value = sqlx::query_scalar(explain).fetch_one(&mut *connection).await.expect("a plan");
    sqlx::raw_sql("deallocate q").execute(connection).await.expect("forgotten");
    Some(plan[0]["Plan"].clone())
}

/// Where a plan reads a big table from end to end: row by row, or through a whole index that is over all rows. Reading
/// along an index until a limit is reached is neither.
fn whole_reads(plan: &Value, partial: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    visit(plan, false, &mut |node, limited| {
        let text = |key: &str| node[key].as_str().unwrap_or_default();
        let table = text("Relation Name");
        let is_big = BIG.iter().any(|big| table == *big || table.starts_with(&format!("{big}_2")))
            || ["job_events_", "metric_points_"].iter().any(|big| table.starts_with(big))
                && !table.ends_with("_default");
        let index = text("Index Name");
        let whole_index = !index.is_empty() && node["Index Cond"].is_null() && !limited;
        let over_all = !partial.iter().any(|partial| partial == index);
        if text("Node Type").ends_with("Seq Scan") && is_big {
            found.push(format!("{} of {table}", text("Node Type")));
        } else if whole_index && over_all && (is_big || table.is_empty()) {
            found.push(format!("{} of the whole {index}", text("Node Type")));
        }
    });
    found
}

fn visit(node: &Value, limited: bool, see: &mut impl FnMut(&Value, bool)) {
    see(node, limited);
    // A sort reads all that is below it, whatever limit is above.
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let limited = (limited || kind == "Limit") && !["Sort", "Aggregate", "Hash", "Hash Join"].contains(&kind);
    for child in node["Plans"].as_array().into_iter().flatten() {
        visit(child, limited, see);
    }
}
