-- Reads of `sluice run serve` (serve/xrpc). Each reads a bounded number of rows by an index, or streams those of one repo.
-- A collection or rkey with a backslash is of a key that is not a path (protocol/mst/record_path.py).

-- name: repo
select id, active, status, phase, rev, data, commit, commit_block, coalesce(host, '') as host, handle, signing_key
from sluice.repo where did = %(did)s

-- name: collections
-- Collections of a repo in the order of its tree: one probe of the primary key each. `odd`: some of its keys are not paths.
with recursive f as (
    (select collection from sluice.record_row where repo = %(repo)s order by collection limit 1)
    union all
    select (select r.collection from sluice.record_row r where r.repo = %(repo)s and r.collection > f.collection
            order by r.collection limit 1)
    from f where f.collection is not null
)
select c.id, c.name, starts_with(c.name, '\') or exists (
    select from sluice.record_row r where r.repo = %(repo)s and r.collection = c.id and r.rkey >= '\' and r.rkey < ']'
) as odd
from f join sluice.collection c on c.id = f.collection order by c.name || '/' limit %(limit)s

-- name: keys
-- The leaves of these collections, in this order, which is that of the tree (bytes of collection/rkey) if none is odd. `size`
-- of the body: null if there is none, 0 if its rev is not above `since`.
select c.name || '/' || l.rkey, l.cid, l.size, l.reason
from unnest(%(ids)s::integer[], %(names)s::text[]) as c (id, name)
cross join lateral (
    select r.rkey, sluice.cid_raw(r.cid) as cid, r.reason,
           case when %(since)s::bigint is null or r.rev > %(since)s::bigint
                then coalesce(octet_length(r.raw), octet_length(r.json::text)) else 0 end as size
    from sluice.record_row r where r.repo = %(repo)s and r.collection = c.id order by r.rkey
) l

-- name: bodies
-- The same leaves in the same order, with the bodies of those whose rev is above `since`.
select c.name || '/' || l.rkey, l.cid, l.json, l.raw
from unnest(%(ids)s::integer[], %(names)s::text[]) as c (id, name)
cross join lateral (
    select r.rkey, sluice.cid_raw(r.cid) as cid,
           case when %(since)s::bigint is null or r.rev > %(since)s::bigint then r.json end as json,
           case when %(since)s::bigint is null or r.rev > %(since)s::bigint then r.raw end as raw
    from sluice.record_row r where r.repo = %(repo)s and r.collection = c.id order by r.rkey
) l

-- name: record
-- The JSON as it was written: it must hash back to the CID.
select sluice.cid_text(r.cid) as cid, r.json::text, r.raw, r.reason from sluice.record_row r
where r.repo = %(repo)s and r.collection = (select id from sluice.collection where name = %(collection)s) and r.rkey = %(rkey)s

-- name: records
-- Records of a collection after an rkey, downwards; the bodies together have at most `bytes`, but for the first one.
select rkey, cid, json, total from (
    select r.rkey, sluice.cid_text(r.cid) as cid, r.json::text,
           sum(octet_length(r.json::text)) over (order by r.rkey desc) as size, row_number() over (order by r.rkey desc) as n, count(*) over () as total
    from (
        select * from sluice.record_row p
        where p.repo = %(repo)s and p.collection = (select id from sluice.collection where name = %(collection)s)
          and (%(after)s = '' or p.rkey < %(after)s)
        order by p.rkey desc limit %(limit)s
    ) r
) s
where s.n = 1 or s.size <= %(bytes)s order by s.n

-- name: records_upwards
-- The same, upwards.
select rkey, cid, json, total from (
    select r.rkey, sluice.cid_text(r.cid) as cid, r.json::text,
           sum(octet_length(r.json::text)) over (order by r.rkey) as size, row_number() over (order by r.rkey) as n, count(*) over () as total
    from (
        select * from sluice.record_row p
        where p.repo = %(repo)s and p.collection = (select id from sluice.collection where name = %(collection)s)
          and p.rkey > %(after)s
        order by p.rkey limit %(limit)s
    ) r
) s
where s.n = 1 or s.size <= %(bytes)s order by s.n

-- name: repos
-- The next repos in DID order. `listed`: it is mirrored, and has a commit.
select did, active, status, phase, rev, commit, phase <> 'excluded' and commit is not null and rev <> '' as listed
from sluice.repo where did > %(after)s order by did limit %(scan)s

-- name: repos_of_collection
-- The next repos in DID order. `listed`: it is shown, and has a record of the collection. None if nobody has any.
select r.did, r.active and exists (
    select from sluice.record_row p
    where p.repo = r.id and p.collection = (select id from sluice.collection where name = %(collection)s)
) as listed
from sluice.repo r
where r.did > %(after)s and exists (select from sluice.collection where name = %(collection)s)
order by r.did limit %(scan)s

-- name: identity
-- What is known of a DID, in the main database.
select i.did is not null as known, i.pds, i.handle as claimed, i.signing_key, i.label_key, i.labeler, h.handle
from (select %(did)s::text as did) a
left join sluice.identity i on i.did = a.did
left join sluice.handle h on h.did = a.did and h.verified

-- name: owner
-- The account whose document and domain name this handle.
select did from sluice.handle where verified and handle = %(handle)s

-- name: labels
-- Labels whose URI is in one of the ranges, after a key (uri, src, val, cid) and in its order.
select distinct l.* from unnest(%(from)s::text[], %(to)s::text[]) as u (low, high)
cross join lateral (
    select l.* from sluice.label l
    where l.uri >= u.low and l.uri <= u.high and l.uri >= %(uri)s
      and (l.uri, l.src, l.val, l.cid) > (%(uri)s, %(src)s, %(val)s, %(cid)s)
    order by l.uri, l.src, l.val, l.cid limit %(limit)s
) l
order by l.uri, l.src, l.val, l.cid limit %(limit)s

-- name: labels_of_sources
-- The same, of some labelers, by the primary key.
select distinct l.* from unnest(%(from)s::text[], %(to)s::text[]) as u (low, high)
cross join unnest(%(sources)s::text[]) as s (src)
cross join lateral (
    select l.* from sluice.label l
    where l.src = s.src and l.uri >= u.low and l.uri <= u.high and l.uri >= %(uri)s
      and (l.uri, l.src, l.val, l.cid) > (%(uri)s, %(src)s, %(val)s, %(cid)s)
    order by l.uri, l.val, l.cid limit %(limit)s
) l
order by l.uri, l.src, l.val, l.cid limit %(limit)s
