-- Housekeeping: events and points in partitions by the time of their job's submission, which are dropped whole, and what
-- makes it cheap to find what is past its time.

-- A job's id begins with the millisecond of its submission (UUID version 7), so a range of ids is a span of time. All rows
-- of a job lie in one partition: its numbers stay unique by the partition's own index, reading a job's rows opens one
-- partition, and a history is there whole or not at all.
create function first_job_id(moment timestamptz) returns uuid
language sql immutable strict parallel safe
as $$
    select rpad(lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- How often a point was stored: the first time it counts as news. (Partitioned tables do not tell by `xmax`.)
alter table metric_points add column stored integer not null default 1;

-- What is there becomes the first partition, which ends with this week. There is no foreign key to jobs any more: whoever
-- writes an event or a point updates the job's row in the same statement and writes nothing where there is none; whoever
-- deletes a job deletes these rows with it.
do $$
declare
    name text;
    next_week uuid := first_job_id(date_trunc('week', now(), 'UTC') + interval '7 days');
begin
    foreach name in array array['job_events', 'metric_points'] loop
        execute format('alter table %I drop constraint %I', name, name || '_job_id_fkey');
        execute format('alter table %I rename to %I', name, name || '_first');
        execute format('alter index %I rename to %I', name || '_pkey', name || '_first_pkey');
        execute format('create table %I (like %I including defaults including constraints) partition by range (job_id)',
                       name, name || '_first');
    end loop;
    alter index job_events_key rename to job_events_first_key;
    alter index metric_points_evaluated rename to metric_points_first_evaluated;
    alter table job_events add primary key (job_id, number);
    create unique index job_events_key on job_events (job_id, attempt, key) where key is not null;
    alter table metric_points add primary key (job_id, step);
    create index metric_points_evaluated on metric_points (job_id, step) where eval_loss is not null;
    foreach name in array array['job_events', 'metric_points'] loop
        execute format('alter table %I attach partition %I for values from (minvalue) to (%L)',
                       name, name || '_first', next_week);
        -- Takes what belongs to no other: nothing, unless no coordinator led for weeks. Its rows go with their jobs.
        execute format('create table %I partition of %I default', name || '_default', name);
    end loop;
end
$$;

-- The partitions with bounds; `first_id` is null where everything earlier is in it. `rows` is Postgres' own estimate.
create view job_partitions as
select parent.relname::text as parent, part.relname::text as name,
       substring(bound.text from 'FROM \(''([0-9a-f-]+)''\)')::uuid as first_id,
       substring(bound.text from 'TO \(''([0-9a-f-]+)''\)')::uuid as end_id,
       greatest(part.reltuples, 0)::bigint as rows
from pg_class parent
join pg_inherits i on i.inhparent = parent.oid
join pg_class part on part.oid = i.inhrelid
cross join lateral (select pg_get_expr(part.relpartbound, part.oid) as text) bound
where parent.oid in ('job_events'::regclass, 'metric_points'::regclass) and bound.text <> 'DEFAULT';

-- Makes the partition of a week, if there is none that holds its jobs. Gives whether it did. Rows that came before it
-- are taken over from the default partition.
create function make_job_partition(parent text, week timestamptz) returns boolean
language plpgsql
as $$
declare
    monday timestamptz := date_trunc('week', week, 'UTC');
    from_id uuid := first_job_id(monday);
    to_id uuid := first_job_id(monday + interval '7 days');
    name text := parent || to_char(monday at time zone 'UTC', '"_"YYYYMMDD');
begin
    if exists (select 1 from job_partitions p
               where p.parent = make_job_partition.parent and p.end_id > from_id and coalesce(p.first_id < to_id, true)) then
        return false;
    end if;
    -- The only lock that anybody could wait for, so that nobody waits in a circle.
    execute format('lock table %I in access exclusive mode', parent || '_default');
    execute format('create table %I (like %I including defaults including constraints)', name, parent);
    execute format('with late as (delete from %I where job_id >= %L and job_id < %L returning *) insert into %I select * from late',
                   parent || '_default', from_id, to_id, name);
    execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, name, from_id, to_id);
    return true;
end
$$;

-- Drops a partition, unless a job of its span lives, or ended after `ended_before`. Gives whether it did.
create function drop_job_partition(partition text, ended_before timestamptz) returns boolean
language plpgsql
as $$
declare
    part record;
begin
    select * into part from job_partitions where name = partition;
    if not found
        or exists (select 1 from jobs j where j.state in ('QUEUED', 'RUNNING', 'PAUSED')
                     and (part.first_id is null or j.job_id >= part.first_id) and j.job_id < part.end_id)
        or exists (select 1 from jobs j where j.end_time >= ended_before
                     and (part.first_id is null or j.job_id >= part.first_id) and j.job_id < part.end_id) then
        return false;
    end if;
    execute format('drop table %I', part.name);
    return true;
end
$$;

-- How far the walk through ended jobs has come that thins their points; one row.
create table housekeeping (
    only_row boolean primary key default true check (only_row),
    thinned_time timestamptz not null default '-infinity',
    thinned_job uuid not null default '00000000-0000-0000-0000-000000000000'
);
insert into housekeeping default values;

-- Ended jobs, first to last.
create index jobs_ended on jobs (end_time, job_id) where end_time is not null;
-- What a deleted job is looked for in.
create index job_dependencies_of on job_dependencies (after_job_id);
create index sweeps_ended on sweeps (end_time) where end_time is not null;
-- Rows that only keep manifests from being adopted again.
create index checkpoints_expired on checkpoints (job_id, step desc, name) where expired;

-- When a worker was last known; null while it is there.
alter table workers add column gone_time timestamptz;
update workers set gone_time = now() where state = 'GONE';
create index workers_gone on workers (gone_time) where state = 'GONE';
