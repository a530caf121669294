-- The life of a job: paused, retried, preempted, held back, bounded in time; and what workers are labelled with.

alter table jobs drop constraint jobs_state_check;
alter table jobs add constraint jobs_state_check
    check (state in ('QUEUED', 'RUNNING', 'PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED'));

-- From the job's `queue` section.
alter table jobs add column not_before timestamptz;
alter table jobs add column deadline timestamptz;
alter table jobs add column max_run_seconds bigint check (max_run_seconds > 0);
alter table jobs add column selector jsonb not null default '{}';
alter table jobs add column retries integer not null default 0 check (retries >= 0);

-- Wall time of the attempts that ended.
alter table jobs add column run_seconds double precision not null default 0;
-- Failures of the job's own that it was given another try after; infrastructure failures are counted elsewhere.
alter table jobs add column retries_used integer not null default 0;
alter table jobs add column preemptions integer not null default 0;
-- Since when it waits: its submission, or when it came back to the queue.
alter table jobs add column queue_time timestamptz not null default now();
-- Queued, but not to be started yet: it waits for a time, or for other jobs.
alter table jobs add column held boolean not null default false;
-- A held job waits at least until then.
alter table jobs add column ready_time timestamptz;
-- Its gang was asked to stop with a checkpoint, and what becomes of the job then.
alter table jobs add column yielding text check (yielding in ('PAUSE', 'PREEMPT'));
-- What the scheduler last said about its place in the queue and its start, with state_message.
alter table jobs add column queue_position integer;
alter table jobs add column start_estimate_seconds bigint;
alter table jobs add constraint jobs_yielding_runs check (yielding is null or state = 'RUNNING');

drop index jobs_queued;
create index jobs_queued on jobs (priority desc, number) where state = 'QUEUED' and not held;
create index jobs_held on jobs (ready_time) where state = 'QUEUED' and held;
create index jobs_deadline on jobs (deadline) where state in ('QUEUED', 'RUNNING', 'PAUSED') and deadline is not null;
create index jobs_bounded on jobs (job_id) where state = 'RUNNING' and max_run_seconds is not null;

-- A job starts when all that it comes after have succeeded.
create table job_dependencies (
    job_id uuid not null references jobs on delete cascade,
    after_job_id uuid not null references jobs on delete cascade,
    -- The other one has ended; written with that end.
    ended boolean not null default false,
    -- The leader has drawn the consequence.
    settled boolean not null default false,
    primary key (job_id, after_job_id),
    check (job_id <> after_job_id)
);
create index job_dependencies_after on job_dependencies (after_job_id) where not ended;
create index job_dependencies_ended on job_dependencies (job_id) where ended and not settled;

-- Names with values that jobs can ask for; `device` is always there.
alter table workers add column labels jsonb not null default '{}';
update workers set labels = jsonb_build_object('device', lower(coalesce(resources ->> 'device', 'cpu')));
