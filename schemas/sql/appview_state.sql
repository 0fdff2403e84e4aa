-- Statements on the state of the AppView's projection (connectors/appview_state.py, control/appview.py).

-- name: state
select active, complete, version, rebuild_after, rebuild_version from sluice.appview

-- name: prepare
select sluice.appview_prepare()

-- name: has_records
-- Some at all; more than so many.
select exists (select from sluice.record), (select count(*) from (select from sluice.record limit %(many)s + 1) r) > %(many)s

-- name: switch_on
-- From nothing it is complete at once. After a time without it, it is not.
update sluice.appview
set active = true, complete = (complete and active) or %(empty)s,
    version = case when %(empty)s then %(version)s else coalesce(version, %(version)s) end, changed_at = now()
where not active or %(empty)s

-- name: switch_off
update sluice.appview set active = false, complete = false, rebuild_after = null, changed_at = now() where active

-- name: index_uris
-- The view's own expression and condition: what `bsky.record` is asked by.
create index if not exists record_uri on sluice.record (('at://' || did || '/' || collection || '/' || rkey))
where collection in (
    'app.bsky.actor.profile', 'app.bsky.actor.status', 'app.bsky.feed.generator', 'app.bsky.feed.like',
    'app.bsky.feed.post', 'app.bsky.feed.postgate', 'app.bsky.feed.repost', 'app.bsky.feed.threadgate',
    'app.bsky.graph.block', 'app.bsky.graph.follow', 'app.bsky.graph.list', 'app.bsky.graph.listblock',
    'app.bsky.graph.listitem', 'app.bsky.graph.referencelistoptout', 'app.bsky.graph.starterpack',
    'app.bsky.graph.verification', 'app.bsky.labeler.service', 'app.bsky.notification.declaration',
    'chat.bsky.actor.declaration', 'com.germnetwork.declaration'
) and json is not null

-- name: index_uris_concurrently
create index concurrently if not exists record_uri on sluice.record (('at://' || did || '/' || collection || '/' || rkey))
where collection in (
    'app.bsky.actor.profile', 'app.bsky.actor.status', 'app.bsky.feed.generator', 'app.bsky.feed.like',
    'app.bsky.feed.post', 'app.bsky.feed.postgate', 'app.bsky.feed.repost', 'app.bsky.feed.threadgate',
    'app.bsky.graph.block', 'app.bsky.graph.follow', 'app.bsky.graph.list', 'app.bsky.graph.listblock',
    'app.bsky.graph.listitem', 'app.bsky.graph.referencelistoptout', 'app.bsky.graph.starterpack',
    'app.bsky.graph.verification', 'app.bsky.labeler.service', 'app.bsky.notification.declaration',
    'chat.bsky.actor.declaration', 'com.germnetwork.declaration'
) and json is not null

-- name: broken_index
-- What a concurrent build that was cut short leaves.
select exists (select from pg_index where indexrelid = to_regclass('sluice.record_uri') and not indisvalid)

-- name: drop_index
drop index concurrently if exists sluice.record_uri
