-- Statements on sluice.filter, run by flows/index/current_filter.py and control/filter_changes.py. Repo rows are locked in DID order.

-- name: fence
-- Index transactions take it shared, a change exclusively: when a change commits, no transaction under the old filter is open.
select pg_advisory_xact_lock_shared(5308885)

-- name: fence_alone
select pg_advisory_xact_lock(5308885)

-- name: current
select version, collections, boundary, signal, clean from sluice.filter

-- name: outsiders
-- Repos of a batch outside the boundary: unknown ones that it does not admit, and those already excluded.
select u.did
from unnest(%(dids)s::text[]) as u (did) left join sluice.repo r on r.did = u.did
where (r.did is null and not sluice.admits(u.did, null)) or r.phase = 'excluded'

-- name: let_in
-- Repos that wrote a record of the signal collection.
with chosen as (
    select did, b.phase, b.reason from sluice.repo r, sluice.back_inside(r.active, r.status) b
    where did = any(%(dids)s::text[]) and r.phase = 'excluded'
    order by did for update of r
)
update sluice.repo r
set phase = c.phase, reason = c.reason, next_retry_at = now(), queued_at = null,
    completed_at = case when c.phase = 'unavailable' then r.completed_at end, retry_count = 0, phase_since = now(),
    let_in_at = clock_timestamp()
from chosen c where r.did = c.did

-- name: state
-- Counted up to 100,000: a boundary may exclude most of the network.
select version, collections, boundary, signal, (select count(*) from sluice.filter_did) as dids, set_at,
       (select count(*) from (
           select from sluice.repo where phase = 'excluded' limit 100000
       ) o) as outside,
       walk_after is not null as walking, prune_after is not null as pruning, clean
from sluice.filter

-- name: dids
select did from sluice.filter_did

-- name: set
-- clock_timestamp(), since now() is the start of this transaction, before it had the lock. `set_at`: that of the main database.
update sluice.filter
set version = coalesce(%(version)s, version + 1), collections = %(collections)s, boundary = %(boundary)s, signal = %(signal)s,
    clean = clean and not %(narrowed)s, set_at = coalesce(%(set_at)s, clock_timestamp()),
    bounded_at = case when (boundary, signal) is distinct from (%(boundary)s, %(signal)s::text) then clock_timestamp()
                      else bounded_at end,
    widened_at = case when %(widened)s then clock_timestamp() else widened_at end,
    walk_after = '', walk_again = false,
    prune_after = null

-- name: clear_dids
delete from sluice.filter_did

-- name: add_dids
insert into sluice.filter_did select unnest(%(dids)s::text[]) on conflict do nothing

-- name: walks
select from sluice.filter where walk_after is not null or prune_after is not null

-- name: walk_state
select walk_after, walk_again, prune_after, prune_version, version, collections, boundary from sluice.filter for update

-- name: next_dids
select did from sluice.repo where did > %(after)s order by did limit %(limit)s for update

-- name: put_outside
-- Exclude repos in any phase, active or not: a hidden one would return with its reactivation. Except those being fetched or
-- waiting for a confirmed deletion: the walk returns to them. With a signal collection, also except repos admitted since, which
-- have no rows yet.
update sluice.repo r
set phase = 'excluded', reason = 'outside', queued_at = null, phase_since = now(), completed_at = greatest(now(), r.started_at)
from sluice.filter f
where r.did = any(%(dids)s::text[]) and r.phase not in ('backfill', 'excluded') and (r.active or r.phase <> 'pending')
      and not sluice.inside(r.did)
      and (f.boundary = 'dids' or greatest(r.discovered_at, r.let_in_at) < f.bounded_at)

-- name: being_fetched
select exists (
    select from sluice.repo r, sluice.filter f
    where r.did = any(%(dids)s::text[]) and (r.phase = 'backfill' or (r.phase = 'pending' and not r.active))
          and not sluice.inside(r.did)
          and (f.boundary = 'dids' or greatest(r.discovered_at, r.let_in_at) < f.bounded_at)
)

-- name: take_in
-- Queued with a delay: seen_rev does not have the events dropped so far, so the snapshot of a lagging replica would be accepted.
-- A repo hidden when it was excluded stays hidden until its PDS has served it; a takedown ends with the listing of a relay.
update sluice.repo r
set phase = b.phase, reason = b.reason, next_retry_at = now() + make_interval(secs => %(delay)s), queued_at = null,
    completed_at = case when b.phase = 'unavailable' then r.completed_at end, retry_count = 0, phase_since = now()
from sluice.repo o, sluice.back_inside(o.active, o.status) b
where r.did = any(%(dids)s::text[]) and o.did = r.did and r.phase = 'excluded'
      and sluice.inside(r.did)

-- name: fetch_again
-- Complete only under a narrower filter: fetch what it left out.
update sluice.repo r
set phase = 'pending', reason = 'filter', next_retry_at = now(), queued_at = null, completed_at = null, retry_count = 0,
    stale_since = null, phase_since = now()
from sluice.filter f
where r.did = any(%(dids)s::text[]) and r.phase = 'sync' and r.completed_at < f.widened_at

-- name: walked
update sluice.filter set walk_after = %(after)s, walk_again = %(again)s

-- name: start_prune
update sluice.filter set prune_after = '', prune_version = version

-- name: prune
-- Notes for the AppView, which removes its rows (appview/reconcile.py). Rows of an open attempt count as left out from now on;
-- otherwise its outcome would be incomplete.
with gone as (
    delete from sluice.record_row c
    using sluice.repo r, sluice.collection n
    where r.did = any(%(dids)s::text[]) and c.repo = r.id and n.id = c.collection
          and (r.phase = 'excluded'
               or not (n.name = any(%(exact)s::text[]) or n.name like any(%(below)s::text[])))
    returning r.did, c.attempt, 'at://' || r.did || '/' || n.name || '/' || c.rkey as uri
), counted as (
    update sluice.repo r
    set left_out = g.rows + case when r.left_attempt = r.attempt then r.left_out else 0 end, left_attempt = r.attempt,
        left_filter = case when r.left_attempt = r.attempt and r.left_out > 0 and r.left_filter <> f.version then 0
                           else f.version end  -- 0: of several versions
    from (select did, attempt, count(*) as rows from gone group by did, attempt) g, sluice.filter f
    where r.did = g.did and r.attempt = g.attempt and r.phase = 'backfill'
), noted as (
    insert into sluice.appview_dirty (kind, uri)
    select 'gone', g.uri from gone g, sluice.appview a where a.active
)
select count(*) from gone

-- name: pruned
update sluice.filter
set prune_after = %(after)s, clean = case when %(after)s::text is null then version = prune_version else clean end

-- name: used
-- The filter's version and the highest job of a repo in a shard.
select version, (select coalesce(max(job), 0) from sluice.repo) from sluice.filter

-- name: above_version
-- After a restore of the main database: each shard gets its filter, whatever it had.
update sluice.filter set version = greatest(version, %(version)s::bigint) + 1

-- name: above_job
-- After a restore of the main database: repos of the shards may carry numbers of jobs that it does not know.
select setval(pg_get_serial_sequence('sluice.backfill_job', 'id'),
              greatest(%(job)s::bigint, (select coalesce(max(id), 0) from sluice.backfill_job)) + 1)
