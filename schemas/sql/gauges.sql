-- What control exports of the tables every few seconds (control/tasks/gauges.py): each bounded, whatever the size of the tables.

-- name: near_last
-- Those in back-off, whom the index of unqueued work has by their time, and those being fetched. A queued one is claimed soon.
select count(*) from (
    select 1 from sluice.repo
    where phase = 'pending' and queued_at is null and next_retry_at > now() and retry_count >= %(count)s
    union all
    select 1 from sluice.repo where phase = 'backfill' and retry_count >= %(count)s
) r

-- name: stuck
select count(*) from sluice.repo
where phase = 'backfill' and produced_offset is null and phase_since < now() - interval '1 hour'

-- name: jobs
-- `near_last`: of those that are not over, such as one failure ends.
select status, count(*), count(*) filter (where completed_at is null and retry_count >= %(count)s) as near_last,
       extract(epoch from now() - min(updated_at))::float8 as still,
       extract(epoch from now() - min(started_at))::float8 as running
from sluice.backfill_job group by status

-- name: hosts
select count(*) as known, count(*) filter (where consecutive_failures > 0) as failing,
       count(*) filter (where paused_until > now()) as paused,
       coalesce(extract(epoch from max(paused_until) filter (where paused_until > now()) - now()), 0)::float8 as pause_left
from sluice.host

-- name: letters
select count(*) from sluice.dead_letter where state = 'open'

-- name: skipped
select count(*), coalesce(extract(epoch from now() - min(skipped_at)), 0)::float8 as age
from sluice.skipped_range where filled_at is null

-- name: gaps
select count(*) from sluice.stream_gap where answered_at is null

-- name: cursors
select flow, upstream, extract(epoch from now() - updated_at)::float8 as age
from sluice.cursor where upstream = any(%(upstreams)s::text[])

-- name: handles_late
-- Of what is due by the clock: what an event asks for has no time of its own.
select coalesce(extract(epoch from now() - min(next_check_at)), 0)::float8 as seconds
from sluice.handle where next_check_at > '-infinity' and next_check_at <= now()

-- name: audit
-- Repos that the newest audit found wrong, and when it last moved on.
select count(distinct f.did), extract(epoch from r.updated_at)::float8 as time
from (select id, updated_at from sluice.audit_run where not abandoned order by id desc limit 1) r
left join sluice.audit_finding f on f.run = r.id
group by r.updated_at

-- name: size
select pg_database_size(current_database()) as bytes

-- name: hosts_with_work
-- PDSes with most repos that are not done, from a sample of the table's pages where it is large. A relay's listing names no
-- PDS: of those repos it is known as soon as their DID was resolved.
with counted as (
    select coalesce(r.host, i.pds, '') as host, r.phase, count(*) * 100.0 / %(percent)s as repos
    from sluice.repo r tablesample system (%(percent)s) left join sluice.identity i using (did) group by 1, 2
), top as (
    select host, sum(repos) filter (where phase not in ('sync', 'unavailable')) as left_over
    from counted where host <> '' group by host order by left_over desc nulls last, host limit %(limit)s
)
select c.host, c.phase, c.repos::bigint from counted c join top using (host) where top.left_over > 0
