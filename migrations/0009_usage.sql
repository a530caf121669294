-- Usage: how time is split into hours, what is not counted yet, and what makes counting it cheap.

-- The hours that a span of time touches, each with the seconds of the span that fall into it. Hours are those of UTC,
-- whatever the session's time zone; a span that ends before it begins has none.
create function hour_parts(span_start timestamptz, span_end timestamptz)
returns table (hour timestamptz, seconds double precision)
language sql stable parallel safe
as $$
    select h, extract(epoch from least(span_end, h + interval '1 hour') - greatest(span_start, h))::float8
    from generate_series(date_trunc('hour', span_start, 'UTC'), span_end, interval '1 hour') h
    where h < span_end and span_start < span_end
$$;

-- What live places, and those that ended since the last count, have used until now.
create view places_uncounted_hours as
select p.job_id, j.tenant_id, part.hour, part.seconds
from places p
join jobs j on j.job_id = p.job_id
cross join lateral hour_parts(p.start_time, coalesce(p.end_time, now())) part
where not p.counted;

-- A checkpoint's bytes are in `usage_hours` and `job_costs` if it is counted. Those of before there was such a count
-- stay out of it.
alter table checkpoints add column counted boolean not null default true;
alter table checkpoints alter column counted set default false;
create index checkpoints_uncounted on checkpoints (job_id) where not counted;

-- What was used, by tenant and hour: what is counted, and what is not counted yet. Steps that are not counted are some
-- seconds old; they count for the hour that it is.
create view usage_until_now as
select tenant_id, hour, worker_seconds, tokens, flops, bytes from usage_hours
union all
select tenant_id, hour, seconds, 0, 0, 0 from places_uncounted_hours
union all
select j.tenant_id, date_trunc('hour', now(), 'UTC'), 0, p.tokens, p.tokens * j.flops_per_token, 0
from (select distinct job_id from places where not counted) running
join jobs j on j.job_id = running.job_id
left join job_costs c on c.job_id = running.job_id
join metric_points p on p.job_id = running.job_id and p.step > coalesce(c.counted_step, -1)
union all
select tenant_id, date_trunc('hour', create_time, 'UTC'), 0, 0, 0, bytes from checkpoints where not counted;
