-- When our log took a record (millionths of ms of the epoch; steps/gate/batch.py, came_at): by it, and by no time that an author writes,
-- the gates of the AppView decide. Null: unknown, as of everything from before this release. Negative: the first fetch of the repo
-- brought the record, so it was there by then, nobody knows since when. Of a held event the ms.
alter table sluice.record add column came bigint;
alter table sluice.held_event add column received bigint;

-- A gate's terms over time, one row for each that differs: what was decided under former terms stays decided.
alter table sluice.appview_gate alter column sort_at set default '';      -- not read any more
alter table sluice.appview_gate add column came bigint not null default 0;  -- from when on these terms hold; 0: since ever
alter table sluice.appview_gate add column standing boolean not null default true;  -- false: deleted at that time
alter table sluice.appview_gate drop constraint appview_gate_pkey;
alter table sluice.appview_gate add primary key (uri, came);

-- A reply that a follow or a list once let in stays in: the time of the terms under which that was decided.
alter table sluice.appview_gated add column let_in bigint;

-- Follows and list items that ended lately: a reply that came while they held may still be judged by them. Pruned by the fold.
create table sluice.appview_lapsed (
    holder   text collate "C" not null,                  -- who followed, or the list
    member   text collate "C" not null,                  -- who was followed, or listed
    came     bigint not null,
    gone     bigint not null,
    noted_at timestamptz not null default now()
);
create index appview_lapsed_of on sluice.appview_lapsed (holder, member);
create index appview_lapsed_noted on sluice.appview_lapsed (noted_at);

-- An edit that made a record invalid for the AppView: what it was before stays shown.
alter table sluice.appview_record add column kept_cid text collate "C";
alter table sluice.appview_record add column kept_json text;
alter table sluice.appview_record add column kept_at text collate "C";

create or replace view bsky.record as
select ('at://' || r.did || '/' || r.collection || '/' || r.rkey)::varchar as uri, coalesce(x.kept_cid, r.cid)::varchar as cid,
       r.did::varchar as did, coalesce(x.kept_json, r.json::text) as json,
       coalesce(x.kept_at, r.indexed_at)::varchar as "indexedAt", x.takedown_ref as "takedownRef", x.tags
from sluice.record r
left join sluice.appview_record x on x.did = r.did and x.collection = r.collection and x.rkey = r.rkey
where r.collection in (
    'app.bsky.actor.profile', 'app.bsky.actor.status', 'app.bsky.feed.generator', 'app.bsky.feed.like',
    'app.bsky.feed.post', 'app.bsky.feed.postgate', 'app.bsky.feed.repost', 'app.bsky.feed.threadgate',
    'app.bsky.graph.block', 'app.bsky.graph.follow', 'app.bsky.graph.list', 'app.bsky.graph.listblock',
    'app.bsky.graph.listitem', 'app.bsky.graph.referencelistoptout', 'app.bsky.graph.starterpack',
    'app.bsky.graph.verification', 'app.bsky.labeler.service', 'app.bsky.notification.declaration',
    'chat.bsky.actor.declaration', 'com.germnetwork.declaration'
) and r.json is not null and (x.invalid is null or x.kept_json is not null);
