-- A network of :records records by :people people, set by set: sluice.record, and the projection's rows for each.
-- The first people and posts are the most frequent subjects (random() squared), as in the real network.
create function pg_temp.at(n bigint) returns text language sql immutable as
$$ select to_char(timestamp '2026-01-01' + n * interval '1 second', 'YYYY-MM-DD"T"HH24:MI:SS".000Z"') $$;
create function pg_temp.person(n bigint) returns text language sql immutable as
$$ select 'did:plc:' || lpad(translate(n::text, '0189', 'abcd'), 24, 'x') $$;
create function pg_temp.somebody() returns text language sql volatile as
$$ select pg_temp.person((random() * random() * :people)::bigint) $$;
insert into bsky.actor (did, handle, "indexedAt")
select pg_temp.person(n), 'person' || n || '.test', pg_temp.at(0) from generate_series(0, :people) n;
create temporary table made as
select n, pg_temp.somebody() as did, lpad(n::text, 13, '0') as rkey, pg_temp.at(n) as at, 'bafyrei' || md5(n::text) as cid,
       case when n % 20 < 4 then 'app.bsky.feed.post' when n % 20 < 13 then 'app.bsky.feed.like'
            when n % 20 < 18 then 'app.bsky.graph.follow' else 'app.bsky.feed.repost' end as collection,
       n % 20 >= 4 and n % 20 < 13 or n % 20 >= 18 as of_post
from generate_series(1, :records) n;
create temporary table posts as
select row_number() over (order by n) as k, 'at://' || did || '/' || collection || '/' || rkey as uri, did, rkey, at, cid
from made where collection = 'app.bsky.feed.post';
create unique index on posts (k);
analyze posts;
create temporary table about as
select m.*, p.uri as subject, p.cid as subject_cid, pg_temp.somebody() as person
from (select made.*, (1 + random() * random() * (:records / 5 - 2))::bigint as k from made) m join posts p using (k);
insert into sluice.repo (did, phase) select did, 'sync' from bsky.actor;
insert into sluice.collection (name) select distinct collection from made union select 'app.bsky.actor.profile';
insert into sluice.record_row (repo, collection, rkey, cid, rev, attempt, json, indexed_at)
select r.id, c.id, rkey, sluice.cid_bytes(cid), sluice.tid_number('3l22222222222'), 1, json_build_object('$type', collection, 'createdAt', at,
       'subject', json_build_object('uri', subject, 'cid', subject_cid), 'text', 'about river and lamp, number ' || n), at::timestamptz
from about join sluice.repo r using (did) join sluice.collection c on c.name = about.collection;
insert into sluice.record_row (repo, collection, rkey, cid, rev, attempt, json, indexed_at)
select r.id, c.id, 'self', sluice.cid_bytes('bafyreiprofile'), sluice.tid_number('3l22222222222'), 1,
       json_build_object('$type', 'app.bsky.actor.profile', 'displayName', a.handle, 'description', 'somebody'), pg_temp.at(0)::timestamptz
from bsky.actor a join sluice.repo r using (did) join sluice.collection c on c.name = 'app.bsky.actor.profile';
insert into sluice.appview_uri (uri, repo, collection)
select 'at://' || r.did || '/' || c.name || '/' || p.rkey, p.repo, p.collection
from sluice.record_row p join sluice.repo r on r.id = p.repo join sluice.collection c on c.id = p.collection;
insert into bsky.profile (uri, cid, creator, "displayName", description, "indexedAt", "createdAt")
select 'at://' || did || '/app.bsky.actor.profile/self', 'bafyreiprofile', did, handle, 'somebody', pg_temp.at(0), pg_temp.at(0)
from bsky.actor;
insert into bsky.post (uri, cid, creator, text, "createdAt", "indexedAt", "replyRoot", "replyRootCid", "replyParent", "replyParentCid")
select 'at://' || did || '/' || collection || '/' || rkey, cid, did, 'about river and lamp, number ' || n, at, at,
       case when n % 60 = 0 then subject end, case when n % 60 = 0 then subject_cid end,
       case when n % 60 = 0 then subject end, case when n % 60 = 0 then subject_cid end
from about where collection = 'app.bsky.feed.post';
insert into bsky.feed_item (uri, cid, type, "postUri", "originatorDid", "sortAt")
select uri, cid, 'post', uri, creator, "sortAt" from bsky.post;
insert into bsky."like" (uri, cid, creator, subject, "subjectCid", "createdAt", "indexedAt")
select 'at://' || did || '/' || collection || '/' || rkey, cid, did, subject, subject_cid, at, at
from about where collection = 'app.bsky.feed.like' on conflict do nothing;
insert into bsky.repost (uri, cid, creator, subject, "subjectCid", "createdAt", "indexedAt")
select 'at://' || did || '/' || collection || '/' || rkey, cid, did, subject, subject_cid, at, at
from about where collection = 'app.bsky.feed.repost' on conflict do nothing;
insert into bsky.feed_item (uri, cid, type, "postUri", "originatorDid", "sortAt")
select uri, cid, 'repost', subject, creator, "sortAt" from bsky.repost;
insert into bsky.follow (uri, cid, creator, "subjectDid", "createdAt", "indexedAt")
select 'at://' || did || '/' || collection || '/' || rkey, cid, did, person, at, at
from about where collection = 'app.bsky.graph.follow' on conflict do nothing;
insert into bsky.post_agg (uri, "likeCount") select subject, count(*) from bsky."like" group by 1;
insert into bsky.profile_agg (did, "postsCount") select creator, count(*) from bsky.post group by 1
