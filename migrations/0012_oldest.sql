-- The oldest jobs of each tenant's line, found without passing over those that have ended.
create index jobs_oldest on jobs (tenant_id, number) where state = 'QUEUED' and not held;
-- Which base a job is about is told by its digest: the same base may have been submitted under several names.
alter table jobs drop column base;
alter table jobs add column base text generated always as (coalesce(spec #>> '{base,sha256}', '')) stored;
