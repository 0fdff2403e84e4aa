-- Statements of the storm breaker, run by control/tasks/storms.py.

-- name: repos
select greatest(c.reltuples, s.n_live_tup, 0)::bigint
from pg_class c left join pg_stat_user_tables s on s.relid = c.oid
where c.oid = 'sluice.repo'::regclass

-- name: waiting
-- Repos that wait to be queued, by reason, counted up to a limit.
select reason, count(*) from (
    select reason from sluice.repo
    where phase = 'pending' and queued_at is null and reason = any(%(reasons)s::text[]) limit %(most)s
) w group by reason

-- name: queued
select reason, sum(repos)::bigint from sluice.refetch where minute > now() - interval '1 hour' group by reason

-- name: count
with gone as (delete from sluice.refetch where minute < now() - interval '2 hours')
insert into sluice.refetch as r (reason, minute, repos)
select reason, date_trunc('minute', now()), count
from unnest(%(reasons)s::text[], %(counts)s::bigint[]) as u (reason, count) order by reason
on conflict (reason, minute) do update set repos = r.repos + excluded.repos

-- name: released
select reason from sluice.storm where released_until > now()

-- name: hold
-- Store the held reasons; remove those that are no longer held, except those that an operator released.
with gone as (
    delete from sluice.storm
    where reason = any(%(decided)s::text[]) and not reason = any(%(reasons)s::text[]) and coalesce(released_until, '-infinity') <= now()
)
insert into sluice.storm (reason, repos)
select * from unnest(%(reasons)s::text[], %(counts)s::bigint[])
on conflict (reason) do update set repos = excluded.repos, released_until = null

-- name: holds
select reason, repos from sluice.storm where reason = %(reason)s and coalesce(released_until, '-infinity') <= now()

-- name: list
select reason, repos, began_at, case when released_until > now() then released_until end
from sluice.storm order by began_at, reason

-- name: release
update sluice.storm set released_until = now() + make_interval(hours => %(hours)s) where reason = %(reason)s
