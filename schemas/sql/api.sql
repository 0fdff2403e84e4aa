-- Queries of the HTTP API (control/api), and of `sluice repo` and `sluice record` (control/repo_details.py). Each list of the API is a
-- keyset page: at most `limit` rows after a position.

-- name: repo
-- A repo that was never in sync has no host yet; the PDS of its DID document is shown instead.
select r.did, coalesce(r.host, i.pds) as host, r.handle, phase, reason, active, status, attempt, rev, seen_rev, data, commit,
       buffered, retry_count, desyncs, last_error, worker, job, next_retry_at, queued_at, lease_until, phase_since, discovered_at,
       started_at, completed_at
from sluice.repo r left join sluice.identity i on i.did = r.did
where r.did = %(did)s

-- name: repo_times
-- When the newest attempts began, and since when attempts end without being counted.
select fetched_at, deferred_since, stale_since, desynced_at from sluice.repo where did = %(did)s

-- name: repo_attempts
-- The newest first; one that runs has not ended. A first success has no row while its repo is in sync (keep_first_success).
with repo as (select * from sluice.repo where did = %(did)s)
select attempt, outcome, started_at, ended_at, host, error from sluice.backfill_attempt where did = %(did)s
union all
select attempt, 'running', started_at, null, host, null from repo where phase = 'backfill'
union all
select attempt, 'synced', started_at, completed_at, host, null from repo where phase = 'sync' and first_attempt = attempt
order by attempt desc limit %(limit)s

-- name: repo_identity
-- In the main database.
select i.pds, i.resolved_at, h.handle, h.verified, h.verified_at, h.checked_at, h.reason, h.detail
from (select %(did)s::text as did) a
left join sluice.identity i on i.did = a.did left join sluice.handle h on h.did = a.did

-- name: repo_collections
select collection, count(*) as records from sluice.record where did = %(did)s group by collection order by collection

-- name: repo_records
-- The newest first.
select collection, rkey, rev, cid, reason, indexed_at from sluice.record where did = %(did)s order by indexed_at desc, rkey desc limit %(limit)s

-- name: repo_labels
-- Of the account and of its records, the newest first. '0' comes after '/'.
select uri, val, neg, src, cts, exp from sluice.label
where uri = %(did)s or (uri > 'at://' || %(did)s || '/' and uri < 'at://' || %(did)s || '0')
order by cts desc, uri limit %(limit)s

-- name: repo_buffered
-- In the order in which they will be applied.
select rev, log_offset, to_timestamp(received / 1000.0) as received_at from sluice.buffered_event
where did = %(did)s order by log_offset limit %(limit)s

-- name: repo_dead_letters
-- In the main database; the newest first.
select part || ':' || log_offset as id, topic, reason, error, state, noticed_at from sluice.dead_letter
where did = %(did)s order by noticed_at desc, part, log_offset limit %(limit)s

-- name: claimants
-- DIDs whose documents claim a handle, the verified one first. In the main database.
select did, verified from sluice.handle where verified and handle = %(handle)s
union all
(select did, verified from sluice.handle where not verified and handle = %(handle)s order by did limit 5)

-- name: record
-- The JSON as text: it must hash back to the CID.
select uri, cid, rev, attempt, json::text, raw, reason, indexed_at from sluice.record
where did = %(did)s and collection = %(collection)s and rkey = %(rkey)s

-- name: repos
select r.did, coalesce(r.host, i.pds) as host, r.handle, phase, reason, active, status, attempt, rev, seen_rev, data, commit,
       buffered, retry_count, desyncs, last_error, worker, job, next_retry_at, queued_at, lease_until, phase_since, discovered_at,
       started_at, completed_at
from sluice.repo r left join sluice.identity i on i.did = r.did
where phase = %(phase)s and r.did > %(after)s and (%(host)s::text is null or coalesce(r.host, i.pds) = %(host)s)
order by r.did limit %(limit)s

-- name: hosts
select host, relay, status, cursor, pass as passes, listed_at, request_limit, paused_until, pause_reason, requests, failures,
       consecutive_failures, last_error, last_seen_at
from sluice.host
where host > %(after)s and (not %(failing)s or consecutive_failures > 0 or paused_until > now())
order by host limit %(limit)s

-- name: dead_letters
-- Newest first.
select part, log_offset, topic, did, reason, error, state, noticed_at, settled_at
from sluice.dead_letter
where (%(state)s = 'all' or state = %(state)s) and (%(reason)s::text is null or reason = %(reason)s)
      and (%(time)s::timestamptz is null
           or (noticed_at, -part, -log_offset) < (%(time)s::timestamptz, -%(part)s::bigint, -%(offset)s::bigint))
order by noticed_at desc, part, log_offset limit %(limit)s

-- name: skipped
select id, upstream, from_cursor, to_cursor, reason, retry_count, next_retry_at, skipped_at, filled_at, filled_by
from sluice.skipped_range
where id > %(after)s and (not %(open)s or filled_at is null)
order by id limit %(limit)s

-- name: count_to
-- Records of a repo, counted up to a limit.
select count(*) from (select from sluice.record where did = %(did)s limit %(limit)s) c

-- name: records_of_collection
-- Those before a record key, the highest first: of TIDs the newest.
select rkey, rev, cid, reason, indexed_at, left(json::text, 200) as beginning from sluice.record
where did = %(did)s and collection = %(collection)s and (%(before)s::text is null or rkey < %(before)s::text collate "C")
order by rkey desc limit %(limit)s
