-- What a decision goes by: the line of each tenant, and which base a job is about.

alter table jobs add column base text generated always as (coalesce(spec ->> 'base', '')) stored;
drop index jobs_queued;
create index jobs_line on jobs (tenant_id, priority desc, number) where state = 'QUEUED' and not held;
