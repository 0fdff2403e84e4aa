-- The request budget of a host: a token bucket that all workers share. All times are the database's.
-- Parameters: host, requests (in a window), span (seconds in which the bucket refills: window + life of a lease + travel),
-- burst_share. Grants of any span of that length never exceed burst + refill <= requests.

-- name: lease
-- Up to `want` tokens in one atomic statement; no row: none is left, or the host is paused.
insert into sluice.host as h (host, tokens, tokens_at, leased, requests)
values (%(host)s, greatest(1, floor(%(requests)s * %(burst_share)s)) - 1, now(), 1, 1)
on conflict (host) do update
set (tokens, tokens_at, leased, requests) = (
        select b.have - g.granted, greatest(h.tokens_at, now()), g.granted, h.requests + g.granted
        from (
            select least(l.burst, coalesce(h.tokens, l.burst)
                   + greatest(0, coalesce(extract(epoch from now() - h.tokens_at), 0))
                     * greatest(l.most - l.burst, 0.99) / %(span)s) as have, l.burst
            from (
                select m.most, greatest(1, floor(m.most * %(burst_share)s)) as burst
                from (select least(%(requests)s, coalesce(h.request_limit, %(requests)s))::float8 as most) m
            ) l
        ) b,
        lateral (select least(%(want)s, greatest(1, floor(b.burst / 4)), floor(b.have))::integer as granted) g
    )
where coalesce(h.paused_until <= now(), true) and coalesce(h.tokens, 1)
      + greatest(0, coalesce(extract(epoch from now() - h.tokens_at), 0))
        * greatest(least(%(requests)s, coalesce(h.request_limit, %(requests)s))
                   - greatest(1, floor(least(%(requests)s, coalesce(h.request_limit, %(requests)s)) * %(burst_share)s)), 0.99)
        / %(span)s >= 1
returning leased

-- name: wait
-- Why there was none: seconds of the pause with its reason, tokens there are, and the limit in force.
select greatest(0, coalesce(extract(epoch from paused_until - now()), 0))::float8, pause_reason,
       coalesce(tokens, 0) , greatest(0, coalesce(extract(epoch from now() - tokens_at), 0))::float8,
       least(%(requests)s, coalesce(request_limit, %(requests)s))::integer
from sluice.host where host = %(host)s

-- name: pause
-- The host named a time, or we chose one: no worker asks before. A longer pause stays.
insert into sluice.host as h (host, paused_until, pause_reason)
values (%(host)s, now() + make_interval(secs => %(seconds)s), %(reason)s)
on conflict (host) do update
set paused_until = greatest(h.paused_until, excluded.paused_until), pause_reason = excluded.pause_reason

-- name: lower
-- The host's headers allow less than we do. Never raised above our own limit; a host that allows more again is believed.
update sluice.host
set request_limit = %(request_limit)s,
    tokens = least(tokens, %(remaining)s)
where host = %(host)s

-- name: failed
insert into sluice.host as h (host, failures, consecutive_failures, last_error) values (%(host)s, 1, 1, %(error)s)
on conflict (host) do update
set failures = h.failures + 1, consecutive_failures = h.consecutive_failures + 1, last_error = excluded.last_error,
    last_seen_at = now()

-- name: answered
update sluice.host set consecutive_failures = 0, last_seen_at = now() where host = %(host)s and consecutive_failures > 0
