-- Queries of the control process and of `sluice status`.

-- name: stored_offsets
select topic, part, next from sluice.stream_offset where cluster = %s and group_id = %s

-- name: lead
-- The leader of control holds a session's advisory lock, which ends with the connection, however the process ends.
select pg_try_advisory_lock(%s)

-- name: repos_estimated
select greatest(c.reltuples, s.n_live_tup, 0)::bigint as count
from pg_class c left join pg_stat_user_tables s on s.relid = c.oid
where c.oid = 'sluice.repo'::regclass

-- name: repos_moving
-- Every phase but `sync`, from partial indexes: cheap with tens of millions of repos.
select 'pending' as phase, count(*) from sluice.repo where phase = 'pending' and queued_at is null
union all select 'pending', count(*) from sluice.repo where phase = 'pending' and queued_at is not null
union all select 'backfill', count(*) from sluice.repo where phase = 'backfill'
union all select 'unavailable', count(*) from sluice.repo where phase = 'unavailable'
union all select 'failed', count(*) from sluice.repo where phase = 'failed'
union all select 'excluded', count(*) from sluice.repo where phase = 'excluded'

-- name: rows_estimated
-- Records: the sum over the parts.
select case when p.relname is null then c.relname else 'record' end as relname, sum(greatest(c.reltuples, s.n_live_tup, 0))::bigint as rows
from pg_class c
left join pg_stat_user_tables s on s.relid = c.oid
left join pg_inherits i on i.inhrelid = c.oid
left join pg_class p on p.oid = i.inhparent
where c.oid in ('sluice.label'::regclass, 'sluice.buffered_event'::regclass) or i.inhparent = 'sluice.record_row'::regclass
group by 1

-- name: buffered_events
-- Exact up to 100,000.
select count(*) from (select from sluice.buffered_event limit 100000) h

-- name: count_records
select count(*) from sluice.record_row

-- name: count_labels
select count(*) from sluice.label

-- name: repos_by_phase
select phase, count(*) from sluice.repo group by phase

-- name: failing_hosts
select host, consecutive_failures, failures, requests, last_error, pause_reason,
       case when paused_until > now() then extract(epoch from paused_until - now())::int end as paused_seconds
from sluice.host
where consecutive_failures > 0 or paused_until > now()
order by consecutive_failures desc, host
limit %s

-- name: failed_repos
select last_error, count(*) from sluice.repo where phase = 'failed' group by last_error order by count(*) desc limit 10

-- name: cursors
-- `in_use`: of the number of shares that moved last. Rows of another number go when these have passed them.
select flow, upstream, case when shares > 1 then share || ' of ' || shares else '' end as share, position, detail, updated_at,
       extract(epoch from now() - updated_at)::float8 as age_seconds,
       shares = first_value(shares) over (partition by flow, upstream order by updated_at desc) as in_use
from sluice.cursor order by flow, upstream, shares, share

-- name: dead_letter_states
select state, count(*) from sluice.dead_letter group by state

-- name: dead_letters
select part, log_offset, topic, did, reason, error, state, noticed_at
from sluice.dead_letter where %(state)s = 'all' or state = %(state)s
order by noticed_at desc, part, log_offset limit %(limit)s

-- name: held_back_hosts
-- Hosts that are paused, have announced a limit, or fail.
select host, paused_until, pause_reason, request_limit, consecutive_failures, last_error
from sluice.host
where paused_until > now() or consecutive_failures > 0 or request_limit is not null
order by paused_until > now() desc nulls last, consecutive_failures desc, host limit %(limit)s

-- name: skipped
select s.id, s.upstream, s.from_cursor, s.to_cursor, s.reason, s.retry_count, s.skipped_at, s.filled_at, s.filled_by,
       case when s.filled_at is null then (
           select count(*) from sluice.host h
           where h.relay is not null and h.last_seen_at > now() - interval '3 hours'
                 and (h.pass = 0 or h.listed_at is null or h.listed_at <= s.skipped_at)
       ) end as pdses_to_list
from sluice.skipped_range s order by filled_at is not null, skipped_at, id limit %(limit)s

-- name: skipped_open
select count(*) from sluice.skipped_range where filled_at is null

-- name: gaps_open
select count(*) from sluice.stream_gap where answered_at is null

-- name: jobs
-- Unfinished jobs first, then the permanent listings of relays, then the newest. `found`: the total number.
select id, name, kind, relay, status, checkpoint, listed, queued, duplicates, synced, failed, unavailable, pending, rate,
       retry_count, next_retry_at, error, cutoff, started_at, completed_at, count(*) over () as found
from sluice.backfill_job
order by status in ('completed', 'failed', 'cancelled'), not (kind = 'relay' and name like 'list %%'), id desc
limit %s

-- name: retrying_repos
select count(*) from sluice.repo where phase = 'pending' and queued_at is null and retry_count > 0

-- name: storms
select reason, repos from sluice.storm where coalesce(released_until, '-infinity') <= now() order by reason

-- name: stream_time
-- Unix time of the newest event of these relays that is durable in the log; 0 (unknown) while a share of each has none.
select extract(epoch from max(time))::float8 from (
    select min(coalesce(nullif(detail ->> 'time', '')::timestamptz, 'epoch')) as time from sluice.cursor
    where flow = 'firehose' and upstream = any(%(relays)s::text[]) group by upstream
) slowest_share

-- name: now
select extract(epoch from now())::float8 as now

-- name: handles
-- Exact in a small table, else PostgreSQL's estimates; `due` is counted up to 100,000.
with size as (select reltuples::bigint as rows from pg_class where oid = 'sluice.handle'::regclass)
select case when s.rows < 100000 then (select count(*) from sluice.handle where verified)
            else (s.rows * (1 - coalesce(g.null_frac, 0)))::bigint end as verified,
       case when s.rows < 100000 then (select count(*) from sluice.handle where not verified)
            else (s.rows * coalesce(g.null_frac, 0))::bigint end as unverified,
       (select count(*) from (select from sluice.handle where next_check_at <= now() limit 100000) d) as due
from size s left join pg_stats g on g.schemaname = 'sluice' and g.tablename = 'handle' and g.attname = 'verified_at'

-- name: add_figures
insert into sluice.figure (figures) values (%(figures)s) on conflict (at) do nothing

-- name: prune_figures
delete from sluice.figure where at < now() - make_interval(secs => %(seconds)s)

-- name: figures_before
-- The oldest row of the last `longest` seconds that is a second old, for rates; none if control has not run meanwhile.
select extract(epoch from now() - at)::float8 as seconds, figures from sluice.figure
where at > now() - make_interval(secs => %(longest)s) and at < now() - interval '1 second' order by at limit 1

-- name: figures
-- The last row of each span of `step` seconds, in order of time.
select distinct on (floor(extract(epoch from at) / %(step)s)) extract(epoch from at)::float8 as at, figures
from sluice.figure where at > now() - make_interval(secs => %(seconds)s)
order by floor(extract(epoch from at) / %(step)s), sluice.figure.at desc

-- name: prune_gaps
-- Losses of upstream streams that a listing resolved so many days ago. Open ones stay.
delete from sluice.stream_gap where id in (
    select id from sluice.stream_gap where answered_at < now() - make_interval(secs => %(seconds)s) limit %(limit)s
)

-- name: prune_ranges
-- Skipped listing ranges that were recovered so long ago. Open ones stay.
delete from sluice.skipped_range where id in (
    select id from sluice.skipped_range where filled_at < now() - make_interval(secs => %(seconds)s) limit %(limit)s
)

-- name: prune_audits
-- Audits that ended so long ago, with their findings. The newest stays: the gauges show it.
delete from sluice.audit_run where id in (
    select id from sluice.audit_run
    where greatest(updated_at, finished_at) < now() - make_interval(secs => %(seconds)s)
          and id <> (select max(id) from sluice.audit_run)
    limit %(limit)s
)

-- name: prune_identities
-- Cached identities that nothing has resolved for so long, among the next `limit` rows after `after`: a walk, since an index
-- on the time would cost more than it saves. The last DID of the piece (null at the end) and how many went.
with piece as (
    select did, resolved_at from sluice.identity where did > %(after)s order by did limit %(limit)s
), gone as (
    delete from sluice.identity i using piece p
    where i.did = p.did and p.resolved_at < now() - make_interval(secs => %(seconds)s)
    returning i.did
)
select max(did), (select count(*) from gone) from piece
