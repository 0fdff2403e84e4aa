-- Statements on sluice.handle, run by connectors/identity/handle_checks.py. Rows are locked in DID order.

-- name: due
-- In this order: checks that events ask for, handles never checked, scheduled checks. Scheduled ones come last, since these handles
-- keep their last result, while one never checked is shown as `handle.invalid`. They are read only if the others leave room.
with first as materialized (
    select did, asked, failures from sluice.handle
    where (checked_at is null or next_check_at = '-infinity') and next_check_at <= now()
    order by next_check_at limit %(limit)s
), again as (
    select did, asked, failures from sluice.handle
    where checked_at is not null and next_check_at > '-infinity' and next_check_at <= now()
    order by next_check_at limit %(limit)s - (select count(*) from first)
)
select did, asked, failures from first union all select did, asked, failures from again

-- name: release
-- A handle belongs to the DID that its domain names now: any other DID loses it.
update sluice.handle h
set verified = false, reason = 'elsewhere', detail = 'the domain names ' || l.owner, next_check_at = now() + make_interval(secs => %(retry)s)
from (
    select o.did, w.did as owner
    from sluice.handle o
    join unnest(%(handles)s::text[], %(dids)s::text[]) as w (handle, did) on w.handle = o.handle and w.did <> o.did
    where o.verified
    order by o.did for update of o
) l
where h.did = l.did
returning h.did

-- name: settle
-- Results of checks. Without an answer a verified handle stays verified; without one from its web host only until %(web_silent_seconds)s s
-- after it was last verified. A check that an event asked for after this one began stays due.
insert into sluice.handle as h (did, handle, verified, verified_at, checked_at, next_check_at, failures, reason, detail)
select u.did, u.handle, u.standing = 'verified', case when u.standing = 'verified' then now() end, now(),
       now() + make_interval(secs => u.delay), (u.standing <> 'verified')::integer, nullif(u.standing, 'verified'), u.detail
from unnest(%(dids)s::text[], %(handles)s::text[], %(standings)s::text[], %(details)s::text[], %(delays)s::float8[],
            %(asked)s::bigint[]) as u (did, handle, standing, detail, delay, asked)
order by u.did
on conflict (did) do update
set handle = case when excluded.reason = 'directory_silent' then h.handle else excluded.handle end,
    verified = excluded.verified or (h.verified and (
        excluded.reason = 'directory_silent'
        or (excluded.reason = 'dns_silent' and excluded.handle = h.handle)
        or (excluded.reason = 'web_silent' and excluded.handle = h.handle
            and h.verified_at > now() - make_interval(secs => %(web_silent_seconds)s))
    )),
    verified_at = coalesce(excluded.verified_at, h.verified_at),
    checked_at = excluded.checked_at,
    failures = case when excluded.verified then 0 else h.failures + 1 end,
    reason = excluded.reason, detail = excluded.detail,
    next_check_at = case when h.asked > (
        select max(u.asked) from unnest(%(dids)s::text[], %(asked)s::bigint[]) as u (did, asked) where u.did = h.did
    ) then h.next_check_at else excluded.next_check_at end

-- name: ask_owners
-- The DID that a domain names instead: check it soon, if its document claims the handle.
update sluice.handle h set next_check_at = least(h.next_check_at, now())
from (
    select o.did from sluice.handle o
    join unnest(%(owners)s::text[], %(handles)s::text[]) as w (did, handle) on w.did = o.did and w.handle = o.handle
    where not o.verified
    order by o.did for update of o
) n
where h.did = n.did
