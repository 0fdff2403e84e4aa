-- Statements of the list_repos flow: jobs, skipped ranges, hosts, resolved gaps.

-- name: open_job
-- Starting a listing again returns its existing job, with the cutoff and counters of the first start.
insert into sluice.backfill_job (name, kind, relay, hosts, status, cutoff_seqs)
values (%(name)s, %(kind)s, %(relay)s, %(hosts)s, 'running', coalesce((
    select jsonb_object_agg(upstream, position) from (
        select upstream, min(position::bigint) as position from sluice.cursor
        where flow = 'firehose' and position ~ '^[0-9]{1,18}$' group by upstream
    ) slowest_share
), '{}'))
on conflict (name) do update set
    status = case when backfill_job.status = 'pending' then 'running' else backfill_job.status end
returning id

-- name: skip
-- A range that starts where an open one does extends that one, which keeps its retry count and its time.
with grown as (
    update sluice.skipped_range s set to_cursor = %(to_cursor)s, reason = %(reason)s
    where s.id = (
        select min(o.id) from sluice.skipped_range o
        where o.upstream = %(upstream)s and o.from_cursor = %(from_cursor)s and o.filled_at is null
    ) and not exists (
        select from sluice.skipped_range o
        where o.upstream = s.upstream and o.from_cursor = s.from_cursor and o.to_cursor = %(to_cursor)s and o.id <> s.id
    )
    returning id
)
insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason, next_retry_at)
select %(upstream)s, %(from_cursor)s, %(to_cursor)s, %(reason)s, now() + make_interval(secs => %(delay)s)
where not exists (select from grown)
on conflict (upstream, from_cursor, to_cursor) do update set
    reason = excluded.reason, filled_at = null, filled_by = null, skipped_at = now(),
    retry_count = case when skipped_range.filled_at is null then skipped_range.retry_count else 0 end,
    next_retry_at = case when skipped_range.filled_at is null then skipped_range.next_retry_at else excluded.next_retry_at end

-- name: due_ranges
select id, upstream, from_cursor, to_cursor, retry_count from sluice.skipped_range
where filled_at is null and next_retry_at <= now() and upstream = any(%(upstreams)s::text[])
order by next_retry_at limit 100

-- name: fill
update sluice.skipped_range set filled_at = now(), filled_by = 'upstream' where id = %(id)s and filled_at is null

-- name: stubborn_ranges
select count(*) from sluice.skipped_range
where filled_at is null and retry_count >= %(tries)s and upstream = any(%(relays)s::text[])

-- name: fill_by_pdses
-- Ranges after whose skip every PDS that the relay names has been listed to its end.
update sluice.skipped_range s set filled_at = now(), filled_by = 'pdses'
where s.filled_at is null and s.retry_count >= %(tries)s and s.upstream = any(%(relays)s::text[])
      and exists (select from sluice.host)
      and not exists (
          select from sluice.host h
          where h.relay is not null and h.last_seen_at > now() - interval '3 hours'
                and (h.pass = 0 or h.listed_at is null or h.listed_at <= s.skipped_at)
      )
returning s.upstream, s.from_cursor

-- name: fill_now
-- Make ranges due at once, also for the PDSes.
update sluice.skipped_range set next_retry_at = now(), retry_count = greatest(retry_count, %(tries)s)
where filled_at is null and (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
returning id

-- name: narrow
-- Shrink a range to what is unread, which is retried later. No row: another row already is that range.
update sluice.skipped_range s set
    retry_count = s.retry_count + 1, next_retry_at = now() + make_interval(secs => %(delay)s), reason = %(reason)s,
    from_cursor = %(from_cursor)s, to_cursor = %(to_cursor)s
where s.id = %(id)s and s.filled_at is null and not exists (
    select from sluice.skipped_range o
    where o.upstream = s.upstream and o.from_cursor = %(from_cursor)s and o.to_cursor = %(to_cursor)s and o.id <> s.id
)
returning s.id

-- name: split
-- Add another unread part of a range, with the same age and retry count.
insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason, retry_count, next_retry_at, skipped_at)
select s.upstream, %(from_cursor)s, %(to_cursor)s, %(reason)s, s.retry_count + 1,
       now() + make_interval(secs => %(delay)s), s.skipped_at
from sluice.skipped_range s where s.id = %(id)s and s.filled_at is null
on conflict (upstream, from_cursor, to_cursor) do update set
    reason = excluded.reason, filled_at = null, filled_by = null, next_retry_at = excluded.next_retry_at,
    retry_count = greatest(skipped_range.retry_count, excluded.retry_count),
    skipped_at = least(skipped_range.skipped_at, excluded.skipped_at)

-- name: gaps
-- Newest open gap of each upstream, and the database's clock (seconds since 1970).
select upstream, extract(epoch from max(noticed_at))::float8, extract(epoch from now())::float8
from sluice.stream_gap where answered_at is null group by upstream
union all
select '', null, extract(epoch from now())::float8

-- name: answer_gaps
update sluice.stream_gap set answered_at = now()
where answered_at is null and noticed_at < to_timestamp(%(began)s) and (
    upstream = %(upstream)s or (%(others)s and not upstream = any(%(known)s::text[]))
)

-- name: see_hosts
insert into sluice.host (host, relay)
select h.host, %(relay)s from unnest(%(hosts)s::text[]) as h (host) order by h.host
on conflict (host) do update set relay = excluded.relay, last_seen_at = now()
where host.relay is distinct from excluded.relay or host.last_seen_at < now() - interval '1 hour'

-- name: host_listed
insert into sluice.host (host, cursor, pass, listed_at)
values (%(host)s, %(cursor)s, %(pass)s, case when %(done)s then now() end)
on conflict (host) do update set
    cursor = excluded.cursor, pass = excluded.pass, listed_at = coalesce(excluded.listed_at, host.listed_at)
