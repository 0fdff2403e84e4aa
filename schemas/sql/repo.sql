-- Statements on sluice.repo, run by connectors/postgres/repo_queue.py. All times are now(). Rows are locked in DID order.

-- name: discover
-- Insert new repos; known ones stay as they are. The message is sent after the row is committed.
insert into sluice.repo (did, host, active, status, phase, reason, seen_rev, queued_at, completed_at, job)
select l.did, l.host, l.active, l.status,
       case when l.active then 'pending' else 'unavailable' end,
       case when l.active then 'listed' else coalesce(l.status, 'inactive') end,
       l.rev,
       case when l.active then now() end,
       case when l.active then null else now() end,
       %(job)s
from unnest(%(dids)s::text[], %(hosts)s::text[], %(revs)s::text[], %(actives)s::boolean[], %(statuses)s::text[])
     as l (did, host, rev, active, status)
-- not those of known repos: each attempt to insert one would use up an id
where sluice.admits(l.did, %(collection)s) and not exists (select from sluice.repo k where k.did = l.did)
order by l.did
on conflict (did) do nothing
returning did, attempt, host, seen_rev, phase

-- name: job_collection
-- By which collection a job lists repos. In the main database.
select collection from sluice.backfill_job where id = %(job)s

-- name: pdses
-- In the main database.
select did, pds from sluice.identity where did = any(%(dids)s::text[])

-- name: listed_ahead
-- A listing has a newer rev than the row: store it, with the time. If it stays ahead, control treats it as a lost event. Also
-- during a fetch, since its snapshot may be older.
with behind as (
    select r.did, l.rev
    from sluice.repo r
    join unnest(%(dids)s::text[], %(revs)s::text[]) as l (did, rev) on l.did = r.did
    where r.phase in ('sync', 'backfill') and r.listed_since is null and l.rev > greatest(r.rev, r.seen_rev, r.buffered_rev)
    order by r.did for update of r
)
update sluice.repo r set listed_rev = b.rev, listed_since = now() from behind b where r.did = b.did

-- name: listed_raises
-- In phases whose rows do not follow the stream, the rev of a listing raises seen_rev.
with behind as (
    select r.did, l.rev
    from sluice.repo r
    join unnest(%(dids)s::text[], %(revs)s::text[]) as l (did, rev) on l.did = r.did
    where r.phase in ('pending', 'failed', 'unavailable', 'excluded') and l.rev > greatest(r.rev, r.seen_rev)
    order by r.did for update of r
)
update sluice.repo r set seen_rev = b.rev, stale_since = null from behind b where r.did = b.did

-- name: listed_reopens
-- A listing that reports an unavailable repo as active reopens it, at most once in reopen_seconds; at once if only listings have
-- reported it as inactive (its #account was sent before the stream was read). A repo outside the boundary is reopened only by the
-- listing that admits it. Anyone can run a PDS and list any DID, so the `host` of a listing must be the one in the DID document
-- and cannot lift a takedown. The repo stays hidden until it has been fetched, like one whose deletion is to be confirmed.
with closed as (
    select r.did, l.host is not null and not r.active as hidden
    from sluice.repo r
    join unnest(%(dids)s::text[], %(actives)s::boolean[], %(hosts)s::text[], %(pdses)s::text[]) as l (did, active, host, pds)
         on l.did = r.did
    where r.phase in ('unavailable', 'excluded') and l.active
          and case when r.phase = 'excluded' then sluice.admits(r.did, %(collection)s)
                   else (r.attempt = 0 and r.account_time = '')
                        or r.phase_since < now() - make_interval(secs => %(reopen)s) end
          and (l.host is null or (r.phase = 'excluded' and r.active)
               or (coalesce(r.status, '') <> all (%(final)s::text[])
                   and l.host = coalesce(l.pds, case when r.commit is not null then r.host end)))
    order by r.did for update of r
)
update sluice.repo r
set phase = 'pending', reason = case when c.hidden then 'deletion' else 'reopened' end, active = not c.hidden,
    status = case when c.hidden then r.status end, next_retry_at = now(), queued_at = null,
    completed_at = null, phase_since = now(), retry_count = 0,
    let_in_at = case when r.phase = 'excluded' then clock_timestamp() else r.let_in_at end
from closed c where r.did = c.did

-- name: listed_closes
-- A listing reports a repo as inactive whose rows follow the stream: its #account was lost. The repo is hidden, as by a deletion,
-- until its PDS has been asked, since a listing has no time and may be older than the last #account.
with closed as (
    select r.did, coalesce(l.status, 'inactive') as status
    from sluice.repo r
    join unnest(%(dids)s::text[], %(actives)s::boolean[], %(statuses)s::text[]) as l (did, active, status) on l.did = r.did
    where r.phase = 'sync' and r.active and not l.active
    order by r.did for update of r
)
update sluice.repo r
set phase = 'pending', reason = 'deletion', active = false, status = c.status, next_retry_at = now(), queued_at = null,
    completed_at = null, phase_since = now(), retry_count = 0
from closed c where r.did = c.did

-- name: lock_taken_down
-- A takedown by a relay needs no confirmation: the PDS does not know of it and still serves the repo. The row must not have
-- changed its phase since the page was requested: the page may be older than the #account that lifted the takedown.
select r.did
from sluice.repo r
join unnest(%(dids)s::text[], %(actives)s::boolean[], %(statuses)s::text[]) as l (did, active, status) on l.did = r.did
where r.phase in ('sync', 'backfill') and not l.active and l.status = any(%(final)s::text[])
      and r.phase_since < to_timestamp(%(asked_at)s)
order by r.did for update of r

-- name: take_down
-- Like #account. The rows are locked and their buffered events deleted.
update sluice.repo r
set phase = 'unavailable', reason = l.status, active = false, status = l.status, queued_at = null, lease_until = null,
    worker = null, produced_partition = null, produced_offset = null, phase_since = now(),
    completed_at = greatest(now(), r.started_at), stale_since = null,
    seen_rev = greatest(r.seen_rev, r.buffered_rev), buffered = 0, buffered_rev = ''
from unnest(%(dids)s::text[], %(statuses)s::text[]) as l (did, status)
where r.did = l.did and r.did = any(%(taken_down)s::text[])

-- name: lost_events
-- Revs that a listing reported and the stream did not bring: fetch these repos again. All stream events up to `settled` are
-- indexed; a rev listed after it may still arrive.
with lost as (
    select did from sluice.repo
    where listed_since < least(now(), to_timestamp(%(settled)s)) - make_interval(secs => %(grace)s) and phase = 'sync'
          and listed_rev > greatest(rev, seen_rev)
    order by did limit %(limit)s for update skip locked
)
update sluice.repo r
set phase = 'pending', reason = 'lost_event', seen_rev = r.listed_rev, next_retry_at = now(), queued_at = null,
    completed_at = null, phase_since = now(), listed_rev = null, listed_since = null, stale_since = null
from lost where r.did = lost.did
returning r.did

-- name: lost_candidates
-- The number of `lost_events`, up to a limit. Cheap: the partial index has only repos listed ahead.
select count(*) from (
    select from sluice.repo
    where listed_since < least(now(), to_timestamp(%(settled)s)) - make_interval(secs => %(grace)s) and phase = 'sync'
          and listed_rev > greatest(rev, seen_rev)
    limit %(limit)s
) c

-- name: caught_up
-- Repos that have reached the listed rev: forget it. For those being fetched, seen_rev has it.
with seen as (
    select did, phase not in ('sync', 'backfill') and listed_rev > greatest(rev, seen_rev) as news from sluice.repo
    where listed_since is not null
          and (phase not in ('sync', 'backfill') or listed_rev <= greatest(rev, seen_rev, buffered_rev))
    order by did limit %(limit)s for update skip locked
)
update sluice.repo r
set seen_rev = case when s.news then r.listed_rev else r.seen_rev end,
    stale_since = case when s.news then null else r.stale_since end, listed_rev = null, listed_since = null
from seen s where r.did = s.did

-- name: claim
-- Claim in one atomic step: the repo is pending, due and unchanged since the message was queued. Otherwise another worker has it.
-- No claims while a restored database waits for the index to read the log.
with wanted as (
    select r.did
    from sluice.repo r
    join unnest(%(dids)s::text[], %(attempts)s::integer[]) as t (did, attempt) on t.did = r.did and t.attempt = r.attempt
    where r.phase = 'pending' and r.next_retry_at <= now()
          and not exists (select from sluice.cursor where flow = 'restore' and upstream = 'log')
    order by r.did for update of r
)
update sluice.repo r
set phase = 'backfill', attempt = r.attempt + 1, lease_until = now() + make_interval(secs => %(lease)s),
    worker = %(worker)s, produced_partition = null, produced_offset = null, buffered = 0, buffered_rev = '',
    -- an outcome does not set the status: only account events newer than the ratchet read here may
    status = case when r.active then null else r.status end,
    started_at = now(), completed_at = null, phase_since = now(),
    fetched_at = (r.fetched_at || now())[greatest(1, cardinality(r.fetched_at) + 2 - %(hourly)s):]
from wanted w where r.did = w.did
returning r.did, r.attempt, greatest(r.rev, r.seen_rev), r.host,
          -- 'not found' proves a deletion only if one was reported; a deactivated repo is hidden and keeps its rows
          case when not r.confirm_deletion then r.reason when r.status = 'deleted' then 'deletion' else 'deactivation' end,
          r.account_time, r.account_seq, r.retry_count, r.account_relay, r.account_seen

-- name: renew
update sluice.repo r set lease_until = now() + make_interval(secs => %(lease)s)
from (
    select did from sluice.repo
    where did = any(%(dids)s::text[]) and worker = %(worker)s and phase = 'backfill' and produced_offset is null
    order by did for update
) mine
where r.did = mine.did
returning r.did, r.attempt

-- name: produced
-- The outcome is in the log: the index closes the attempt, and the lease no longer applies.
update sluice.repo r set produced_partition = p.part, produced_offset = p.log_offset, lease_until = null, deferred_since = null
from (
    select r.did, t.part, t.log_offset
    from sluice.repo r
    join unnest(%(dids)s::text[], %(attempts)s::integer[], %(parts)s::integer[], %(offsets)s::bigint[])
         as t (did, attempt, part, log_offset) on t.did = r.did and t.attempt = r.attempt
    where r.phase = 'backfill'
    order by r.did for update of r
) p
where r.did = p.did

-- name: lock_claims
select r.did
from sluice.repo r
join unnest(%(dids)s::text[], %(attempts)s::integer[]) as t (did, attempt) on t.did = r.did and t.attempt = r.attempt
where r.phase = 'backfill'
order by r.did for update of r

-- name: lock_worker
select did from sluice.repo
where worker = %(worker)s and phase = 'backfill' and produced_offset is null
order by did for update

-- name: lock_expired
-- Attempts whose lease has expired, or which are still open although the index has passed their outcome.
select r.did
from sluice.repo r
where r.phase = 'backfill' and (
    (r.produced_offset is null and r.lease_until < now())
    or exists (
        select from sluice.stream_offset o
        where o.cluster = %(cluster)s and o.group_id = %(group)s and o.topic = %(topic)s
              and o.part = r.produced_partition and o.next > r.produced_offset
    )
)
order by r.did limit %(limit)s for update

-- name: end_attempts
-- History, in the transaction that ends these attempts and before their repos leave the phase. Their rows are locked.
-- `uncounted_seconds`: an attempt that `reopen` counts after all has failed.
insert into sluice.backfill_attempt as a (did, attempt, host, started_at, ended_at, outcome, error)
select r.did, r.attempt, coalesce(u.host, r.host), r.started_at, greatest(now(), r.started_at),
       case when r.deferred_since < now() - make_interval(secs => %(uncounted_seconds)s) then 'failed' else u.outcome end,
       left(u.error, 1000)
from unnest(%(dids)s::text[], %(hosts)s::text[], %(outcomes)s::text[], %(errors)s::text[]) as u (did, host, outcome, error)
join sluice.repo r on r.did = u.did and r.phase = 'backfill'
on conflict (did, slot) do update
set attempt = excluded.attempt, host = excluded.host, started_at = excluded.started_at, ended_at = excluded.ended_at,
    outcome = excluded.outcome, error = excluded.error

-- name: drop_buffered
-- A separate statement, so that it sees events that the index committed while the repo's lock was awaited.
delete from sluice.buffered_event where did = any(%(dids)s::text[])

-- name: reopen
-- From backfill back to pending, or to failed after the last attempt. Rows are locked already. An uncounted attempt is
-- counted after all if none was counted for `uncounted_seconds`. `growing`: the wait after uncounted attempts grows too.
with left_over as (
    select d.did, d.delay, %(counted)s or coalesce(l.deferred_since < now() - make_interval(secs => %(uncounted_seconds)s), false) as counted,
           case when %(growing)s then least(coalesce(extract(epoch from now() - l.deferred_since), 0)::float8 / 2, 3600) end as growing
    from unnest(%(dids)s::text[], %(delays)s::float8[]) as d (did, delay)
    join sluice.repo l on l.did = d.did
)
update sluice.repo r
set phase = case when o.counted and r.retry_count + 1 >= %(max_attempts)s then 'failed' else 'pending' end,
    retry_count = r.retry_count + case when o.counted then 1 else 0 end,
    deferred_since = case when o.counted then null
                          when %(error)s::text is null then r.deferred_since
                          else coalesce(r.deferred_since, now()) end,
    next_retry_at = now() + make_interval(secs => greatest(o.delay, coalesce(o.growing, 0))),
    last_error = coalesce(%(error)s, r.last_error), queued_at = null, lease_until = null, worker = null,
    produced_partition = null, produced_offset = null, phase_since = now(),
    seen_rev = greatest(r.seen_rev, r.buffered_rev), buffered = 0, buffered_rev = '', -- buffered events count as seen
    stale_since = case when r.buffered_rev > r.seen_rev then null else r.stale_since end,
    -- a pause of ours or a stopped worker does not count as a fetch
    fetched_at = case when o.counted then r.fetched_at else r.fetched_at[:cardinality(r.fetched_at) - 1] end,
    completed_at = case when o.counted and r.retry_count + 1 >= %(max_attempts)s then greatest(now(), r.started_at) end
from left_over o
where r.did = o.did
returning r.did, r.phase

-- name: stale
-- A snapshot below min_rev. After `grace` seconds of them, seen_rev was forged or the PDS was set back: reset it.
update sluice.repo
set stale_since = coalesce(stale_since, now()),
    rev = case when stale_since < now() - make_interval(secs => %(grace)s) then '' else rev end,
    seen_rev = case when stale_since < now() - make_interval(secs => %(grace)s) then '' else seen_rev end
where did = %(did)s and attempt = %(attempt)s and phase = 'backfill'
returning greatest(rev, seen_rev)

-- name: refetch
-- Fetch again after a stale snapshot; it counts as a fetch of this hour. No row: no fetch is left, or the claim was lost.
update sluice.repo
set fetched_at = (fetched_at || now())[greatest(1, cardinality(fetched_at) + 2 - %(hourly)s):]
where did = %(did)s and attempt = %(attempt)s and phase = 'backfill'
      and (cardinality(fetched_at) < %(hourly)s or fetched_at[cardinality(fetched_at) - %(hourly)s + 1] <= now() - interval '1 hour')
returning did

-- name: due
-- Pending repos to queue, the longest due first. A repo is fetched at most `hourly` times in an hour: after that it waits until the
-- oldest of these is an hour old. Reasons that control/tasks/storms.py holds wait too.
with due as (
    select did, reason = any(%(held)s::text[]) as is_held,
           fetched_at[cardinality(fetched_at) - %(hourly)s + 1] + interval '1 hour' as again
    from sluice.repo
    where phase = 'pending' and queued_at is null and next_retry_at <= now()
    order by next_retry_at limit %(limit)s for update skip locked
), waits as (
    update sluice.repo r set next_retry_at = greatest(due.again, case when due.is_held then now() + interval '1 minute' end)
    from due where r.did = due.did and (due.again > now() or due.is_held)
)
update sluice.repo r set queued_at = now()
from due where r.did = due.did and due.is_held is not true and (due.again is null or due.again <= now())
returning r.did, r.attempt, r.reason, r.seen_rev, r.host, r.active, r.status, r.job

-- name: queued_long
-- Repos that were queued before a time and are not claimed yet.
select did, attempt, extract(epoch from queued_at) from sluice.repo
where phase = 'pending' and queued_at < to_timestamp(%(before)s) order by queued_at limit %(limit)s

-- name: unqueue
update sluice.repo set queued_at = null
where did in (select did from sluice.repo where did = any(%(dids)s::text[]) and phase = 'pending' order by did for update)

-- name: retry_failed
-- An operator's retry of failed repos: resets all fields of the queue.
with chosen as (
    select did from sluice.repo
    where phase = 'failed' and (%(dids)s::text[] is null or did = any(%(dids)s::text[]))
    order by did for update
)
update sluice.repo r
set phase = 'pending', reason = case when r.active then 'retry' else 'deletion' end, retry_count = 0, next_retry_at = now(), queued_at = null, last_error = null,
    completed_at = null, started_at = null, lease_until = null, worker = null, stale_since = null, deferred_since = null, phase_since = now()
from chosen c where r.did = c.did
returning r.did

-- name: fetch_again
-- Fetch the repos of a job again: those in sync, and failed ones.
with chosen as (
    select did from sluice.repo
    where did = any(%(dids)s::text[]) and phase in ('sync', 'failed') order by did for update
)
update sluice.repo r
set phase = 'pending', reason = case when r.active then 'retry' else 'deletion' end, job = %(job)s, retry_count = 0,
    next_retry_at = now(), queued_at = null, last_error = null, completed_at = null, stale_since = null, phase_since = now()
from chosen c where r.did = c.did and r.job is distinct from %(job)s

-- name: phases
select phase, count(*) from sluice.repo group by phase

-- name: audit_repair
-- Fetch repos again in which an audit found differences, even if events were applied since: these do not correct a wrong row. Repos
-- that are being fetched stay as they are. Returns every known DID with its phase under the lock. Rows of attempts above the
-- current one belong to no attempt and are deleted.
with wrong as (
    select id, did, phase, reason, attempt from sluice.repo
    where did = any(%(dids)s::text[])
    order by did for update
), foreign_rows as (
    delete from sluice.record_row c using wrong w
    where c.repo = w.id and c.attempt > w.attempt and w.phase in ('sync', 'pending', 'backfill')
), again as (
    update sluice.repo r
    set phase = 'pending', reason = 'audit', next_retry_at = now(), queued_at = null, completed_at = null, retry_count = 0,
        stale_since = null, phase_since = now()
    from wrong w where r.did = w.did and w.phase = 'sync'
)
select did, phase, reason from wrong
