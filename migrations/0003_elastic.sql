-- Gangs that change while they train: a place is a worker's seat in an attempt, a generation lists places by index.

-- Who holds which place of an attempt, on which slot. Live until its holder stopped, its lease ended, or the gang went
-- on without it. Numbers grow within the attempt and are never given twice.
create table places (
    job_id uuid not null,
    attempt integer not null,
    place integer not null check (place >= 1),
    worker_id uuid not null,
    worker text not null,
    address text not null,
    kind text not null default '',
    slot integer not null check (slot >= 0),
    live boolean not null default true,
    -- lorafleet.v1.Ready as JSON, once base and data are loaded.
    ready jsonb,
    -- lorafleet.v1.Parted as JSON, from the job's current generation only.
    parted jsonb,
    -- Why it was asked to give its place back, if it was.
    leaving text,
    outcome text check (outcome in ('SUCCEEDED', 'FAILED', 'LOST', 'RELEASED', 'STOPPED', 'EXPELLED')),
    message text not null default '',
    start_time timestamptz not null default now(),
    end_time timestamptz,
    primary key (job_id, attempt, place),
    foreign key (job_id, attempt) references attempts on delete cascade,
    check (live = (outcome is null)),
    check (live = (end_time is null))
);
insert into places (job_id, attempt, place, worker_id, worker, address, slot, live, ready, outcome, message, end_time)
select job_id, attempt, index + 1, worker_id, worker, address, slot, live, ready, outcome, message,
       case when not live then now() end
from assignments;
-- A slot runs one job at a time.
create unique index places_live_slot on places (worker_id, slot) where live;
-- A worker holds at most one place of an attempt.
create unique index places_live_worker on places (job_id, attempt, worker_id) where live;

-- The places of each generation, by index.
create table members (
    job_id uuid not null,
    attempt integer not null,
    generation integer not null,
    index integer not null check (index >= 0),
    place integer not null,
    primary key (job_id, attempt, generation, index),
    unique (job_id, attempt, generation, place),
    foreign key (job_id, attempt, generation) references generations on delete cascade,
    foreign key (job_id, attempt, place) references places on delete cascade
);
insert into members select job_id, attempt, generation, index, index + 1 from assignments;
drop table assignments;

-- The greatest step that a member held when the generation was opened.
alter table generations add column start_step bigint not null default 0;

-- Unique within the attempt, for events that members report: several may report one, and each may repeat it.
drop index job_events_reported;
alter table job_events add column key text;
update job_events set key = generation || '/' || reporter || '/' || sequence where reporter is not null;
alter table job_events drop column reporter, drop column sequence;
create unique index job_events_key on job_events (job_id, attempt, key) where key is not null;

-- The higher goes first.
alter table jobs add column priority integer not null default 0;
drop index jobs_queued;
create index jobs_queued on jobs (priority desc, number) where state = 'QUEUED';

-- Tells a process that registers again from another one of the same name.
alter table workers add column process_id text not null default '';
