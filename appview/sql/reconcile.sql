-- Statements of appview/reconcile.py: rows of the AppView that depend on records of several repos. One process at a time runs
-- them. Each derives its rows from the tables as they are, so repeating it changes nothing.

-- name: lock
select pg_try_advisory_lock(5308886)

-- name: unlock
select pg_advisory_unlock(5308886)

-- name: take
-- Notes of records that `sluice filters prune` removed (`gone`), or all others. A note that is taken again leaves the
-- quarantine.
with taken as (
    delete from sluice.appview_dirty
    where ctid = any(array(select ctid from sluice.appview_dirty where (kind = 'gone') = %(gone)s limit %(limit)s))
    returning kind, uri
), again as (
    delete from sluice.appview_refused r using taken t where r.kind = t.kind and r.uri = t.uri
)
select kind, uri from taken

-- name: waiting
select distinct kind, uri
from (select kind, uri from sluice.appview_dirty where (kind = 'gone') = %(gone)s limit %(limit)s) d
order by kind, uri

-- name: take_these
with asked as (
    select * from unnest(%(kinds)s::text[], %(uris)s::text[]) as u (kind, uri)
), again as (
    delete from sluice.appview_refused r using asked a where r.kind = a.kind and r.uri = a.uri
)
delete from sluice.appview_dirty d using asked a where d.kind = a.kind and d.uri = a.uri

-- name: quarantine
insert into sluice.appview_refused (kind, uri, reason) values (%(kind)s, %(uri)s, %(reason)s)

-- name: refused
select count(*) from sluice.appview_refused

-- name: lock_repos
-- As the index locks them, so no transaction writes records of these repos.
select did from sluice.repo where did = any(%(dids)s::text[]) order by did for update

-- name: existing
select r.did, r.collection, r.rkey
from unnest(%(dids)s::text[], %(collections)s::text[], %(rkeys)s::text[]) as u (did, collection, rkey)
join sluice.record r on r.did = u.did and r.collection = u.collection and r.rkey = u.rkey

-- name: is_due
select exists (select from sluice.appview_dirty) or exists (select from sluice.appview_gated where not settled)

-- name: make_stage
create temporary table if not exists wanted_notification (
    did text collate "C", "recordUri" text collate "C", "recordCid" text collate "C", author text collate "C",
    reason text collate "C", "reasonSubject" text collate "C", "sortAt" text collate "C"
) on commit delete rows

-- name: horizon
-- For new replies under a gate: a transaction that may not have seen them has a lower number than this.
update sluice.appview_gated set horizon = pg_snapshot_xmax(pg_current_snapshot()) where not settled and horizon is null

-- name: note_settled
-- All of these transactions have ended, so their writes are visible.
with settled as (
    update sluice.appview_gated set settled = true
    where not settled and horizon <= pg_snapshot_xmin(pg_current_snapshot())
    returning uri
)
insert into sluice.appview_dirty (kind, uri) select 'judge', uri from settled

-- name: concerned
-- Posts whose flags may depend on these: the posts, their replies and quotes; of gated posts the whole thread.
select uri from bsky.post where uri = any(%(posts)s::text[])
union select uri from bsky.post where "replyParent" = any(%(posts)s::text[])
union select "postUri" from bsky.post_embed_record where "embedUri" = any(%(gates)s::text[])
union select p.uri from bsky.post p where p."replyRoot" = any(%(gates)s::text[])
union select p.uri from sluice.appview_gate g join bsky.post p on p."replyRoot" = g.post_uri
      where g.post_uri = any(%(posts)s::text[]) and g.mentioned

-- name: children
select uri from bsky.post where "replyParent" = any(%(posts)s::text[])

-- name: judge
-- The rules of tests/appview/projection/gates.py. A reply or quote is judged by the terms that its gate had when
-- the log received it (`at`), and by the mentions, follows and lists of that time. A record from the first fetch of its repo
-- (came < 0) counts as old. An admitted reply stays admitted (`let_in`). A parent existed before its reply, which names its
-- CID.
with judged as materialized (
    select p.uri, p."violatesThreadGate" is true as violated, p."invalidReplyRoot" is true as was_invalid,
           p."violatesEmbeddingRules" is true as embedded, t.under, coalesce(t.granted, false) as granted,
           p."replyParent" is not null and case
               when parent.uri is null then p."replyParent" <> p."replyRoot" or split_part(p."replyParent", '/', 4) = 'app.bsky.feed.post'
               when parent."invalidReplyRoot" then true
               when p."replyParent" = p."replyRoot" then parent."replyRoot" is not null
               else parent."replyRoot" is distinct from p."replyRoot"
           end as invalid,
           coalesce(t.shut and not t.granted and not exists (
               select from sluice.appview_gated a where a.uri = p.uri and a.let_in = t.under), false) as violates,
           exists (
               select from bsky.post_embed_record e
               cross join lateral (
                   select g.closed from sluice.appview_gate g
                   where g.post_uri = e."embedUri" and split_part(g.uri, '/', 4) = 'app.bsky.feed.postgate'
                         and split_part(g.uri, '/', 3) <> p.creator
                         and g.came <= coalesce((
                             select abs(r.came) from sluice.record r
                             where r.did = p.creator and r.collection = 'app.bsky.feed.post' and r.rkey = split_part(p.uri, '/', 5)
                         ), 9223372036854775807)
                   order by g.came desc limit 1
               ) g
               where e."postUri" = p.uri and g.closed
           ) as embeds
    from unnest(%(posts)s::text[]) as u (uri)
    join bsky.post p on p.uri = u.uri
    left join bsky.post parent on parent.uri = p."replyParent"
    left join lateral (
        select v.came as under, v.shut, v.shut and (
                   v.mentioned and exists (
                       select from sluice.appview_mention m
                       left join sluice.record r on r.did = v.owner and r.collection = 'app.bsky.feed.post' and r.rkey = split_part(m.uri, '/', 5)
                       where m.uri = p."replyRoot" and m.did = p.creator and coalesce(r.came, 0) <= v.at)
                   or v.follower and (exists (
                       select from bsky.follow f
                       left join sluice.record r on r.did = f.creator and r.collection = 'app.bsky.graph.follow' and r.rkey = split_part(f.uri, '/', 5)
                       where f.creator = p.creator and f."subjectDid" = v.owner and coalesce(r.came, 0) <= v.at
                   ) or exists (
                       select from sluice.appview_lapsed l
                       where l.holder = p.creator and l.member = v.owner and l.came <= v.at and l.gone > v.at))
                   or v.following and (exists (
                       select from bsky.follow f
                       left join sluice.record r on r.did = f.creator and r.collection = 'app.bsky.graph.follow' and r.rkey = split_part(f.uri, '/', 5)
                       where f.creator = v.owner and f."subjectDid" = p.creator and coalesce(r.came, 0) <= v.at
                   ) or exists (
                       select from sluice.appview_lapsed l
                       where l.holder = v.owner and l.member = p.creator and l.came <= v.at and l.gone > v.at))
                   or exists (
                       select from bsky.list_item i
                       left join sluice.record r on r.did = i.creator and r.collection = 'app.bsky.graph.listitem' and r.rkey = split_part(i.uri, '/', 5)
                       where i."listUri" = any(v.lists) and i."subjectDid" = p.creator and coalesce(r.came, 0) <= v.at)
                   or exists (
                       select from sluice.appview_lapsed l
                       where l.holder = any(v.lists) and l.member = p.creator and l.came <= v.at and l.gone > v.at)
               ) as granted
        from (
            select g.came, g.mentioned, g.follower, g.following, g.lists, split_part(p."replyRoot", '/', 3) as owner, c.at,
                   g.closed and p.creator <> split_part(p."replyRoot", '/', 3) as shut
            from sluice.appview_gate g
            cross join lateral (select coalesce((
                select abs(r.came) from sluice.record r
                where r.did = p.creator and r.collection = 'app.bsky.feed.post' and r.rkey = split_part(p.uri, '/', 5)
            ), 9223372036854775807) as at) c
            where g.post_uri = p."replyRoot" and split_part(g.uri, '/', 4) = 'app.bsky.feed.threadgate' and g.came <= c.at
            order by g.came desc limit 1
        ) v
    ) t on true
    order by p.uri
    for update of p
), let_in as (
    update sluice.appview_gated a set let_in = j.under
    from judged j where a.uri = j.uri and j.granted and a.let_in is distinct from j.under
)
update bsky.post p
set "invalidReplyRoot" = case when j.invalid or j.violates then j.invalid end,
    "violatesThreadGate" = case when j.invalid or j.violates then j.violates end,
    "violatesEmbeddingRules" = case when j.embeds then true end
from judged j
where p.uri = j.uri and (j.invalid, j.violates, j.embeds) is distinct from (j.was_invalid, j.violated, j.embedded)
returning p.uri, p."replyParent", j.violated, j.violates, j.was_invalid <> j.invalid

-- name: note_gated
insert into sluice.appview_gated (uri, author, owner)
select distinct p.uri, p.creator, split_part(p."replyRoot", '/', 3)
from bsky.post p
join sluice.appview_gate g on g.post_uri = p."replyRoot" and (g.mentioned or g.follower or g.following or g.lists <> '{}')
where p.uri = any(%(posts)s::text[])
on conflict (uri) do nothing

-- name: forget_gates
-- Versions of gates whose posts are gone, and with them all decisions.
delete from sluice.appview_gate g
where g.post_uri = any(%(posts)s::text[])
      and not exists (select from bsky.thread_gate t where t.uri = g.uri)
      and not exists (select from bsky.post_gate t where t.uri = g.uri)
      and not exists (select from bsky.post p where p.uri = g.post_uri)
      and not exists (select from bsky.post p where p."replyRoot" = g.post_uri)
      and not exists (select from bsky.post_embed_record e where e."embedUri" = g.post_uri)

-- name: forget_gated
delete from sluice.appview_gated a
where a.uri = any(%(posts)s::text[]) and not exists (select from bsky.post p where p.uri = a.uri)

-- name: drop_quotes
-- A quote exists while both posts do.
delete from bsky.quote q
where (q.uri = any(%(posts)s::text[]) or q.subject = any(%(posts)s::text[]))
      and not exists (
          select from bsky.post p
          join bsky.post_embed_record e on e."postUri" = p.uri
          join bsky.post s on s.uri = e."embedUri"
          where p.uri = q.uri and p.cid = q.cid and p."indexedAt" = q."indexedAt" and e."embedUri" = q.subject
                and e."embedCid" = q."subjectCid"
      )
returning q.subject

-- name: add_quotes
insert into bsky.quote (uri, cid, subject, "subjectCid", "createdAt", "indexedAt")
select p.uri, p.cid, e."embedUri", e."embedCid", p."createdAt", p."indexedAt"
from (
    select "postUri", "embedUri", "embedCid" from bsky.post_embed_record where "postUri" = any(%(posts)s::text[])
    union select "postUri", "embedUri", "embedCid" from bsky.post_embed_record where "embedUri" = any(%(posts)s::text[])
) e
join bsky.post p on p.uri = e."postUri"
join bsky.post s on s.uri = e."embedUri"
on conflict (uri) do nothing
returning subject

-- name: drop_feed_items
-- A repost is in the feeds while its post exists.
delete from bsky.feed_item f
where f.type = 'repost' and (f.uri = any(%(reposts)s::text[]) or f."postUri" = any(%(posts)s::text[]))
      and not exists (
          select from bsky.repost r join bsky.post p on p.uri = r.subject
          where r.uri = f.uri and r.cid = f.cid and r.subject = f."postUri" and r."sortAt" = f."sortAt"
      )
      and not exists (
          select from bsky.duplicate_record d join bsky.post p on p.uri = f."postUri" where d.uri = f.uri and d.cid = f.cid
      )

-- name: add_feed_items
insert into bsky.feed_item (uri, cid, type, "postUri", "originatorDid", "sortAt")
select r.uri, r.cid, 'repost', r.subject, r.creator, r."sortAt"
from (
    select uri from bsky.repost where uri = any(%(reposts)s::text[])
    union select uri from bsky.repost where subject = any(%(posts)s::text[])
) u
join bsky.repost r on r.uri = u.uri
join bsky.post p on p.uri = r.subject
on conflict (uri) do nothing

-- name: duplicate_reposts
-- An account that reposted a post twice has it in its feed twice. The second repost has no row in bsky.repost.
select split_part(d.uri, '/', 3), split_part(d.uri, '/', 4), split_part(d.uri, '/', 5)
from bsky.duplicate_record d
where d.uri = any(%(reposts)s::text[])
union
select split_part(d.uri, '/', 3), split_part(d.uri, '/', 4), split_part(d.uri, '/', 5)
from bsky.repost r join bsky.duplicate_record d on d."duplicateOf" = r.uri
where r.subject = any(%(posts)s::text[])

-- name: add_duplicate_items
insert into bsky.feed_item (uri, cid, type, "postUri", "originatorDid", "sortAt")
select u.* from unnest(%(uris)s::text[], %(cids)s::text[], %(types)s::text[], %(posts)s::text[], %(dids)s::text[], %(times)s::text[])
    as u (uri, cid, type, post, did, "time")
where exists (select from bsky.post p where p.uri = u.post)
on conflict (uri) do nothing

-- name: descendants
-- Replies to these, down to the depth at which the author of an ancestor is still notified.
with recursive below (uri, depth) as (
    select uri, 1 from bsky.post where "replyParent" = any(%(posts)s::text[])
    union
    select p.uri, b.depth + 1 from below b join bsky.post p on p."replyParent" = b.uri where b.depth < 4
)
select distinct uri from below

-- name: want_notifications
-- One notification per post and receiver, never for its author: a mention wins over a quote, and that over a reply; the nearest
-- ancestor first.
insert into wanted_notification
with recursive chain (uri, root, ancestor, height) as (
    select p.uri, coalesce(p."replyRoot", p.uri), p."replyParent", 1
    from bsky.post p
    where p.uri = any(%(posts)s::text[]) and p."replyParent" is not null and p."violatesThreadGate" is not true
    union all
    select c.uri, c.root, a."replyParent", c.height + 1
    from chain c join bsky.post a on a.uri = c.ancestor
    where c.height < 4 and a."replyParent" is not null
          and not exists (select from sluice.appview_gate g where g.post_uri = c.root and c.ancestor = any(g.hidden))
), candidate (uri, did, reason, subject, rank) as (
    select m.uri, m.did, 'mention', null, 0 from sluice.appview_mention m where m.uri = any(%(posts)s::text[])
    union all
    select e."postUri", split_part(e."embedUri", '/', 3), 'quote', e."embedUri", 1
    from bsky.post_embed_record e join bsky.post p on p.uri = e."postUri"
    where e."postUri" = any(%(posts)s::text[]) and p."violatesEmbeddingRules" is not true
          and split_part(e."embedUri", '/', 4) = 'app.bsky.feed.post'
    union all
    select c.uri, split_part(c.ancestor, '/', 3), 'reply', c.ancestor, 1 + c.height
    from chain c where exists (select from bsky.post a where a.uri = c.ancestor)
)
select distinct on (p.uri, t.did) t.did, p.uri, p.cid, p.creator, t.reason, t.subject, p."sortAt"
from candidate t join bsky.post p on p.uri = t.uri
where t.did <> p.creator
      and not exists (
          select from bsky.thread_mute m
          where m."mutedByDid" = t.did and t.subject is not null
                and m."rootUri" = coalesce((select s."replyRoot" from bsky.post s where s.uri = t.subject), t.subject)
      )
order by p.uri, t.did, t.rank

-- name: drop_notifications
delete from bsky.notification n
where n."recordUri" = any(%(posts)s::text[])
      and not exists (
          select from wanted_notification w
          where w."recordUri" = n."recordUri" and w.did = n.did and w."recordCid" = n."recordCid" and w.reason = n.reason
                and w."reasonSubject" is not distinct from n."reasonSubject" and w."sortAt" = n."sortAt"
      )

-- name: add_notifications
insert into bsky.notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
select w.did, w."recordUri", w."recordCid", w.author, w.reason, w."reasonSubject", w."sortAt"
from wanted_notification w
where not exists (select from bsky.notification n where n."recordUri" = w."recordUri" and n.did = w.did)
order by w."sortAt", w."recordUri", w.did
