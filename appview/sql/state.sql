-- Statements on the state of the AppView's tables (appview/state.py, appview/rebuild.py).

-- name: state
select active, complete, version, rebuild_after, rebuild_version from sluice.appview

-- name: is_prepared
-- `create index if not exists` would lock the tables even if the indexes exist.
select to_regclass('bsky.actor_handle_tgrm_idx') is not null and to_regclass('bsky.profile_display_name_tgrm_idx') is not null
and to_regclass('bsky.starter_pack_name_tgrm_idx') is not null

-- name: prepare
select sluice.appview_prepare()

-- name: has_records
select exists (select from sluice.record_row)

-- name: switch_on
-- In an empty database the tables are complete at once; if they were off for a time, they are not.
update sluice.appview
set active = true, complete = (complete and active) or %(empty)s,
    version = case when %(empty)s then %(version)s else coalesce(version, %(version)s) end, changed_at = now()
where not active or %(empty)s

-- name: switch_off
update sluice.appview set active = false, complete = false, rebuild_after = null, changed_at = now() where active

-- name: begin_rebuild
-- Resumes a rebuild of the same version, unless it has to start from empty tables.
update sluice.appview
set rebuild_after = case when %(from_empty)s or rebuild_version is distinct from %(version)s then '' else coalesce(rebuild_after, '') end,
    rebuild_version = %(version)s, complete = false, changed_at = now()
returning rebuild_after

-- name: retry_refused
with again as (delete from sluice.appview_refused returning kind, uri)
insert into sluice.appview_dirty (kind, uri) select kind, uri from again

-- name: next_repos
-- Locked as the index locks them: it waits for these repos only.
select did from sluice.repo where did > %(after)s order by did limit %(limit)s for update

-- name: checkpoint
update sluice.appview set rebuild_after = %(after)s, changed_at = now()

-- name: end_rebuild
update sluice.appview
set rebuild_after = null, complete = active, version = rebuild_version, changed_at = now()
where rebuild_after is not null

-- name: repos
select count(*), count(*) filter (where did <= %(after)s) from sluice.repo

-- name: bodies
-- Records of these repos, in the columns of `steps.gate.batch.Row`.
select r.did, r.collection, r.rkey, coalesce(x.kept_cid, r.cid), r.rev, r.attempt, coalesce(x.kept_json, r.json::text), null,
       r.reason, coalesce(x.kept_at, sluice.time_text(r.indexed_at)), r.came
from sluice.record r
left join sluice.appview_record x on x.did = r.did and x.collection = r.collection and x.rkey = r.rkey
where r.did = any(%(dids)s::text[]) and r.collection = any(%(collections)s::text[])

-- name: kept_bodies
-- Current versions of the records that are shown as they were before an edit.
select r.did, r.collection, r.rkey, r.cid, r.rev, r.attempt, r.json::text, null, r.reason, sluice.time_text(r.indexed_at), r.came
from sluice.appview_record x
join sluice.record r on r.did = x.did and r.collection = x.collection and r.rkey = x.rkey
where x.did = any(%(dids)s::text[]) and x.kept_json is not null and r.json is not null

-- name: set_actors
select sluice.appview_actors(%(dids)s::text[], true, true)

-- name: empty
-- What operators and users of the AppView wrote stays: accounts, bookmarks, mutes and the like. So do decisions: versions of
-- gates, replies let in, and owners of unique keys (duplicate_record is removed repo by repo).
truncate bsky.post, bsky.feed_item, bsky.quote, bsky."like", bsky.repost, bsky.follow, bsky.actor_block, bsky.list, bsky.list_item,
    bsky.list_block, bsky.reference_list_opt_out, bsky.starter_pack, bsky.verification, bsky.feed_generator, bsky.labeler,
    bsky.profile, bsky.thread_gate, bsky.post_gate, bsky.op_thread_reply, bsky.post_embed_image, bsky.post_embed_gallery_image,
    bsky.post_embed_external, bsky.post_embed_record, bsky.post_embed_video, bsky.notification, bsky.profile_agg, sluice.appview_mention,
    sluice.appview_uri, sluice.appview_dirty

-- name: empty_counts
with kept as (delete from bsky.post_agg returning uri, "bookmarkCount")
select uri, "bookmarkCount" from kept where "bookmarkCount" <> 0

-- name: keep_bookmarks
insert into bsky.post_agg (uri, "bookmarkCount") select * from unnest(%(uris)s::text[], %(counts)s::bigint[])

-- name: forget_invalid
update sluice.appview_record set invalid = null
where did = any(%(dids)s::text[]) and invalid is not null and kept_json is null

-- name: dirty_rows
select count(*) from sluice.appview_dirty

-- name: check_posts
-- Counters that differ from a recount: how many, and one of them.
select count(*), min(uri) from (
    select uri, sum(likes) as likes, sum(replies) as replies, sum(reposts) as reposts, sum(quotes) as quotes
    from (
        select subject as uri, count(*) as likes, 0 as replies, 0 as reposts, 0 as quotes from bsky."like" group by subject
        union all
        select "replyParent", 0, count(*), 0, 0 from bsky.post
        where "replyParent" is not null and "violatesThreadGate" is not true group by "replyParent"
        union all select subject, 0, 0, count(*), 0 from bsky.repost group by subject
        union all select subject, 0, 0, 0, count(*) from bsky.quote group by subject
    ) parts group by uri
) c full join bsky.post_agg a using (uri)
where (coalesce(c.likes, 0), coalesce(c.replies, 0), coalesce(c.reposts, 0), coalesce(c.quotes, 0))
      is distinct from (coalesce(a."likeCount", 0), coalesce(a."replyCount", 0), coalesce(a."repostCount", 0), coalesce(a."quoteCount", 0))

-- name: check_profiles
select count(*), min(did) from (
    select did, sum(followers) as followers, sum(follows) as follows, sum(posts) as posts
    from (
        select "subjectDid" as did, count(*) as followers, 0 as follows, 0 as posts from bsky.follow group by "subjectDid"
        union all select creator, 0, count(*), 0 from bsky.follow group by creator
        union all select creator, 0, 0, count(*) from bsky.post group by creator
    ) parts group by did
) c full join bsky.profile_agg a using (did)
where (coalesce(c.followers, 0), coalesce(c.follows, 0), coalesce(c.posts, 0))
      is distinct from (coalesce(a."followersCount", 0), coalesce(a."followsCount", 0), coalesce(a."postsCount", 0))

-- name: check_actors
-- Accounts whose row is missing, or should not exist.
select count(*), min(coalesce(r.did, a.did)) from (
    select r.did from sluice.repo r left join sluice.handle h using (did)
    where (r.rev <> '' or h.checked_at is not null) and not (r.phase = 'unavailable' and r.status = 'deleted')
) r full join bsky.actor a on a.did = r.did
where r.did is null or a.did is null

-- name: check_refused
-- Quarantined notes.
select count(*), min(kind || ' ' || uri || ': ' || split_part(reason, E'\n', 1)) from sluice.appview_refused

-- name: count_collection
-- Valid records of a collection.
select count(*)
from sluice.record r
left join sluice.appview_record x on x.did = r.did and x.collection = r.collection and x.rkey = r.rkey
where r.collection = %(collection)s and r.json is not null and (x.invalid is null or x.kept_json is not null)
