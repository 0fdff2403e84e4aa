-- Statements on sluice.cursor and sluice.stream_gap, run by connectors/cursors.py. All times are now().

-- name: load
select upstream, position, detail, extract(epoch from now() - updated_at)::float8
from sluice.cursor
where flow = %(flow)s

-- name: save
-- A detail of null leaves the stored one as it is.
insert into sluice.cursor (flow, upstream, position, detail)
values (%(flow)s, %(upstream)s, %(position)s, coalesce(%(detail)s::jsonb, '{}'))
on conflict (flow, upstream) do update set
    position = excluded.position, detail = coalesce(%(detail)s::jsonb, cursor.detail), updated_at = now()

-- name: note_gap
-- One unanswered row per upstream and reason: it grows, or an upstream with holes by design would fill the table. It
-- counts as noticed when it grew last, so that a listing that had begun before does not answer it.
with grown as (
    update sluice.stream_gap set
        from_seq = least(from_seq, %(from_seq)s), to_seq = greatest(to_seq, %(to_seq)s), noticed_at = now()
    where upstream = %(upstream)s and reason = %(reason)s and answered_at is null
    returning id
)
insert into sluice.stream_gap (upstream, from_seq, to_seq, reason, answered_at)
select %(upstream)s, %(from_seq)s, %(to_seq)s, %(reason)s, case when %(answered)s then now() end
where not exists (select from grown)
