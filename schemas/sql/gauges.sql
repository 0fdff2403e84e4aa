-- The queries of control/tasks/gauges.py, run every few seconds. The cost of each is bounded, whatever the size of the tables.

-- name: near_last
-- Repos in back-off, from the index of unqueued work, and repos being fetched. Queued ones are claimed soon.
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
-- `near_last`: unfinished jobs that the next failure ends.
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
-- Of the share that moved longest ago; without rows that a former number of shares has left. Where a share has no row yet, with them:
-- its repos have only their position.
select flow, upstream, extract(epoch from now() - case
    when count(*) filter (where in_use) < max(shares) filter (where in_use) then min(updated_at)
    else min(updated_at) filter (where in_use) end)::float8 as age
from (
    select flow, upstream, updated_at, shares,
           shares = first_value(shares) over (partition by flow, upstream order by updated_at desc) as in_use
    from sluice.cursor where upstream = any(%(upstreams)s::text[])
) c group by flow, upstream

-- name: handles_late
-- Only checks that are due by time: one that an event requested has no time.
select coalesce(extract(epoch from now() - min(next_check_at)), 0)::float8 as seconds
from sluice.handle where next_check_at > '-infinity' and next_check_at <= now()

-- name: audit
-- Repos with findings of the newest audit, and when it last made progress.
select count(distinct f.did), extract(epoch from r.updated_at)::float8 as time
from (select id, updated_at from sluice.audit_run where not abandoned order by id desc limit 1) r
left join sluice.audit_finding f on f.run = r.id
group by r.updated_at

-- name: size
select pg_database_size(current_database()) as bytes

-- name: hosts_with_work
-- PDSes with most unfinished repos, from a sample of a large table's pages. A relay's listing names no PDS: the PDS of such a repo is
-- known when its DID was resolved.
with counted as (
    select coalesce(r.host, i.pds, '') as host, r.phase, count(*) * 100.0 / %(percent)s as repos
    from sluice.repo r tablesample system (%(percent)s) left join sluice.identity i using (did) group by 1, 2
), top as (
    select host, sum(repos) filter (where phase not in ('sync', 'unavailable', 'excluded')) as left_over
    from counted where host <> '' group by host order by left_over desc nulls last, host limit %(limit)s
)
select c.host, c.phase, c.repos::bigint from counted c join top using (host) where top.left_over > 0
