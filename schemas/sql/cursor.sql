-- Statements on sluice.cursor and sluice.stream_gap, run by connectors/postgres/stream_cursors.py. All times are now().

-- name: load
select upstream, share, shares, position, detail, extract(epoch from now() - updated_at)::float8
from sluice.cursor
where flow = %(flow)s

-- name: save
-- A null detail keeps the stored one.
insert into sluice.cursor (flow, upstream, share, shares, position, detail)
values (%(flow)s, %(upstream)s, %(share)s, %(shares)s, %(position)s, coalesce(%(detail)s::jsonb, '{}'))
on conflict (flow, upstream, shares, share) do update set
    position = excluded.position, detail = coalesce(%(detail)s::jsonb, cursor.detail), updated_at = now()

-- name: caught_up
-- A stream without further events: it is up to date at its position.
update sluice.cursor set detail = detail || jsonb_build_object('time', %(time)s::text)
where flow = %(flow)s and upstream = any(%(upstreams)s::text[]) and (share, shares) = (%(share)s, %(shares)s)

-- name: lock
-- Until the end of the transaction no other process changes a position.
lock table sluice.cursor in share row exclusive mode

-- name: epoch
-- The epoch that another share has begun with.
select max((detail ->> 'epoch')::bigint) from sluice.cursor where flow = %(flow)s and upstream = %(upstream)s

-- name: retire
delete from sluice.cursor
where flow = %(flow)s and upstream = %(upstream)s and (share, shares) = (%(share)s, %(shares)s)

-- name: any_repo
-- With several shards, whose repos are elsewhere: always.
select exists (select from sluice.repo) or exists (select from sluice.shard)

-- name: note_gap
-- One unresolved row per upstream and reason, which grows: otherwise an upstream with many holes would fill the table. Its
-- noticed_at is the time of its last growth, so a listing that started before does not resolve it.
with grown as (
    update sluice.stream_gap set
        from_seq = least(from_seq, %(from_seq)s), to_seq = greatest(to_seq, %(to_seq)s), noticed_at = now()
    where upstream = %(upstream)s and reason = %(reason)s and answered_at is null
    returning id
)
insert into sluice.stream_gap (upstream, from_seq, to_seq, reason, answered_at)
select %(upstream)s, %(from_seq)s, %(to_seq)s, %(reason)s, case when %(answered)s then now() end
where not exists (select from grown)

-- name: find
-- The lowest of all shares.
select position from sluice.cursor where flow = %(flow)s and upstream = %(upstream)s
order by case when position ~ '^[0-9]{1,18}$' then position::bigint end nulls first limit 1

-- name: set_position
-- Set by an operator, for all shares. The detail of a listing belongs to its old position; the sequence of a stream may have changed.
update sluice.cursor
set position = %(position)s, updated_at = now(),
    detail = case when flow = 'list_repos' then '{}'
                  else jsonb_build_object('epoch', greatest(extract(epoch from now())::bigint, (
                      select coalesce(max((c.detail ->> 'epoch')::bigint), 0) + 1 from sluice.cursor c
                      where c.flow = %(flow)s and c.upstream = %(upstream)s))) end
where flow = %(flow)s and upstream = %(upstream)s

-- name: forget
delete from sluice.cursor where flow = %(flow)s and upstream = %(upstream)s

-- name: sessions
-- Sessions of a flow that has its positions in memory: it would overwrite the operator's.
select count(*) from pg_stat_activity where datname = current_database() and application_name = %(name)s

-- name: set_offset
insert into sluice.stream_offset (cluster, group_id, topic, part, next)
values (%(cluster)s, %(group)s, %(topic)s, %(part)s, %(next)s)
on conflict (cluster, group_id, topic, part) do update set next = excluded.next, updated_at = now()

-- name: note_skip
-- Messages that an operator made the index skip: a gap, which a listing resolves.
insert into sluice.stream_gap (upstream, from_seq, to_seq, reason)
values (%(upstream)s, %(from_seq)s, %(to_seq)s, 'stepped over by an operator')
