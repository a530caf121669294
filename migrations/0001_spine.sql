-- The spine: jobs, their attempts and gangs, the fleet, and what jobs leave behind.
-- Rules: state changes only through the coordinator's state machine; every write that a worker causes compares the
-- fence (attempt, generation, generation_id) for equality; order comes from identity numbers, never from clocks.

-- Which coordinator schedules. Standbys watch `counter` stand still by their own clocks.
create table scheduler_lease (
    only_row boolean primary key default true check (only_row),
    holder uuid,
    epoch bigint not null default 0,
    counter bigint not null default 0
);
insert into scheduler_lease default values;

-- Worker processes. One that restarts is a new row with the old name.
create table workers (
    worker_id uuid primary key,
    -- Order of registration; the key of pages.
    number bigint generated always as identity unique,
    name text not null,
    state text not null default 'LIVE' check (state in ('LIVE', 'GONE')),
    draining boolean not null default false,
    -- lorafleet.v1.WorkerResources as JSON.
    resources jsonb not null,
    kind text not null,
    slots integer not null check (slots between 1 and 1024),
    collective_address text not null,
    register_time timestamptz not null default now()
);
create unique index workers_live_name on workers (name) where state = 'LIVE';
create index workers_name on workers (name);

-- The heartbeats: one narrow row a live worker, updated in place (no index over `counter`, so updates stay in the page).
create table worker_leases (
    worker_id uuid primary key references workers on delete cascade,
    counter bigint not null default 0
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

create table jobs (
    job_id uuid primary key,
    -- Order of submission: the queue's order and the key of pages.
    number bigint generated always as identity unique,
    request_id uuid unique,
    -- lorafleet.v1.JobSpec as JSON, with defaults filled in.
    spec jsonb not null,
    workers_min integer not null check (workers_min >= 1),
    workers_max integer not null check (workers_max >= workers_min),
    state text not null default 'QUEUED' check (state in ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    state_message text not null default '',
    create_time timestamptz not null default now(),
    start_time timestamptz,
    end_time timestamptz,
    -- The fence of the live attempt, or of the last one.
    attempt integer not null default 0,
    generation integer not null default 0,
    generation_id text not null default '',
    world_size integer not null default 0,
    -- The kinds of the last gang's workers, sorted: bit equality ends where they change.
    kinds text not null default '',
    step bigint not null default 0,
    total_steps bigint not null default 0,
    infrastructure_failures integer not null default 0,
    -- Number of the last event; events are dense.
    last_event bigint not null default 0,
    -- lorafleet.v1.JobResult as JSON; json, not jsonb, since answers may hold any character.
    result json,
    check ((state in ('SUCCEEDED', 'FAILED', 'CANCELLED')) = (end_time is not null)),
    check (state = 'RUNNING' or world_size = 0)
) with (fillfactor = 70);
create index jobs_queued on jobs (number) where state = 'QUEUED';
create index jobs_state on jobs (state, number);

create table attempts (
    job_id uuid not null references jobs on delete cascade,
    attempt integer not null check (attempt >= 1),
    state text not null default 'RUNNING'
        check (state in ('RUNNING', 'SUCCEEDED', 'FAILED', 'LOST', 'RELEASED', 'CANCELLED')),
    -- LOADING: until all members are ready. TRAINING. CLOSING: a member is gone, the others are told to stop. ENDED.
    phase text not null default 'LOADING' check (phase in ('LOADING', 'TRAINING', 'CLOSING', 'ENDED')),
    message text not null default '',
    start_time timestamptz not null default now(),
    end_time timestamptz,
    -- The newest checkpoint's step when it began to train.
    start_step bigint not null default 0,
    -- The job's last finished step when the attempt was made.
    steps_before bigint not null default 0,
    primary key (job_id, attempt),
    check ((state = 'RUNNING') = (end_time is null)),
    check ((state = 'RUNNING') = (phase <> 'ENDED'))
);
-- Exactly one attempt of a job is live.
create unique index attempts_live on attempts (job_id) where state = 'RUNNING';

-- Every membership that a gang ever had. A checkpoint's fence must be one of these.
create table generations (
    job_id uuid not null,
    attempt integer not null,
    generation integer not null check (generation >= 1),
    generation_id text not null,
    world_size integer not null check (world_size >= 1),
    open_time timestamptz not null default now(),
    primary key (job_id, attempt, generation),
    foreign key (job_id, attempt) references attempts on delete cascade
);

-- Who holds which place of a gang, on which slot. Live until the member stopped or its lease ended.
create table assignments (
    job_id uuid not null,
    attempt integer not null,
    generation integer not null,
    index integer not null check (index >= 0),
    worker_id uuid not null,
    worker text not null,
    address text not null,
    slot integer not null check (slot >= 0),
    live boolean not null default true,
    -- lorafleet.v1.Ready as JSON, once base and data are loaded.
    ready jsonb,
    outcome text check (outcome in ('SUCCEEDED', 'FAILED', 'LOST', 'RELEASED', 'STOPPED')),
    message text not null default '',
    primary key (job_id, attempt, generation, index),
    foreign key (job_id, attempt, generation) references generations on delete cascade,
    check (live = (outcome is null))
);
-- A slot runs one job at a time.
create unique index assignments_live_slot on assignments (worker_id, slot) where live;
-- A worker holds at most one place in a gang.
create unique index assignments_member on assignments (job_id, attempt, generation, worker_id);

create table job_events (
    job_id uuid not null references jobs on delete cascade,
    number bigint not null check (number >= 1),
    time timestamptz not null default now(),
    kind text not null,
    message text not null,
    attempt integer not null default 0,
    generation integer not null default 0,
    -- For events that a member reported: its index and its own sequence number, so that a repeated report is stored once.
    reporter integer,
    sequence bigint,
    primary key (job_id, number)
);
create unique index job_events_reported on job_events (job_id, attempt, generation, reporter, sequence)
    where reporter is not null;

create table checkpoints (
    job_id uuid not null references jobs on delete cascade,
    -- {step:010}-{attempt:04}-{generation:04}-{generation_id}
    -- Byte order, so that names sort by step.
    name text collate "C" not null,
    step bigint not null check (step >= 0),
    attempt integer not null,
    generation integer not null,
    create_time timestamptz not null default now(),
    -- The list of lorafleet.v1.CheckpointFile as JSON.
    files jsonb not null,
    manifest_sha256 text not null,
    final boolean not null default false,
    -- The keep rule let it go: its files are deleted or about to be. Kept so that its manifest is never adopted.
    expired boolean not null default false,
    primary key (job_id, name),
    check (not (final and expired))
);
create index checkpoints_whole on checkpoints (job_id, step desc, attempt desc) where not expired;

create table metric_points (
    job_id uuid not null references jobs on delete cascade,
    step bigint not null check (step >= 0),
    attempt integer not null,
    generation integer not null,
    loss double precision not null,
    lr double precision not null,
    grad_norm double precision not null,
    tokens bigint not null,
    tokens_per_second double precision not null,
    step_seconds double precision not null,
    reduce_seconds double precision not null,
    bytes_sent bigint not null,
    seconds_left double precision not null,
    eval_loss double precision,
    primary key (job_id, step)
);
