-- Statements on sluice.dead_letter, the index of the topic; run by control/dead_letters.py. The payload stays in the topic.

-- name: add
-- A letter that is read again keeps its state. Another letter at the same offset means a new log, so its state starts over.
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
-- Keyset, lowest offset first.
select part, log_offset from sluice.dead_letter
where state = 'open' and (part, log_offset) > (%(part)s, %(offset)s)
      and (%(reason)s::text is null or reason = %(reason)s) and (%(topic)s::text is null or split_part(topic, ' ', 1) = %(topic)s)
order by part, log_offset limit %(limit)s

-- name: settle
update sluice.dead_letter set state = %(state)s, settled_at = now()
where part = %(part)s and log_offset = %(offset)s and state = 'open'

-- name: note
-- After a failed retry: the new error.
update sluice.dead_letter set error = %(error)s where part = %(part)s and log_offset = %(offset)s and state = 'open'

-- name: prune
-- Remove letters whose message retention removed (`starts`: first offset kept, per partition in `parts`); was each one open?
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
-- Open letters of the streams without a key that reached one of these ages lately. Letters whose upstream was unreachable come first;
-- otherwise the order is random, so a flood of forged events cannot exclude any letter for good.
select part, log_offset from sluice.dead_letter
where state = 'open' and reason = 'no_key' and split_part(topic, ' ', 1) in ('firehose', 'labels')
      and noticed_at > now() - make_interval(secs => %(oldest)s + %(span)s)
      and exists (
          select from unnest(%(ages)s::float8[]) as a (age)
          where noticed_at <= now() - make_interval(secs => a.age)
                and noticed_at > now() - make_interval(secs => a.age + %(span)s)
      )
order by error not like '%%: unreachable', random() limit %(limit)s

-- name: too_big_due
-- Accounts with open letters of commits that lack their block, and the highest rev of these. The error of such a letter is its rev
-- until its PDS has been asked.
select did, max(error collate "C") as rev
from sluice.dead_letter
where state = 'open' and reason = 'too_big_no_block' and length(error) = 13
      and noticed_at < now() - make_interval(secs => %(youngest)s)
      and noticed_at > now() - make_interval(secs => %(oldest)s)
group by did
order by random() limit %(limit)s

-- name: too_big_news
-- Those of them in sync: DID, rev, and whether it is above the newest one seen.
select r.did, t.rev, t.rev > greatest(r.rev, r.seen_rev)
from unnest(%(dids)s::text[], %(revs)s::text[]) as t (did, rev)
join sluice.repo r on r.did = t.did
where r.phase = 'sync'

-- name: too_big_done
-- Close these letters, up to the checked rev, if the PDS answered; else they stay open and are not checked again.
update sluice.dead_letter d
set state = case when a.answered then 'retried' else d.state end, settled_at = case when a.answered then now() end,
    error = case when a.answered then d.error else d.error || ': its PDS did not confirm it' end
from unnest(%(dids)s::text[], %(revs)s::text[], %(answered)s::boolean[]) as a (did, rev, answered)
where d.did = a.did and d.state = 'open' and d.reason = 'too_big_no_block' and length(d.error) = 13
      and d.error <= a.rev collate "C"
