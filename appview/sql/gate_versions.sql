-- Versions of gates (appview/gate_versions.py). All rows of a gate are written under the lock of its repo.

-- name: versions
-- Oldest first.
select came, standing, closed, mentioned, follower, following, lists
from sluice.appview_gate where uri = %(uri)s order by came

-- name: post_came
-- The post of a gate: same repo, same key.
select came from sluice.record where did = %(did)s and collection = 'app.bsky.feed.post' and rkey = %(rkey)s

-- name: put
insert into sluice.appview_gate (uri, post_uri, came, standing, closed, mentioned, follower, following, lists, hidden)
values (%(uri)s, %(post_uri)s, %(came)s, %(standing)s, %(closed)s, %(mentioned)s, %(follower)s, %(following)s, %(lists)s, %(hidden)s)
on conflict (uri, came) do update
set standing = excluded.standing, closed = excluded.closed, mentioned = excluded.mentioned, follower = excluded.follower,
    following = excluded.following, lists = excluded.lists, hidden = excluded.hidden

-- name: hide_none
-- Only the newest version of a gate hides replies.
update sluice.appview_gate set hidden = '{}' where uri = %(uri)s and hidden <> '{}'

-- name: forget
delete from sluice.appview_gate where uri = %(uri)s and came = any(%(times)s)

-- name: posts
select distinct g.uri, g.post_uri
from sluice.appview_gate g
where g.uri = any(%(uris)s::text[]) and (%(existing)s or not exists (select from bsky.thread_gate t where t.uri = g.uri)
                                                         and not exists (select from bsky.post_gate t where t.uri = g.uri))
order by g.uri

-- name: lost
-- Gates whose records are gone: they were deleted while the tables were off.
select g.uri
from unnest(%(dids)s::text[]) as d (did)
join sluice.appview_gate g on g.uri > 'at://' || d.did || '/' and g.uri < 'at://' || d.did || '0'
where g.came = (select max(n.came) from sluice.appview_gate n where n.uri = g.uri) and g.standing
      and not exists (select from bsky.thread_gate t where t.uri = g.uri)
      and not exists (select from bsky.post_gate t where t.uri = g.uri)

-- name: now
-- In the units of `steps.gate.batch.came_at`.
select (extract(epoch from clock_timestamp()) * 1000)::bigint * 1000000

-- name: copy_lapsed
copy sluice.appview_lapsed (holder, member, came, gone) from stdin

-- name: prune_lapsed
delete from sluice.appview_lapsed
where noted_at < now() - make_interval(secs => %(seconds)s)
      or noted_at < (select noted_at from sluice.appview_lapsed order by noted_at desc offset %(rows)s limit 1)
