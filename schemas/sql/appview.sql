-- Statements of the AppView's projection: in the index transaction (connectors/appview.py), and its state.

-- name: changed
-- Staged rows that differ from the table by path and CID, and whether the path was there.
select s.did, s.collection, s.rkey, r.did is not null
from stage_record s
left join sluice.record r on r.did = s.did and r.collection = s.collection and r.rkey = s.rkey
where r.cid is distinct from s.cid

-- name: records
-- Bodies of records by path, in the order of `sluice.record`'s own columns as `steps.settle.Row` has them.
select r.did, r.collection, r.rkey, r.cid, r.rev, r.attempt, r.json::text, null, r.reason, r.indexed_at
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
join sluice.record r on r.did = u.did and r.collection = u.collection and r.rkey = u.rkey

-- name: waiting_for
-- Duplicates of what goes: one of them takes its place.
select uri from bsky.duplicate_record where "duplicateOf" = any(%(uris)s::text[])

-- name: forget_duplicates
delete from bsky.duplicate_record where uri = any(%(uris)s::text[])

-- name: add_duplicates
insert into bsky.duplicate_record (uri, cid, "duplicateOf", "indexedAt")
select * from unnest(%(uris)s::text[], %(cids)s::text[], %(owners)s::text[], %(times)s::text[])
on conflict (uri) do update set cid = excluded.cid, "duplicateOf" = excluded."duplicateOf", "indexedAt" = excluded."indexedAt"

-- name: move_duplicates
-- Others who waited for the former owner wait for the new one.
update bsky.duplicate_record d set "duplicateOf" = u.owner
from unnest(%(formers)s::text[], %(owners)s::text[]) as u (former, owner)
where d."duplicateOf" = u.former

-- name: drop_thread_replies
delete from bsky.op_thread_reply o
using unnest(%(roots)s::text[], %(uris)s::text[]) as u (root, uri)
where o."rootUri" = u.root and o.uri = u.uri

-- name: drop_notifications
delete from bsky.notification where "recordUri" = any(%(uris)s::text[])

-- name: forget_repos
-- What records of these repos left besides their own rows, by the range of URIs below `at://did/`. Notifications of posts are
-- the fold's.
with d as (select 'at://' || did || '/' as low, 'at://' || did || '0' as high from unnest(%(dids)s::text[]) as u (did)),
duplicates as (delete from bsky.duplicate_record t using d where t.uri > d.low and t.uri < d.high),
mentions as (delete from sluice.appview_mention t using d where t.uri > d.low and t.uri < d.high),
gates as (delete from sluice.appview_gate t using d where t.uri > d.low and t.uri < d.high)
delete from bsky.notification t using d
where t."recordUri" > d.low and t."recordUri" < d.high and split_part(t."recordUri", '/', 4) <> 'app.bsky.feed.post'

-- name: copy_notifications
copy bsky.notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt") from stdin

-- name: has_muted
select exists (select from bsky.thread_mute)

-- name: drop_muted
-- Receivers who muted the thread hear nothing of it.
delete from bsky.notification n
using bsky.thread_mute m
where n."recordUri" = any(%(uris)s::text[]) and m."mutedByDid" = n.did and n."reasonSubject" is not null
      and m."rootUri" = coalesce((select p."replyRoot" from bsky.post p where p.uri = n."reasonSubject"), n."reasonSubject")

-- name: drop_mentions
delete from sluice.appview_mention where uri = any(%(uris)s::text[])

-- name: copy_mentions
copy sluice.appview_mention (uri, n, did) from stdin

-- name: drop_gates
delete from sluice.appview_gate where uri = any(%(uris)s::text[])

-- name: add_gate
insert into sluice.appview_gate (uri, post_uri, sort_at, closed, mentioned, follower, following, lists, hidden)
values (%(uri)s, %(post_uri)s, %(sort_at)s, %(closed)s, %(mentioned)s, %(follower)s, %(following)s, %(lists)s, %(hidden)s)

-- name: flag_gates
-- The gates of a post stand in its own repo.
update bsky.post p
set "hasThreadGate" = case when g.thread then true end, "hasPostGate" = case when g.embed then true end
from (
    select u.uri, exists (select from bsky.thread_gate t where t."postUri" = u.uri) as thread,
           exists (select from bsky.post_gate t where t."postUri" = u.uri) as embed
    from unnest(%(uris)s::text[]) as u (uri)
) g
where p.uri = g.uri and ((p."hasThreadGate" is true) <> g.thread or (p."hasPostGate" is true) <> g.embed)

-- name: forget_marks
-- Of records that are gone nothing is known; of changed ones what operators wrote stays.
delete from sluice.appview_record x
using unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
where x.did = u.did and x.collection = u.collection and x.rkey = u.rkey

-- name: clear_invalid
update sluice.appview_record x set invalid = null
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
where x.did = u.did and x.collection = u.collection and x.rkey = u.rkey and x.invalid is not null

-- name: mark_invalid
insert into sluice.appview_record as x (did, collection, rkey, invalid)
select * from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[], %(reasons)s::text[])
on conflict (did, collection, rkey) do update set invalid = excluded.invalid

-- name: has_gated
select exists (select from sluice.appview_gated)

-- name: judge_again
insert into sluice.appview_dirty (kind, uri)
select 'judge', g.uri
from unnest(%(authors)s::text[], %(owners)s::text[]) as u (author, owner)
join sluice.appview_gated g on g.author = u.author and g.owner = u.owner
union all
select 'judge', g.uri from sluice.appview_gated g where g.author = any(%(listed)s::text[])

-- name: copy_dirty
copy sluice.appview_dirty (kind, uri) from stdin

-- name: count_posts
-- Deltas, sorted by URI: whoever else counts the same rows takes them in the same order.
insert into bsky.post_agg as a (uri, "likeCount", "replyCount", "repostCount", "quoteCount")
select * from unnest(%(uris)s::text[], %(likes)s::bigint[], %(replies)s::bigint[], %(reposts)s::bigint[], %(quotes)s::bigint[])
on conflict (uri) do update
set "likeCount" = a."likeCount" + excluded."likeCount", "replyCount" = a."replyCount" + excluded."replyCount",
    "repostCount" = a."repostCount" + excluded."repostCount", "quoteCount" = a."quoteCount" + excluded."quoteCount"

-- name: count_profiles
insert into bsky.profile_agg as a (did, "followersCount", "followsCount", "postsCount")
select * from unnest(%(dids)s::text[], %(followers)s::bigint[], %(follows)s::bigint[], %(posts)s::bigint[])
on conflict (did) do update
set "followersCount" = a."followersCount" + excluded."followersCount", "followsCount" = a."followsCount" + excluded."followsCount",
    "postsCount" = a."postsCount" + excluded."postsCount"
