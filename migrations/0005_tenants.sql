-- Tenants: whose a job is, what each may use, who may speak for it, and what it has used.

create table tenants (
    tenant_id uuid primary key,
    -- Order of creation; the key of pages.
    number bigint generated always as identity unique,
    name text not null unique check (name ~ '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'),
    -- Its part of a contended fleet, against the weights of the others.
    weight double precision not null default 1 check (weight > 0 and weight <= 1000000),
    -- Quotas; null: none. Workers that its jobs hold at once, and jobs that wait.
    max_workers integer check (max_workers >= 0),
    max_queued integer check (max_queued >= 0),
    -- Worker-seconds in the last `window_seconds`.
    max_worker_seconds bigint check (max_worker_seconds >= 0),
    window_seconds bigint not null default 604800 check (window_seconds between 3600 and 31622400),
    -- Bytes of the checkpoints that its jobs have in the store.
    max_stored_bytes bigint check (max_stored_bytes >= 0),
    create_time timestamptz not null default now()
);
insert into tenants (tenant_id, name) values ('00000000-0000-0000-0000-000000000001', 'default');

-- No foreign key: its check would lock the tenant's row in every submission, and that row would be the hottest of all.
-- Tenants are never deleted, and a job is stored in the transaction that read its tenant.
alter table jobs add column tenant_id uuid not null default '00000000-0000-0000-0000-000000000001';
create index jobs_tenant_queued on jobs (tenant_id) where state = 'QUEUED';
create index jobs_tenant on jobs (tenant_id, number);
-- Estimated floating point operations of training on one token, by the plan at submission; 0: not known.
alter table jobs add column flops_per_token double precision not null default 0;

-- What lets a caller speak for a tenant. The secret itself is kept nowhere.
create table api_tokens (
    token_id uuid primary key,
    -- Order of creation; the key of pages.
    number bigint generated always as identity unique,
    tenant_id uuid not null references tenants,
    role text not null check (role in ('viewer', 'submitter', 'operator', 'admin')),
    -- What people call it.
    description text not null default '',
    -- Of the secret.
    sha256 bytea not null unique check (octet_length(sha256) = 32),
    create_time timestamptz not null default now(),
    expire_time timestamptz,
    revoke_time timestamptz
);
create index api_tokens_tenant on api_tokens (tenant_id, number);

-- What a place used is in `usage_hours` and `job_costs` if it is counted, and is read from its own times until then: so
-- each second counts once, whoever folds it in and whenever. Only ended places are counted.
alter table places add column counted boolean not null default false;
alter table places add check (not (live and counted));
create index places_uncounted on places (job_id) where not counted;

-- Of all files; and whose they are, so that a tenant's sum is read from one index.
alter table checkpoints add column bytes bigint not null default 0;
alter table checkpoints add column tenant_id uuid not null default '00000000-0000-0000-0000-000000000001';
update checkpoints set bytes = coalesce(
    (select sum(coalesce((file ->> 'sizeBytes')::bigint, 0)) from jsonb_array_elements(files) file), 0);
create index checkpoints_stored on checkpoints (tenant_id) include (bytes) where not expired;

-- What tenants used, by the hour in which it was used.
create table usage_hours (
    tenant_id uuid not null,
    hour timestamptz not null,
    worker_seconds double precision not null default 0,
    -- Trained on, prompts and answers included.
    tokens bigint not null default 0,
    -- Written to the store.
    bytes bigint not null default 0,
    flops double precision not null default 0,
    primary key (tenant_id, hour)
) with (fillfactor = 70);

-- What each job used, as far as it is counted.
create table job_costs (
    job_id uuid primary key references jobs on delete cascade,
    worker_seconds double precision not null default 0,
    tokens bigint not null default 0,
    bytes bigint not null default 0,
    flops double precision not null default 0,
    -- Points up to this step are counted.
    counted_step bigint not null default -1
) with (fillfactor = 70);
