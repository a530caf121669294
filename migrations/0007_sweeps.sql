-- Sweeps: many jobs of one submission, and how they compare at each rung.

create table sweeps (
    sweep_id uuid primary key,
    -- Order of submission: the key of pages.
    number bigint generated always as identity unique,
    request_id uuid unique,
    -- lorafleet.v1.JobSpec and SweepSpec as JSON, as they were sent.
    spec jsonb not null,
    sweep jsonb not null,
    children integer not null check (children between 1 and 1000),
    -- Steps from one rung to the next; 0: no child is ended early.
    rung_steps bigint not null default 0 check (rung_steps >= 0),
    keep double precision not null default 1 check (keep > 0 and keep <= 1),
    min_children integer not null default 1 check (min_children >= 1),
    cancelled boolean not null default false,
    create_time timestamptz not null default now(),
    -- When its last child was seen to have ended.
    end_time timestamptz
);
-- What the leader looks through.
create index sweeps_open on sweeps (number) where end_time is null;

alter table jobs add column sweep_id uuid references sweeps on delete set null;
-- Its place in the sweep, from 1.
alter table jobs add column sweep_child integer;
-- The list of lorafleet.v1.SweepSetting as JSON.
alter table jobs add column sweep_settings jsonb;
create unique index jobs_sweep on jobs (sweep_id, sweep_child) where sweep_id is not null;

-- What a child's evaluation was at a rung, and what was decided. Written by the leader only; a decision is never taken
-- back, so a leader after it goes on from here.
create table sweep_scores (
    sweep_id uuid not null references sweeps on delete cascade,
    rung integer not null check (rung >= 1),
    child integer not null,
    loss double precision not null,
    -- It is not among those that go on.
    beaten boolean not null,
    -- Why it is to be ended; null: it is not, or it ended by itself before that.
    ending text,
    -- The end was carried out.
    settled boolean not null default false,
    time timestamptz not null default now(),
    primary key (sweep_id, rung, child)
);
create index sweep_scores_open on sweep_scores (sweep_id) where ending is not null and not settled;

-- Evaluations are few among the points, and sweeps read them alone.
create index metric_points_evaluated on metric_points (job_id, step) where eval_loss is not null;
