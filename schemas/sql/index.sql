-- Statements of the index transaction, run by flows/index/. Repo rows are locked in DID order.

-- name: plan_by_key
-- Of a session. The planner counts 64 look-ups for each key, since it does not know that only one part is read; so below some
-- millions of rows it would rather read all of them, in every batch.
set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off

-- name: plan_freely
-- For the projection, last in a transaction.
set local enable_seqscan = on; set local enable_hashjoin = on; set local enable_mergejoin = on

-- name: lock
select id, did, phase, reason, active, status, attempt, rev, seen_rev, from_snapshot, data, commit, account_time, account_seq,
       first_attempt, buffered, buffered_rev, desyncs, extract(epoch from now() - desynced_at)::float8, retry_count, handle, host,
       signing_key, left_out, left_attempt, left_filter, buffered_bytes, account_relay, account_seen
from sluice.repo where did = any(%(dids)s::text[]) order by did for update

-- name: add_unknown
-- Repos seen for the first time; control queues them.
insert into sluice.repo (did, phase, reason)
select did, 'pending', 'discovered' from unnest(%(dids)s::text[]) as u (did) order by did
on conflict (did) do nothing

-- name: advance
-- Repos of which a live commit changed nothing but the head.
update sluice.repo r
set from_snapshot = u.from_snapshot, rev = u.rev, data = u.data, commit = u.commit,
    commit_block = coalesce(u.commit_block, r.commit_block)
from unnest(%(did)s::text[], %(from_snapshot)s::boolean[], %(rev)s::text[], %(data)s::text[], %(commit)s::text[],
            %(commit_block)s::bytea[]) as u (did, from_snapshot, rev, data, commit, commit_block)
where r.did = u.did

-- name: save
-- All columns of the gate. `moved`: the phase changed, or the repo became pending again.
update sluice.repo r
set phase = u.phase, reason = u.reason, active = u.active, status = u.status, attempt = u.attempt, rev = u.rev,
    seen_rev = u.seen_rev, from_snapshot = u.from_snapshot, data = u.data, commit = u.commit,
    commit_block = coalesce(u.commit_block, r.commit_block),
    account_time = u.account_time, account_seq = u.account_seq, account_relay = u.account_relay,
    account_seen = u.account_seen, first_attempt = u.first_attempt,
    buffered = u.buffered, buffered_rev = u.buffered_rev, desyncs = u.desyncs,
    desynced_at = case when u.desynced then now() else r.desynced_at end,
    retry_count = u.retry_count, handle = u.handle, host = u.host, signing_key = u.signing_key,
    left_out = u.left_out, left_attempt = u.left_attempt, left_filter = u.left_filter, buffered_bytes = u.buffered_bytes,
    next_retry_at = case when u.retry_in is not null then now() + make_interval(secs => u.retry_in) else r.next_retry_at end,
    queued_at = case when u.moved then null else r.queued_at end,
    -- an attempt that a replayed log opened has no worker: it expires unless its outcome comes
    lease_until = case when u.moved and u.phase = 'backfill' then now() + make_interval(secs => %(lease)s)
                       when u.moved then null else r.lease_until end,
    worker = case when u.moved then null else r.worker end,
    produced_partition = case when u.moved then null else r.produced_partition end,
    produced_offset = case when u.moved then null else r.produced_offset end,
    -- the ten minutes of stale snapshots restart when a newer rev is seen
    stale_since = case when u.phase in ('sync', 'unavailable') or u.seen_rev > r.seen_rev then null else r.stale_since end,
    last_error = case when u.phase = 'sync' then null else r.last_error end,
    phase_since = case when u.moved then now() else r.phase_since end,
    -- now() is the start of this transaction; a claim whose lock it waited for may have started later
    completed_at = case when not u.moved then r.completed_at
                        when u.phase in ('sync', 'unavailable', 'failed') then greatest(now(), r.started_at) end
from unnest(
    %(did)s::text[], %(phase)s::text[], %(reason)s::text[], %(active)s::boolean[], %(status)s::text[], %(attempt)s::integer[],
    %(rev)s::text[], %(seen_rev)s::text[], %(from_snapshot)s::boolean[], %(data)s::text[], %(commit)s::text[],
    %(commit_block)s::bytea[], %(account_time)s::text[], %(account_seq)s::bigint[], %(first_attempt)s::integer[],
    %(buffered)s::integer[], %(buffered_rev)s::text[], %(desyncs)s::integer[], %(desynced)s::boolean[], %(retry_count)s::integer[],
    %(handle)s::text[], %(host)s::text[], %(signing_key)s::text[], %(retry_in)s::float8[], %(moved)s::boolean[],
    %(left_out)s::integer[], %(left_attempt)s::integer[], %(left_filter)s::bigint[], %(buffered_bytes)s::bigint[],
    %(account_relay)s::text[], %(account_seen)s::text[]
) as u (did, phase, reason, active, status, attempt, rev, seen_rev, from_snapshot, data, commit, commit_block, account_time,
        account_seq, first_attempt, buffered, buffered_rev, desyncs, desynced, retry_count, handle, host, signing_key, retry_in, moved, left_out, left_attempt, left_filter,
        buffered_bytes, account_relay, account_seen)
where r.did = u.did

-- name: buffer
insert into sluice.buffered_event (did, log_offset, rev, event, received)
select * from unnest(%(dids)s::text[], %(offsets)s::bigint[], %(revs)s::text[], %(events)s::bytea[], %(received)s::bigint[])
on conflict (did, log_offset) do nothing

-- name: drop_buffered
delete from sluice.buffered_event where did = any(%(dids)s::text[])

-- name: buffered_sizes
-- octet_length does not read a large value.
select did, sum(octet_length(event))::bigint from sluice.buffered_event where did = any(%(dids)s::text[]) group by did

-- name: buffered_events
select did, event, rev, received from sluice.buffered_event where did = any(%(dids)s::text[]) order by did, log_offset

-- name: add_collections
insert into sluice.collection (name)
select name from unnest(%(names)s::text[]) as u (name)
where not exists (select from sluice.collection c where c.name = u.name)
on conflict (name) do nothing

-- name: collections
select name, id from sluice.collection where name = any(%(names)s::text[])

-- name: renew_ids
-- Before the first rows of these repos: the highest ids, so that the rows go to the right edge of the index, whose pages then stay
-- full. A repo that has rows keeps its id.
update sluice.repo r set id = default
where r.did = any(%(dids)s::text[]) and not exists (select from sluice.record_row p where p.repo = r.id)
returning did, id

-- name: drop_rows
delete from sluice.record_row r
using unnest(%(repos)s::integer[], %(befores)s::integer[]) as d (repo, before)
where r.repo = d.repo and (d.before is null or r.attempt < d.before)

-- name: delete_records
delete from sluice.record_row r
using unnest(%(repos)s::integer[], %(collections)s::integer[], %(rkeys)s::text[]) as d (repo, collection, rkey)
where r.repo = d.repo and r.collection = d.collection and r.rkey = d.rkey

-- name: deleted_names
-- Around one of the two deletes: what it deleted, with names.
with gone as (DELETE returning r.repo, r.collection, r.rkey, r.came)
select r.did, c.name, g.rkey, g.came
from gone g join sluice.repo r on r.id = g.repo join sluice.collection c on c.id = g.collection

-- name: count_rows
select d.repo, (select count(*) from sluice.record_row r where r.repo = d.repo and r.attempt = d.attempt)
from unnest(%(repos)s::integer[], %(attempts)s::integer[]) as d (repo, attempt)

-- name: copy_records
copy sluice.record_row (rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason)
from stdin (format binary)

-- name: make_stage
-- Only these columns: a column that a later release adds gets its default.
create temporary table stage_record on commit delete rows as
select rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason from sluice.record_row with no data

-- name: copy_stage
copy stage_record (rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason) from stdin (format binary)

-- name: upsert_stage
-- A record fetched again with the same CID keeps indexed_at and came.
insert into sluice.record_row as r (rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason)
select rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason from stage_record
on conflict (repo, collection, rkey) do update
set cid = excluded.cid, rev = excluded.rev, attempt = excluded.attempt, json = excluded.json, raw = excluded.raw,
    reason = excluded.reason, indexed_at = case when r.cid = excluded.cid then r.indexed_at else excluded.indexed_at end,
    came = case when r.cid = excluded.cid then r.came else excluded.came end

-- name: forget_identity
delete from sluice.identity where did = any(%(dids)s::text[])

-- name: claim_handles
-- A repo was fetched, or has another handle: check it in order.
insert into sluice.handle as h (did, next_check_at) select did, now() from unnest(%(dids)s::text[]) as u (did) order by did
on conflict (did) do update
set asked = h.asked + 1,
    next_check_at = least(h.next_check_at, greatest(now(), h.checked_at + interval '10 seconds'))

-- name: check_handles
-- Checks that events ask for come before scheduled ones, at most one in ten seconds for a DID.
insert into sluice.handle as h (did) select did from unnest(%(dids)s::text[]) as u (did) order by did
on conflict (did) do update
set asked = h.asked + 1,
    next_check_at = case when h.checked_at > now() - interval '10 seconds' then h.checked_at + interval '10 seconds'
                         else '-infinity' end

-- name: label
-- The newest cts wins, in any order of arrival; a negation is kept as a row.
insert into sluice.label as l (src, uri, val, cid, neg, cts, exp, sig, seq)
select * from unnest(%(srcs)s::text[], %(uris)s::text[], %(vals)s::text[], %(cids)s::text[], %(negs)s::boolean[],
                     %(ctss)s::text[], %(exps)s::text[], %(sigs)s::text[], %(seqs)s::bigint[])
on conflict (src, uri, val, cid) do update
set neg = excluded.neg, cts = excluded.cts, exp = excluded.exp, sig = excluded.sig, seq = excluded.seq
where (excluded.cts, excluded.seq) > (l.cts, l.seq)

-- name: offsets
select topic, part, next from sluice.stream_offset
where cluster = %(cluster)s and group_id = %(group)s and (topic, part) in (select * from unnest(%(topics)s::text[], %(parts)s::integer[]))

-- name: start_offsets
insert into sluice.stream_offset (cluster, group_id, topic, part, next)
select %(cluster)s, %(group)s, topic, part, next
from unnest(%(topics)s::text[], %(parts)s::integer[], %(nexts)s::bigint[]) as u (topic, part, next)
on conflict (cluster, group_id, topic, part) do nothing
returning topic, part

-- name: former_log
-- Partitions that are new to this group in this cluster, but that it has read in another: the other log is gone, with events that
-- were not indexed.
select o.topic, o.part, max(o.next)
from sluice.stream_offset o
join unnest(%(topics)s::text[], %(parts)s::integer[]) as u (topic, part) on o.topic = u.topic and o.part = u.part
where o.cluster <> %(cluster)s and o.group_id = %(group)s
group by o.topic, o.part

-- name: expire_outcomes
-- Attempts whose outcome was in a log that is gone.
with open as (
    select did from sluice.repo where phase = 'backfill' and produced_partition = any(%(parts)s::integer[]) order by did for update
)
update sluice.repo r set produced_partition = null, produced_offset = null, lease_until = now() from open where r.did = open.did

-- name: note_log_gaps
-- Events of the log that were not indexed: a gap, which a listing resolves. In the main database.
insert into sluice.stream_gap (upstream, from_seq, to_seq, reason)
select 'log:' || topic || '/' || part, begin, until, %(reason)s
from unnest(%(topics)s::text[], %(parts)s::integer[], %(froms)s::bigint[], %(tos)s::bigint[]) as u (topic, part, begin, until)

-- name: move_offsets
-- Compare and set: after a worker has lost a partition, it changes fewer rows than it has spans.
update sluice.stream_offset o set next = u.next, updated_at = now()
from unnest(%(topics)s::text[], %(parts)s::integer[], %(froms)s::bigint[], %(nexts)s::bigint[]) as u (topic, part, expected, next)
where o.cluster = %(cluster)s and o.group_id = %(group)s and o.topic = u.topic and o.part = u.part and o.next = u.expected

-- name: lose_offsets
-- The log begins after our position: events between are lost.
update sluice.stream_offset o set next = u.next, updated_at = now()
from unnest(%(topics)s::text[], %(parts)s::integer[], %(nexts)s::bigint[]) as u (topic, part, next)
where o.cluster = %(cluster)s and o.group_id = %(group)s and o.topic = u.topic and o.part = u.part
