-- Statements of the AppView in the index transaction (appview/writer.py).

-- name: changed
-- Staged rows whose path or CID is new: whether the path exists, and its `came`.
select o.did, c.name, s.rkey, r.repo is not null, r.came
from stage_record s
join sluice.repo o on o.id = s.repo
join sluice.collection c on c.id = s.collection
left join sluice.record_row r on r.repo = s.repo and r.collection = s.collection and r.rkey = s.rkey
where r.cid is distinct from s.cid

-- name: records
-- Records by path, as the AppView shows them, in the columns of `steps.gate.batch.Row`.
select r.did, r.collection, r.rkey, coalesce(x.kept_cid, r.cid), r.rev, r.attempt, coalesce(x.kept_json, r.json::text), null,
       r.reason, coalesce(x.kept_at, sluice.time_text(r.indexed_at)), r.came
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
join sluice.record r on r.did = u.did and r.collection = u.collection and r.rkey = u.rkey
left join sluice.appview_record x on x.did = r.did and x.collection = r.collection and x.rkey = r.rkey

-- name: add_uris
insert into sluice.appview_uri (uri, repo, collection)
select 'at://' || u.did || '/' || u.collection || '/' || u.rkey, r.id, c.id
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
join sluice.repo r on r.did = u.did
join sluice.collection c on c.name = u.collection
on conflict (uri) do nothing

-- name: drop_uris
delete from sluice.appview_uri where uri = any(%(uris)s::text[])

-- name: duplicates_of_uris
-- Duplicates of removed records: one of them becomes the owner of the key.
select uri from bsky.duplicate_record where "duplicateOf" = any(%(uris)s::text[])

-- name: duplicates_of_repos
select t.uri
from unnest(%(dids)s::text[]) as u (did)
join bsky.duplicate_record t on t.uri > 'at://' || u.did || '/' and t.uri < 'at://' || u.did || '0'

-- name: forget_duplicates
delete from bsky.duplicate_record where uri = any(%(uris)s::text[])

-- name: add_duplicates
insert into bsky.duplicate_record (uri, cid, "duplicateOf", "indexedAt")
select * from unnest(%(uris)s::text[], %(cids)s::text[], %(owners)s::text[], %(times)s::text[])
on conflict (uri) do update set cid = excluded.cid, "duplicateOf" = excluded."duplicateOf", "indexedAt" = excluded."indexedAt"

-- name: move_duplicates
-- Duplicates of the former owner become duplicates of the new one.
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
-- Other rows of records of these repos, by the range of URIs below `at://did/`. Notifications of posts are left to
-- reconcile.sql; decisions about gates stay.
with d as (select 'at://' || did || '/' as low, 'at://' || did || '0' as high from unnest(%(dids)s::text[]) as u (did)),
duplicates as (delete from bsky.duplicate_record t using d where t.uri > d.low and t.uri < d.high),
mentions as (delete from sluice.appview_mention t using d where t.uri > d.low and t.uri < d.high),
uris as (delete from sluice.appview_uri t using d where t.uri > d.low and t.uri < d.high)
delete from bsky.notification t using d
where t."recordUri" > d.low and t."recordUri" < d.high and split_part(t."recordUri", '/', 4) <> 'app.bsky.feed.post'

-- name: copy_notifications
copy bsky.notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt") from stdin

-- name: has_muted
select exists (select from bsky.thread_mute)

-- name: drop_muted
-- A receiver who muted the thread gets no notification.
delete from bsky.notification n
using bsky.thread_mute m
where n."recordUri" = any(%(uris)s::text[]) and m."mutedByDid" = n.did and n."reasonSubject" is not null
      and m."rootUri" = coalesce((select p."replyRoot" from bsky.post p where p.uri = n."reasonSubject"), n."reasonSubject")

-- name: drop_mentions
delete from sluice.appview_mention where uri = any(%(uris)s::text[])

-- name: copy_mentions
copy sluice.appview_mention (uri, n, did) from stdin

-- name: forget_gated
delete from sluice.appview_gated where uri = any(%(uris)s::text[])

-- name: flag_gates
-- The gates of a post are in its own repo. False: a gate existed and is gone.
update bsky.post p set "hasThreadGate" = g.thread, "hasPostGate" = g.embed
from (
    select u.uri,
           case when exists (select from bsky.thread_gate t where t."postUri" = u.uri) then true
                when exists (select from sluice.appview_gate v where v.post_uri = u.uri and not v.standing
                                                                     and split_part(v.uri, '/', 4) = 'app.bsky.feed.threadgate')
                then false end as thread,
           case when exists (select from bsky.post_gate t where t."postUri" = u.uri) then true
                when exists (select from sluice.appview_gate v where v.post_uri = u.uri and not v.standing
                                                                     and split_part(v.uri, '/', 4) = 'app.bsky.feed.postgate')
                then false end as embed
    from unnest(%(uris)s::text[]) as u (uri)
) g
where p.uri = g.uri and (p."hasThreadGate" is distinct from g.thread or p."hasPostGate" is distinct from g.embed)

-- name: forget_marks
-- Only of records that are gone: for changed ones, what operators wrote stays.
delete from sluice.appview_record x
using unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
where x.did = u.did and x.collection = u.collection and x.rkey = u.rkey

-- name: clear_invalid
update sluice.appview_record x set invalid = null, kept_cid = null, kept_json = null, kept_at = null
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
where x.did = u.did and x.collection = u.collection and x.rkey = u.rkey and x.invalid is not null

-- name: mark_invalid
insert into sluice.appview_record as x (did, collection, rkey, invalid)
select * from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[], %(reasons)s::text[])
on conflict (did, collection, rkey) do update
set invalid = excluded.invalid, kept_cid = null, kept_json = null, kept_at = null

-- name: keep
-- Before an invalid edit: keep the current version, which stays visible. If it is invalid too, or a version is kept already,
-- nothing changes.
insert into sluice.appview_record as x (did, collection, rkey, invalid, kept_cid, kept_json, kept_at)
select r.did, r.collection, r.rkey, u.reason, r.cid, r.json::text, sluice.time_text(r.indexed_at)
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[], %(reasons)s::text[]) as u (did, collection, rkey, reason)
join sluice.record r on r.did = u.did and r.collection = u.collection and r.rkey = u.rkey
where r.json is not null
on conflict (did, collection, rkey) do update
set invalid = excluded.invalid, kept_cid = excluded.kept_cid, kept_json = excluded.kept_json, kept_at = excluded.kept_at
where x.invalid is null

-- name: keep_this
insert into sluice.appview_record as x (did, collection, rkey, invalid, kept_cid, kept_json, kept_at)
values (%(did)s, %(collection)s, %(rkey)s, %(reason)s, %(cid)s, %(json)s, %(at)s)
on conflict (did, collection, rkey) do update
set invalid = excluded.invalid, kept_cid = excluded.kept_cid, kept_json = excluded.kept_json, kept_at = excluded.kept_at

-- name: kept
select u.did, u.collection, u.rkey
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
join sluice.appview_record x on x.did = u.did and x.collection = u.collection and x.rkey = u.rkey
where x.kept_json is not null

-- name: flag_kept
with flagged as (
    update sluice.appview_record x set invalid = u.reason
    from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[], %(reasons)s::text[]) as u (did, collection, rkey, reason)
    where x.did = u.did and x.collection = u.collection and x.rkey = u.rkey
)
update sluice.record_row r set came = u.came
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[], %(times)s::bigint[]) as u (did, collection, rkey, came)
join sluice.repo o on o.did = u.did
join sluice.collection c on c.name = u.collection
where r.repo = o.id and r.collection = c.id and r.rkey = u.rkey

-- name: unkeep
update sluice.appview_record x set invalid = null, kept_cid = null, kept_json = null, kept_at = null
where x.did = %(did)s and x.collection = %(collection)s and x.rkey = %(rkey)s

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
-- Increments, sorted by URI: all writers lock these rows in the same order.
insert into bsky.post_agg as a (uri, "likeCount", "replyCount", "repostCount", "quoteCount")
select * from unnest(%(uris)s::text[], %(likes)s::bigint[], %(replies)s::bigint[], %(reposts)s::bigint[], %(quotes)s::bigint[])
on conflict (uri) do update
set "likeCount" = a."likeCount" + excluded."likeCount", "replyCount" = a."replyCount" + excluded."replyCount",
    "repostCount" = a."repostCount" + excluded."repostCount", "quoteCount" = a."quoteCount" + excluded."quoteCount"

-- name: drop_empty
-- Rows whose counters are all zero. This transaction has locked them by the previous statement.
delete from bsky.post_agg
where uri = any(%(uris)s::text[]) and "likeCount" = 0 and "replyCount" = 0 and "repostCount" = 0 and "quoteCount" = 0
      and "bookmarkCount" = 0

-- name: count_profiles
insert into bsky.profile_agg as a (did, "followersCount", "followsCount", "postsCount")
select * from unnest(%(dids)s::text[], %(followers)s::bigint[], %(follows)s::bigint[], %(posts)s::bigint[])
on conflict (did) do update
set "followersCount" = a."followersCount" + excluded."followersCount", "followsCount" = a."followsCount" + excluded."followsCount",
    "postsCount" = a."postsCount" + excluded."postsCount"
