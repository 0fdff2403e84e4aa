-- Statements of `sluice replay`, run by ops/replay.py and ops/rebuild_from_log.py.

-- name: forget_offsets
delete from sluice.stream_offset where group_id = %(group)s

-- name: set_offsets
insert into sluice.stream_offset (cluster, group_id, topic, part, next)
select %(cluster)s, %(group)s, topic, part, next
from unnest(%(topics)s::text[], %(parts)s::integer[], %(nexts)s::bigint[]) as u (topic, part, next)
on conflict (cluster, group_id, topic, part) do update set next = excluded.next, updated_at = now()

-- name: pending_tasks
-- Tasks whose repo is still pending under the same attempt.
select r.did, r.attempt
from unnest(%(dids)s::text[], %(attempts)s::integer[]) as t (did, attempt)
join sluice.repo r on r.did = t.did and r.attempt = t.attempt
where r.phase = 'pending'

-- name: is_empty
select not exists (select from sluice.repo) and not exists (select from sluice.label)
       and not exists (select from sluice.stream_offset)

-- name: rebuilding
-- The cluster and the end of each partition of an unfinished rebuild.
select detail from sluice.cursor where flow = 'rebuild' and upstream = 'log'

-- name: begin_rebuild
insert into sluice.cursor (flow, upstream, position, detail) values ('rebuild', 'log', 'begun', %(detail)s::jsonb)

-- name: end_rebuild
delete from sluice.cursor where flow = 'rebuild' and upstream = 'log'

-- name: not_in_sync
-- Repos that the log leaves without an end state.
select did, phase, reason from sluice.repo where phase in ('pending', 'backfill', 'failed') order by did

-- name: phases
select phase, count(*) from sluice.repo group by phase
