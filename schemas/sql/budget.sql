-- The request budget of a host: a token bucket that all workers share. All times are the database's.
-- Parameters: host, requests (in a window), span (seconds in which the bucket refills: window + life of a lease + latency),
-- burst_share. In any `span` seconds at most burst + refill tokens are granted, and that is at most `requests`.

-- name: lease
-- Up to `want` tokens in one atomic statement. None (leased = 0): the bucket is empty, or the host is paused.
insert into sluice.host as h (host, tokens, tokens_at, leased, requests)
values (%(host)s, greatest(1, floor(%(requests)s * %(burst_share)s)) - 1, now(), 1, 1)
on conflict (host) do update
set (tokens, tokens_at, leased, requests) = (
    select f.have - g.granted, greatest(h.tokens_at, now()), g.granted, h.requests + g.granted
    from (select least(%(requests)s, coalesce(h.request_limit, %(requests)s))::float8 as most) m,
    lateral (select greatest(1, floor(m.most * %(burst_share)s)) as burst) b,
    lateral (
        -- 0.99: so that a limit of one request refills too, a little slower than one per span
        select least(b.burst, coalesce(h.tokens, b.burst)
               + greatest(0, coalesce(extract(epoch from now() - h.tokens_at), 0))
                 * greatest(m.most - b.burst, 0.99) / %(span)s) as have
    ) f,
    lateral (
        select case when h.paused_until > now() then 0
               else greatest(0, least(%(want)s, greatest(1, floor(b.burst / 4)), floor(f.have))) end::integer as granted
    ) g
)
returning leased, tokens, greatest(0, coalesce(extract(epoch from paused_until - now()), 0))::float8, pause_reason,
          least(%(requests)s, coalesce(request_limit, %(requests)s))::integer

-- name: pause
-- Pause a host, for the time that it named or that we chose. A longer pause stays.
insert into sluice.host as h (host, paused_until, pause_reason)
values (%(host)s, now() + make_interval(secs => %(seconds)s), %(reason)s)
on conflict (host) do update
set paused_until = greatest(h.paused_until, excluded.paused_until), pause_reason = excluded.pause_reason

-- name: lower
-- The limit in the host's headers, if it is below ours. It may rise again, up to our own limit.
update sluice.host
set request_limit = %(request_limit)s,
    tokens = least(tokens, %(remaining)s)
where host = %(host)s

-- name: known_hosts
select host from sluice.host where host = any(%(hosts)s::text[])

-- name: clear_pauses
-- An operator resets a host: no pause, our own limit, a full bucket.
update sluice.host set paused_until = null, pause_reason = null, request_limit = null, tokens = null, tokens_at = null
where host in (select host from sluice.host where host = any(%(hosts)s::text[]) order by host for update)

-- name: due_after_pause
-- Repos of these hosts that wait for the end of a pause or for budget. A shard has no sluice.identity: there a repo that was never in
-- sync keeps its own time.
update sluice.repo r set next_retry_at = now()
from (
    select r.did from sluice.repo r left join sluice.identity i on i.did = r.did
    where r.phase = 'pending' and r.queued_at is null and r.next_retry_at > now()
          and coalesce(r.host, i.pds) = any(%(hosts)s::text[]) and r.last_error ~ '^(rate_limited|host_paused|host_busy):'
    order by r.did for update of r
) waits
where r.did = waits.did

-- name: failed
insert into sluice.host as h (host, failures, consecutive_failures, last_error) values (%(host)s, 1, 1, %(error)s)
on conflict (host) do update
set failures = h.failures + 1, consecutive_failures = h.consecutive_failures + 1, last_error = excluded.last_error,
    last_seen_at = now()

-- name: answered
update sluice.host set consecutive_failures = 0, last_seen_at = now() where host = %(host)s and consecutive_failures > 0

-- name: prune
-- Hosts that were not named, requested or listed for so long and are not paused.
delete from sluice.host where host in (
    select host from sluice.host
    where greatest(last_seen_at, tokens_at, listed_at, paused_until) < now() - make_interval(secs => %(seconds)s)
    limit %(limit)s
)
