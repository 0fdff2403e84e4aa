-- Statements of `sluice audit`, run by ops/audit.py and its worker processes. Times are now().

-- name: heads
-- Heads of the repos that are in sync in this snapshot.
select did, rev, data, commit, commit_block, signing_key from sluice.repo
where did = any(%(dids)s::text[]) and phase = 'sync' order by did

-- name: filtered
-- Whether rows may be missing by intent: a collection filter is on, or repos wait to be fetched without it.
select not ('*' = any(collections)) or walk_after is not null from sluice.filter

-- name: leaves
-- Rows of these repos, in the order given, and within a repo in the key order of its tree (bytes of collection/rkey).
-- A part with a backslash is the base64 of a key that is not a path (protocol/mst/record_path.py).
with d as materialized (
    select u.number::integer, r.id
    from unnest(%(dids)s::text[]) with ordinality as u (did, number) join sluice.repo r on r.did = u.did order by u.number
)
select d.number, r.key, r.cid, r.json, r.raw, r.reason
from d
cross join lateral (
    select case when strpos(l.collection || l.rkey, '\') = 0 then convert_to(l.collection || '/' || l.rkey, 'UTF8')
                when l.rkey = '\' then l.head
                else l.head || '\x2f'::bytea || case when starts_with(l.rkey, '\') then decode(substr(l.rkey, 2), 'base64')
                                                     else convert_to(l.rkey, 'UTF8') end
           end as key, l.cid, l.json, l.raw, l.reason
    from (
        select c.name as collection, i.rkey, sluice.cid_raw(i.cid) as cid, i.json, i.raw, i.reason,
               case when starts_with(c.name, '\') then decode(substr(c.name, 2), 'base64')
                    else convert_to(c.name, 'UTF8') end as head
        from sluice.record_row i join sluice.collection c on c.id = i.collection
        where i.repo = d.id
    ) l
    order by key
) r

-- name: roots
-- Like `leaves`, without bodies.
with d as materialized (
    select u.number::integer, r.id
    from unnest(%(dids)s::text[]) with ordinality as u (did, number) join sluice.repo r on r.did = u.did order by u.number
)
select d.number, r.key, r.cid, null::bytea, null::bytea, null::text
from d
cross join lateral (
    select case when strpos(l.collection || l.rkey, '\') = 0 then convert_to(l.collection || '/' || l.rkey, 'UTF8')
                when l.rkey = '\' then l.head
                else l.head || '\x2f'::bytea || case when starts_with(l.rkey, '\') then decode(substr(l.rkey, 2), 'base64')
                                                     else convert_to(l.rkey, 'UTF8') end
           end as key, l.cid
    from (
        select c.name as collection, i.rkey, sluice.cid_raw(i.cid) as cid,
               case when starts_with(c.name, '\') then decode(substr(c.name, 2), 'base64')
                    else convert_to(c.name, 'UTF8') end as head
        from sluice.record_row i join sluice.collection c on c.id = i.collection
        where i.repo = d.id
    ) l
    order by key
) r

-- name: next_dids
-- Keyset page: the next repos in sync after a DID.
select did from sluice.repo where phase = 'sync' and did > %(after)s order by did limit %(limit)s

-- name: sample
select did from sluice.repo where phase = 'sync' order by random() limit %(limit)s

-- name: phases_of
select did, phase, reason from sluice.repo where did = any(%(dids)s::text[])

-- name: count_in_sync
select count(*) from sluice.repo where phase = 'sync' and did > %(after)s

-- name: open_run
-- The newest unfinished run with these options, to resume.
select id, after_did, tally from sluice.audit_run
where finished_at is null and options = %(options)s::jsonb order by id desc limit 1

-- name: start_run
insert into sluice.audit_run (options) values (%(options)s::jsonb) returning id

-- name: advance_run
update sluice.audit_run set after_did = %(after)s, tally = %(tally)s::jsonb, updated_at = now() where id = %(id)s

-- name: finish_run
update sluice.audit_run set finished_at = now(), updated_at = now(), tally = %(tally)s::jsonb where id = %(id)s

-- name: add_finding
insert into sluice.audit_finding (run, did, kind, detail) values (%(run)s, %(did)s, %(kind)s, %(detail)s)

-- name: findings
select did, kind, detail from sluice.audit_finding where run = %(run)s order by did, id

-- name: abandon_runs
update sluice.audit_run set finished_at = now(), abandoned = true where finished_at is null and options = %(options)s::jsonb

-- name: stored_head
select rev, commit from sluice.repo where did = %(did)s and phase = 'sync'

-- name: only_one
-- A lock until the session ends.
select pg_try_advisory_lock(%s)
