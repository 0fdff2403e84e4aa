-- Statements on sluice.backfill_job and sluice.job_did (control/jobs.py, control/tasks/job_steps.py, flows/list_repos/listing_jobs.py).
-- Each change of status names the states that it may start from. The table's trigger sets the times.

-- name: create
-- No row if a job of this name exists: the same source is the same job.
insert into sluice.backfill_job (name, kind, relay, hosts, collection, first_dids, again, batch_size, priority, total, cutoff_seqs)
values (%(name)s, %(kind)s, %(relay)s, %(hosts)s, %(collection)s, %(first_dids)s, %(again)s, %(batch_size)s, %(priority)s, %(total)s, coalesce((
    select jsonb_object_agg(upstream, position) from (
        select upstream, min(position::bigint) as position from sluice.cursor
        where flow = 'firehose' and position ~ '^[0-9]{1,18}$' group by upstream
    ) slowest_share
), '{}'))
on conflict (name) do nothing
returning id

-- name: add_dids
insert into sluice.job_did (job, n, did)
select %(job)s, l.n, l.did from unnest(%(dids)s::text[]) with ordinality as l (did, n)

-- name: by_name
select id, status from sluice.backfill_job where name = %(name)s

-- name: newest_again
-- Jobs that fetch the same list again are numbered: NAME, NAME 2, …
select name, status, count(*) over () as number from sluice.backfill_job
where name = %(name)s or starts_with(name, %(name)s || ' ') order by id desc limit 1

-- name: adjust
update sluice.backfill_job set batch_size = %(batch_size)s, priority = %(priority)s
where id = %(id)s and (batch_size, priority) <> (%(batch_size)s, %(priority)s)

-- name: get
select * from sluice.backfill_job where id = %(id)s

-- name: page
select * from sluice.backfill_job
where (%(status)s::text is null or status = %(status)s) and id > %(after)s
order by id limit %(limit)s

-- name: move
-- A command of an operator. `retry` restarts an ended job and resets its failure.
update sluice.backfill_job set
    status = %(to)s,
    next_retry_at = case when %(to)s = 'retry' then now() end,
    retry_count = case when %(to)s = 'retry' then 0 else retry_count end,
    error = case when %(to)s in ('retry', 'running', 'pending') then null else error end
where id = %(id)s and status = any(%(from)s::text[])
returning id

-- name: resume
-- A job that has never started waits until it is due; any other one continues at once.
update sluice.backfill_job set
    status = case when status = 'paused' and started_at is null then 'pending' else 'running' end, error = null
where id = %(id)s and status in ('paused', 'paused_quota_limit', 'retry')
returning id

-- name: plan_dids
-- Of repos, as are `of_batch`, `outstanding`, `counted_…`, `repo_estimate` and `unfinished`: with several shards, of each.
select count(r.did) as known, count(*) filter (where r.phase = 'sync') as in_sync
from unnest(%(dids)s::text[]) as l (did) left join sluice.repo r on r.did = l.did

-- name: live_listings
-- Unfinished listings, higher priority first. `due`: its wait is over. There may be thousands of permanent listings of PDSes, so
-- those are included only while they wait or are paused. A completed job with open skipped ranges is included for these ranges:
-- its lists have ended.
select id, status, batch_size, coalesce(next_retry_at <= now(), false) as due, retry_count,
       coalesce(checkpoint ->> 'done' = 'true', false) as listed_all, kind, relay, hosts, collection
from sluice.backfill_job j
where kind <> 'dids' and (
    (status not in ('completed', 'failed', 'cancelled') and not (kind = 'pds' and status = 'running'))
    or (status = 'completed' and exists (
        select from sluice.skipped_range s where s.filled_at is null and split_part(s.upstream, '#job=', 2) = j.id::text
    ))
)
order by priority desc, id

-- name: live_lists
-- Lists of DIDs that still have DIDs to queue, higher priority first.
select id, status, batch_size, total, again
from sluice.backfill_job
where kind = 'dids' and coalesce(checkpoint ->> 'done', 'false') <> 'true'
      and (status in ('pending', 'running') or (status in ('paused_quota_limit', 'retry') and next_retry_at <= now()))
order by priority desc, id limit %(limit)s

-- name: halted
-- Jobs that are paused by an operator, a quota or a back-off, or have ended.
select id, name from sluice.backfill_job
where status in ('paused', 'paused_quota_limit', 'retry', 'failed', 'cancelled') and kind <> 'dids'

-- name: run
-- Start a job that is due.
update sluice.backfill_job set status = 'running'
where id = %(id)s and (status = 'pending' or (status in ('paused_quota_limit', 'retry') and next_retry_at <= now()))
returning id

-- name: wait_for_quota
update sluice.backfill_job set
    status = 'paused_quota_limit', next_retry_at = now() + make_interval(secs => %(seconds)s), error = %(error)s
where id = %(id)s and status = 'running'
returning id

-- name: back_off
-- After a failed attempt: retry later, or fail after the last attempt.
update sluice.backfill_job set
    status = case when retry_count + 1 >= %(max_attempts)s then 'failed' else 'retry' end,
    next_retry_at = case when retry_count + 1 < %(max_attempts)s then now() + make_interval(secs => %(seconds)s) end,
    retry_count = retry_count + 1, error = %(error)s
where id = %(id)s and status = 'running'
returning status

-- name: place
-- The position of a running job in its list.
select coalesce((checkpoint ->> 'n')::integer, 0) from sluice.backfill_job
where id = %(id)s and status = 'running'

-- name: advance_list
-- After a batch of a list: update counters and checkpoint once, with any status (the job may have been paused meanwhile). Repos that
-- the job discovered carry its number (`of_batch`), so a batch that is repeated after a crash gives the same counts.
update sluice.backfill_job set
    listed = listed + cardinality(%(dids)s::text[]), queued = queued + %(mine)s,
    duplicates = duplicates + cardinality(%(dids)s::text[]) - %(mine)s, in_sync = in_sync + %(in_sync)s,
    checkpoint = %(checkpoint)s::jsonb
where id = %(id)s and coalesce((checkpoint ->> 'n')::integer, 0) = %(after)s
returning id

-- name: of_batch
select count(*) filter (where job = %(id)s), count(*) filter (where phase = 'sync' and job is distinct from %(id)s)
from sluice.repo where did = any(%(dids)s::text[])

-- name: next_dids
select n, did from sluice.job_did where job = %(id)s and n > %(after)s order by n limit %(limit)s

-- name: outstanding
select count(*) from (
    select from sluice.repo where job = %(id)s and phase in ('pending', 'backfill') limit %(most)s
) waiting

-- name: advance
-- Counters and checkpoint, with any status: the job may have been paused during the step. Entries of a list end a row of failures.
update sluice.backfill_job set
    listed = listed + %(listed)s, queued = queued + %(queued)s, duplicates = duplicates + %(duplicates)s,
    checkpoint = %(checkpoint)s::jsonb,
    retry_count = case when status = 'running' and %(listed)s > 0 then 0 else retry_count end
where id = %(id)s

-- name: countable
-- Jobs with unfinished repos, those counted longest ago first.
select id, queued from sluice.backfill_job
where (status not in ('completed', 'failed', 'cancelled') or pending > 0)
      and (counted_at is null or counted_at < now() - interval '3 seconds')
order by counted_at nulls first, id limit %(limit)s

-- name: counted_exactly
select phase, count(*) from sluice.repo where job = %(id)s group by phase

-- name: counted_by_sample
-- A job's repos by phase, in a sample of the table's pages.
select r.phase, count(*) from sluice.repo r tablesample system (%(percent)s) where r.job = %(id)s group by r.phase

-- name: repo_estimate
select greatest(reltuples, 1) from pg_class where oid = 'sluice.repo'::regclass

-- name: count
-- The outcomes of the job's repos, and its rate as a moving average.
update sluice.backfill_job set
    synced = %(synced)s, failed = %(failed)s, unavailable = %(unavailable)s, pending = %(pending)s,
    rate = case
        when counted_at is null or counted_at >= now() then rate
        else coalesce(rate * %(memory)s, 0) + (case when rate is null then 1 else 1 - %(memory)s end)
             * greatest(0, %(synced)s + %(failed)s + %(unavailable)s - synced - failed - unavailable)
             / extract(epoch from now() - counted_at)
    end,
    counted_at = now()
where id = %(id)s

-- name: all_listed
-- No row while a job is listing. Read before `unfinished`: a repo discovered later belongs to no finished list.
select again from sluice.backfill_job
where id = %(id)s and status = 'running' and coalesce(checkpoint ->> 'done' = 'true', false)

-- name: unfinished
-- Whether a repo of the job has never finished; with `again`, whether one is not finished now.
select exists (
    select from sluice.repo
    where job = %(id)s and phase in ('pending', 'backfill') and (%(again)s or (first_attempt is null and rev = ''))
)

-- name: complete
-- A job of which everything is listed and no repo unfinished.
update sluice.backfill_job set status = 'completed', error = null where id = %(id)s and status = 'running' returning id
