-- Statements on sluice.dead_letter, the index of the topic; run by control/dead_letters.py. The payload stays in the topic.

-- name: add
-- Read again it is the same letter, and keeps its state; another letter at its place means another log.
insert into sluice.dead_letter as d (part, log_offset, topic, did, reason, error, noticed_at)
select * from unnest(%(parts)s::integer[], %(offsets)s::bigint[], %(topics)s::text[], %(dids)s::text[], %(reasons)s::text[],
                     %(errors)s::text[], %(times)s::timestamptz[])
on conflict (part, log_offset) do update
set topic = excluded.topic, did = excluded.did, reason = excluded.reason, error = excluded.error,
    noticed_at = excluded.noticed_at, state = 'open', settled_at = null
where (d.topic, d.reason, d.noticed_at) is distinct from (excluded.topic, excluded.reason, excluded.noticed_at)

-- name: find
select part, log_offset, topic, did, reason, error, state, noticed_at, settled_at
from sluice.dead_letter where part = %(part)s and log_offset = %(offset)s

-- name: open_ones
-- Keyset, oldest place first.
select part, log_offset from sluice.dead_letter
where state = 'open' and (part, log_offset) > (%(part)s, %(offset)s)
      and (%(reason)s::text is null or reason = %(reason)s) and (%(topic)s::text is null or split_part(topic, ' ', 1) = %(topic)s)
order by part, log_offset limit %(limit)s

-- name: settle
update sluice.dead_letter set state = %(state)s, settled_at = now()
where part = %(part)s and log_offset = %(offset)s and state = 'open'

-- name: note
-- A retry that did not help: what it says today.
update sluice.dead_letter set error = %(error)s where part = %(part)s and log_offset = %(offset)s and state = 'open'

-- name: prune
-- Letters whose message retention has removed (`starts`: the first offset kept of each of `parts`); whether each was open.
with gone as (
    select d.part, d.log_offset
    from unnest(%(parts)s::integer[], %(starts)s::bigint[]) as s (part, start)
    join sluice.dead_letter d on d.part = s.part and d.log_offset < s.start
    limit %(limit)s
)
delete from sluice.dead_letter d using gone g
where d.part = g.part and d.log_offset = g.log_offset
returning d.state = 'open'

-- name: due_again
-- Open letters of the streams without a key that came to one of these ages lately. Whose account nobody was there to answer
-- for goes first; beyond that the order is random, so that a flood of forged ones leaves nobody out for good.
select part, log_offset from sluice.dead_letter
where state = 'open' and reason = 'no_key' and split_part(topic, ' ', 1) in ('firehose', 'labels')
      and noticed_at > now() - make_interval(secs => %(oldest)s + %(span)s)
      and exists (
          select from unnest(%(ages)s::float8[]) as a (age)
          where noticed_at <= now() - make_interval(secs => a.age)
                and noticed_at > now() - make_interval(secs => a.age + %(span)s)
      )
order by error not like '%%: unreachable', random() limit %(limit)s
