-- Queries of the HTTP API (control/api). Each list is a keyset page: at most `limit` rows after a position.

-- name: repo
-- A repo that was never in sync has no host yet; the PDS of its DID document is shown instead.
select r.did, coalesce(r.host, i.pds) as host, r.handle, phase, reason, active, status, attempt, rev, seen_rev, data, commit,
       buffered, retry_count, desyncs, last_error, worker, job, next_retry_at, queued_at, lease_until, phase_since, discovered_at,
       started_at, completed_at
from sluice.repo r left join sluice.identity i on i.did = r.did
where r.did = %(did)s

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
