-- Schema `bsky`: the tables that the official AppView's data plane reads (SLUICE_APPVIEW=true, docs/appview.md). Names, columns,
-- types and keys are the AppView's; the DDL is our own. All text is "C": it is compared as text, and so are the views' columns,
-- which come from `sluice.record` and `sluice.label`. Without SLUICE_APPVIEW the tables stay empty and cost nothing.
create schema if not exists bsky;

create table bsky.actor (
    did varchar collate "C" not null,
    handle varchar collate "C",
    "indexedAt" varchar collate "C" not null,
    "takedownRef" varchar collate "C",
    "upstreamStatus" varchar collate "C",
    "trustedVerifier" boolean not null default false,
    "ageAssuranceStatus" text,
    "ageAssuranceLastInitiatedAt" varchar collate "C",
    "ageAssuranceAccess" text,
    "ageAssuranceCountryCode" text,
    "ageAssuranceRegionCode" text,
    constraint "actor_handle_key" unique (handle),
    primary key (did)
);

create table bsky.post (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    text varchar collate "C" not null,
    "replyRoot" varchar collate "C",
    "replyRootCid" varchar collate "C",
    "replyParent" varchar collate "C",
    "replyParentCid" varchar collate "C",
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    langs jsonb,
    "invalidReplyRoot" boolean,
    "violatesThreadGate" boolean,
    tags jsonb,
    "violatesEmbeddingRules" boolean,
    "hasThreadGate" boolean,
    "hasPostGate" boolean,
    primary key (uri)
);
create index post_creator_cursor_idx on bsky.post (creator, "sortAt", cid);
create index post_order_by_idx on bsky.post ("sortAt", cid);
create index post_replyparent_idx on bsky.post ("replyParent") include (uri);

create table bsky.feed_item (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    type varchar collate "C" not null,
    "postUri" varchar collate "C" not null,
    "originatorDid" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null,
    primary key (uri)
);
create index feed_item_cursor_idx on bsky.feed_item ("sortAt", cid);
create index feed_item_originator_cursor_idx on bsky.feed_item ("originatorDid", "sortAt", cid);
create index feed_item_post_uri_idx on bsky.feed_item ("postUri");

create table bsky.follow (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "subjectDid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "follow_unique_subject" unique (creator, "subjectDid"),
    primary key (uri)
);
create index follow_creator_cursor_idx on bsky.follow (creator, "sortAt", cid);
create index follow_subject_cursor_idx on bsky.follow ("subjectDid", "sortAt", cid);

create table bsky."like" (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    subject varchar collate "C" not null,
    "subjectCid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    via varchar collate "C",
    "viaCid" varchar collate "C",
    constraint "like_unique_subject" unique (subject, creator),
    primary key (uri)
);
create index like_creator_cursor_idx on bsky."like" (creator, "sortAt", cid);
create index like_subject_sort_at_creator_idx on bsky."like" (subject, "sortAt" desc) include (creator);

create table bsky.repost (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    subject varchar collate "C" not null,
    "subjectCid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    via varchar collate "C",
    "viaCid" varchar collate "C",
    constraint "repost_unique_subject" unique (creator, subject),
    primary key (uri)
);
create index repost_order_by_idx on bsky.repost ("sortAt", cid);
create index repost_subject_idx on bsky.repost (subject);

create table bsky.post_agg (
    uri varchar collate "C" not null,
    "likeCount" bigint not null default 0,
    "replyCount" bigint not null default 0,
    "repostCount" bigint not null default 0,
    "quoteCount" bigint not null default 0,
    "bookmarkCount" bigint not null default 0,
    primary key (uri)
) with (fillfactor = 70);

create table bsky.profile_agg (
    did varchar collate "C" not null,
    "followersCount" bigint not null default 0,
    "followsCount" bigint not null default 0,
    "postsCount" bigint not null default 0,
    primary key (did)
) with (fillfactor = 70);

create table bsky.actor_block (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "subjectDid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "actor_block_unique_subject" unique (creator, "subjectDid"),
    primary key (uri)
);
create index actor_block_subjectdid_idx on bsky.actor_block ("subjectDid");

create table bsky.list (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    name varchar collate "C" not null,
    purpose varchar collate "C" not null,
    description varchar collate "C",
    "descriptionFacets" varchar collate "C",
    "avatarCid" varchar collate "C",
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    primary key (uri)
);
create index list_creator_idx on bsky.list (creator);

create table bsky.list_item (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "subjectDid" varchar collate "C" not null,
    "listUri" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "list_item_unique_subject_in_list" unique ("listUri", "subjectDid"),
    primary key (uri)
);
create index list_item_creator_idx on bsky.list_item (creator);
create index list_item_subject_idx on bsky.list_item ("subjectDid");

create table bsky.list_block (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "subjectUri" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "list_block_unique_subject" unique (creator, "subjectUri"),
    primary key (uri)
);

create table bsky.quote (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    subject varchar collate "C" not null,
    "subjectCid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    primary key (uri)
);
create index quote_subject_cursor_idx on bsky.quote (subject, "sortAt", cid);

create table bsky.post_embed_image (
    "postUri" varchar collate "C" not null,
    position varchar collate "C" not null,
    "imageCid" varchar collate "C" not null,
    alt varchar collate "C" not null,
    primary key ("postUri", "position")
);

create table bsky.post_embed_gallery_image (
    "postUri" varchar collate "C" not null,
    position varchar collate "C" not null,
    "imageCid" varchar collate "C" not null,
    alt varchar collate "C" not null,
    primary key ("postUri", "position")
);

create table bsky.post_embed_video (
    "postUri" varchar collate "C" not null,
    "videoCid" varchar collate "C" not null,
    alt varchar collate "C",
    primary key ("postUri")
);

create table bsky.feed_generator (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "feedDid" varchar collate "C" not null,
    "displayName" varchar collate "C",
    description varchar collate "C",
    "descriptionFacets" varchar collate "C",
    "avatarCid" varchar collate "C",
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    primary key (uri)
);
create index feed_generator_creator_index on bsky.feed_generator (creator);

create table bsky.starter_pack (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    name varchar collate "C",
    primary key (uri)
);
create index starter_pack_creator_order_by_idx on bsky.starter_pack (creator, "sortAt", cid);

create table bsky.labeler (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    primary key (uri)
);
create index labeler_order_by_idx on bsky.labeler ("sortAt", cid);

create table bsky.profile (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "displayName" varchar collate "C",
    description varchar collate "C",
    "avatarCid" varchar collate "C",
    "bannerCid" varchar collate "C",
    "indexedAt" varchar collate "C" not null,
    "joinedViaStarterPackUri" varchar collate "C",
    "createdAt" varchar collate "C" not null,
    "pinnedPost" varchar collate "C",
    "pinnedPostCid" varchar collate "C",
    primary key (uri)
);
create index profile_creator_idx on bsky.profile (creator);
create index profile_starter_pack_joined_idx on bsky.profile ("joinedViaStarterPackUri", "createdAt");

create table bsky.op_thread_reply (
    "rootUri" varchar collate "C" not null,
    "parentUri" varchar collate "C" not null,
    uri varchar collate "C" not null,
    "deletedAt" varchar collate "C",
    primary key ("rootUri", uri)
);

create table bsky.verification (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    rkey varchar collate "C" not null,
    creator varchar collate "C" not null,
    subject varchar collate "C" not null,
    handle varchar collate "C" not null,
    "displayName" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortedAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "verification_unique_subject_creator" unique (subject, creator),
    primary key (uri)
);

create table bsky.thread_gate (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "postUri" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    constraint "thread_gate_postUri_key" unique ("postUri"),
    primary key (uri)
);

create table bsky.post_gate (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "postUri" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    constraint "post_gate_postUri_key" unique ("postUri"),
    primary key (uri)
);

create table bsky.post_embed_external (
    "postUri" varchar collate "C" not null,
    uri varchar collate "C" not null,
    title varchar collate "C" not null,
    description varchar collate "C" not null,
    "thumbCid" varchar collate "C",
    primary key ("postUri")
);

create table bsky.post_embed_record (
    "postUri" varchar collate "C" not null,
    "embedUri" varchar collate "C" not null,
    "embedCid" varchar collate "C" not null,
    primary key ("postUri", "embedUri")
);

create table bsky.duplicate_record (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    "duplicateOf" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    primary key (uri)
);
create index duplicate_record_duplicate_of_idx on bsky.duplicate_record ("duplicateOf");

create table bsky.notification (
    id bigserial,
    did varchar collate "C" not null,
    "recordUri" varchar collate "C" not null,
    "recordCid" varchar collate "C" not null,
    author varchar collate "C" not null,
    reason varchar collate "C" not null,
    "reasonSubject" varchar collate "C",
    "sortAt" varchar collate "C" not null,
    primary key (id)
);
create index notification_author_idx on bsky.notification (author);
create index notification_did_sortat_idx on bsky.notification (did, "sortAt");
create index notification_record_idx on bsky.notification ("recordUri");

create table bsky.reference_list_opt_out (
    uri varchar collate "C" not null,
    cid varchar collate "C" not null,
    creator varchar collate "C" not null,
    "subjectUri" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    "sortAt" varchar collate "C" not null generated always as (least("createdAt", "indexedAt")) stored,
    constraint "reference_list_opt_out_unique_subject" unique (creator, "subjectUri"),
    primary key (uri)
);

create table bsky.blob_takedown (
    did varchar collate "C" not null,
    cid varchar collate "C" not null,
    "takedownRef" varchar collate "C" not null,
    primary key (did, cid)
);

create table bsky.actor_state (
    did varchar collate "C" not null,
    "lastSeenNotifs" varchar collate "C" not null,
    "priorityNotifs" boolean not null default false,
    "lastSeenPriorityNotifs" varchar collate "C",           -- 0.0.221 still writes it
    primary key (did)
);

create table bsky.mute (
    "subjectDid" varchar collate "C" not null,
    "mutedByDid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "onlyReposts" boolean not null default false,
    "onlyQuoteposts" boolean not null default false,
    primary key ("mutedByDid", "subjectDid")
);

create table bsky.list_mute (
    "listUri" varchar collate "C" not null,
    "mutedByDid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    primary key ("mutedByDid", "listUri")
);

create table bsky.thread_mute (
    "rootUri" varchar collate "C" not null,
    "mutedByDid" varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    primary key ("rootUri", "mutedByDid")
);

create table bsky.activity_subscription (
    creator varchar collate "C" not null,
    "subjectDid" varchar collate "C" not null,
    key varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    post boolean not null,
    reply boolean not null,
    constraint "activity_subscription_unique_creator_subject_did" unique (creator, "subjectDid"),
    primary key (creator, key)
);

create table bsky.bookmark (
    creator varchar collate "C" not null,
    key varchar collate "C" not null,
    "subjectUri" varchar collate "C" not null,
    "subjectCid" varchar collate "C" not null,
    "indexedAt" varchar collate "C" not null,
    constraint "bookmark_unique_uri_creator" unique ("subjectUri", creator),
    primary key (creator, key)
);

create table bsky.draft (
    creator varchar collate "C" not null,
    key varchar collate "C" not null,
    "createdAt" varchar collate "C" not null,
    "updatedAt" varchar collate "C" not null,
    payload text not null,
    primary key (creator, key)
);
create index draft_creator_updated_at_key_idx on bsky.draft (creator, "updatedAt", key);

create table bsky.private_data (
    "actorDid" varchar collate "C" not null,
    namespace varchar collate "C" not null,
    key varchar collate "C" not null,
    payload text not null,
    "indexedAt" varchar collate "C" not null,
    "updatedAt" varchar collate "C" not null,
    primary key ("actorDid", namespace, key)
);

create table bsky.notification_push_token (
    did varchar collate "C" not null,
    platform varchar collate "C" not null,
    token varchar collate "C" not null,
    "appId" varchar collate "C" not null,
    primary key (did, token)
);

create table bsky.suggested_feed (
    uri varchar collate "C" not null,
    "order" integer not null,
    primary key (uri)
);

create table bsky.suggested_follow (
    did varchar collate "C" not null,
    "order" integer not null,
    primary key (did)
);

create table bsky.tagged_suggestion (
    tag varchar collate "C" not null,
    subject varchar collate "C" not null,
    "subjectType" varchar collate "C" not null,
    primary key (tag, subject)
);

-- Our own lookups: whose replies, quotes and reposts a post has when it comes late or goes (appview/reconcile.py).
create index post_reply_root_idx on bsky.post ("replyRoot") where "replyRoot" is not null;
create index post_embed_record_embed_idx on bsky.post_embed_record ("embedUri");

-- Where the projection stands. `active`: index transactions keep it. `complete`: it holds all that sluice.record holds.
create table sluice.appview (
    single      boolean primary key default true check (single),
    active      boolean not null default false,
    complete    boolean not null default false,
    version     integer,                                 -- steps.appview's VERSION that made it
    rebuild_after text collate "C",                      -- a rebuild has done the repos up to here; null: none is under way
    rebuild_version integer,
    changed_at  timestamptz not null default now()
);
insert into sluice.appview default values;

-- What is known of a record besides its row: why the AppView does not get it, and what operators of the AppView wrote.
create table sluice.appview_record (
    did          text collate "C" not null,
    collection   text collate "C" not null,
    rkey         text collate "C" not null,
    invalid      text,
    takedown_ref varchar collate "C",
    tags         jsonb,
    kept_cid     text collate "C",                       -- after an edit that is invalid: what it was before stays shown
    kept_json    text,
    kept_at      text collate "C",
    primary key (did, collection, rkey)
);

-- Which records have a row in bsky.record, which is read by URI. Written with the tables of `bsky`.
create table sluice.appview_uri (
    uri        text collate "C" primary key,
    repo       integer not null,
    collection integer not null
);

-- What of a post or gate the rules between repos need and the AppView's own tables do not have.
create table sluice.appview_mention (
    uri text collate "C" not null,                       -- of the post
    n   integer not null,
    did text collate "C" not null,
    primary key (uri, n)
);
-- A gate's terms over time, one row for each that differs: what was decided under former terms stays decided.
create table sluice.appview_gate (
    uri       text collate "C" not null,                 -- of the gate
    came      bigint not null,                           -- from when on these terms hold; 0: since ever
    standing  boolean not null default true,             -- false: deleted at that time
    post_uri  text collate "C" not null,
    closed    boolean not null,                          -- thread gate: somebody may not reply; post gate: nobody may embed
    mentioned boolean not null default false,            -- those who may all the same
    follower  boolean not null default false,
    following boolean not null default false,
    lists     text[] not null default '{}',
    hidden    text[] not null default '{}',              -- replies that the thread's author hides
    primary key (uri, came)
);
create index appview_gate_post on sluice.appview_gate (post_uri);

-- What has to be looked at again across repos, appended by index transactions, consumed by the fold.
create table sluice.appview_dirty (
    kind text not null,                                  -- post, repost, gate, judge (a reply under a gate), gone (a record)
    uri  text collate "C" not null
);

-- One copy of the JSON.
create view bsky.record as
select k.uri::varchar as uri, coalesce(x.kept_cid, sluice.cid_text(p.cid))::varchar as cid,
       split_part(k.uri, '/', 3)::varchar as did, coalesce(x.kept_json, p.json::text) as json,
       coalesce(x.kept_at, sluice.time_text(p.indexed_at))::varchar as "indexedAt", x.takedown_ref as "takedownRef", x.tags
from sluice.appview_uri k
join sluice.record_row p on p.repo = k.repo and p.collection = k.collection and p.rkey = split_part(k.uri, '/', 5)
left join sluice.appview_record x on x.did = split_part(k.uri, '/', 3) and x.collection = split_part(k.uri, '/', 4)
                                     and x.rkey = split_part(k.uri, '/', 5)
where p.json is not null and (x.invalid is null or x.kept_json is not null);

-- The AppView writes takedowns and tags of records; all else in them is the network's.
create function sluice.appview_mark_record() returns trigger language plpgsql as $$
begin
    insert into sluice.appview_record as x (did, collection, rkey, takedown_ref, tags)
    values (split_part(new.uri, '/', 3), split_part(new.uri, '/', 4), split_part(new.uri, '/', 5), new."takedownRef", new.tags)
    on conflict (did, collection, rkey) do update set takedown_ref = excluded.takedown_ref, tags = excluded.tags;
    return new;
end $$;
create trigger record_marked instead of update on bsky.record for each row execute function sluice.appview_mark_record();

create view bsky.label as
select src::varchar as src, uri::varchar as uri, cid::varchar as cid, val::varchar as val, neg, cts::varchar as cts,
       (exp collate "C")::varchar as exp
from sluice.label;

create view bsky.actor_sync as
select did::varchar as did, commit::varchar as "commitCid", rev::varchar as "repoRev"
from sluice.repo
where rev <> '' and commit is not null and not (phase = 'unavailable' and status = 'deleted');

-- Accounts: a row for whoever has records or a handle that was checked; gone when a deletion is confirmed. What operators
-- write stays. Of a row that is there each caller writes only what it has locked: its repo's status, or its handle.
create function sluice.appview_actors(dids text[], of_repo boolean, of_handle boolean) returns void language plpgsql as $$
begin
    delete from bsky.actor a using sluice.repo r
    where a.did = any(dids) and r.did = a.did and r.phase = 'unavailable' and r.status = 'deleted';
    insert into bsky.actor as a (did, handle, "indexedAt", "upstreamStatus")
    select r.did, case when h.verified then h.handle end,
           sluice.time_text(r.discovered_at),
           case when not r.active and r.status in ('deactivated', 'suspended', 'takendown') then r.status end
    from sluice.repo r left join sluice.handle h on h.did = r.did
    where r.did = any(dids) and (r.rev <> '' or h.checked_at is not null) and not (r.phase = 'unavailable' and r.status = 'deleted')
    order by r.did
    on conflict (did) do update
    set handle = case when of_handle then excluded.handle else a.handle end,
        "upstreamStatus" = case when of_repo then excluded."upstreamStatus" else a."upstreamStatus" end
    where (of_handle and a.handle is distinct from excluded.handle)
       or (of_repo and a."upstreamStatus" is distinct from excluded."upstreamStatus");
end $$;

create function sluice.appview_follows() returns trigger language plpgsql as $$
begin
    if (select active from sluice.appview) then
        perform sluice.appview_actors(array[new.did], tg_table_name = 'repo', tg_table_name = 'handle');
    end if;
    return null;
end $$;
-- A live commit names none of these columns.
create trigger repo_shows_actor after update of active, phase, status on sluice.repo for each row
when (old.active <> new.active or old.phase <> new.phase or old.status is distinct from new.status)
execute function sluice.appview_follows();
create trigger handle_shows_actor after insert or update on sluice.handle for each row
when (new.checked_at is not null) execute function sluice.appview_follows();

-- What only an AppView needs and a plain installation may be unable to have.
-- Raises where pg_trgm is missing or may not be created.
create function sluice.appview_prepare() returns void language plpgsql as $$
begin
    create extension if not exists pg_trgm;
    create index if not exists actor_handle_tgrm_idx on bsky.actor using gist (handle gist_trgm_ops);
    create index if not exists profile_display_name_tgrm_idx on bsky.profile using gist ("displayName" gist_trgm_ops);
    create index if not exists starter_pack_name_tgrm_idx on bsky.starter_pack using gist (name gist_trgm_ops);
end $$;

-- Replies under a gate that lets followers or members of lists in: judged again when such a follow or item comes or goes. A
-- transaction that was under way when the row came may not have seen it: judged once more when all of those have ended.
create table sluice.appview_gated (
    uri      text collate "C" primary key,               -- of the reply
    author   text collate "C" not null,
    owner    text collate "C" not null,                  -- of the thread
    horizon  xid8,                                       -- transactions before this one were under way
    settled  boolean not null default false,
    let_in   bigint                                      -- a follow or a list let it in under the terms of that time: it stays in
);
create index appview_gated_author on sluice.appview_gated (author, owner);
create index appview_gated_unsettled on sluice.appview_gated (uri) where not settled;

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

-- Notes of sluice.appview_dirty that the AppView's tables refuse to fold (appview/reconcile.py): put aside, so that they
-- hold nothing up, until they are noted again or `sluice appview rebuild` tries them.
create table sluice.appview_refused (
    kind       text not null,
    uri        text collate "C" not null,
    reason     text not null,                            -- what the database said
    refused_at timestamptz not null default now(),
    primary key (kind, uri)
);
