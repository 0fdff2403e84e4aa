-- The tables of the pipeline itself. Times of jobs and phases come from now(); revs are compared as "C" text.

-- `id` names the repo in sluice.record_row. A repo gets a new one before its first rows (index.sql, renew_ids), so that a backfill
-- fills the right edge of indexes.
-- Columns that are written together stand together, those of a live commit last: PostgreSQL logs of an update what lies between the
-- first and the last byte that changed.
create table sluice.repo (
    did               text collate "C" primary key,
    id                integer not null unique generated always as identity,
    active            boolean not null default true,
    status            text,                              -- upstream account status while not (fully) active
    account_time      text collate "C" not null default '', -- ratchet of #account and #identity (steps/gate/ratchet.py)
    account_seq       bigint not null default 0,
    account_relay     text collate "C" not null default '', -- whose sequence account_seq belongs to
    account_seen      text collate "C" not null default '', -- JSON: what differs from it
    host              text,                              -- PDS that the DID document names (or the listing, until then)
    handle            text,
    signing_key       text,                              -- did:key of #atproto
    first_attempt     integer,                           -- attempt that wrote this repo's first rows
    left_out          integer not null default 0,        -- records of an attempt that the filter left out: they count
    left_attempt      integer,
    left_filter       bigint,
    desyncs           integer not null default 0,        -- survives success: a chain that never fits pays back-off
    desynced_at       timestamptz,
    listed_rev        text collate "C",                  -- a listing's rev above ours, and since when
    listed_since      timestamptz,
    discovered_at     timestamptz not null default now(),
    let_in_at         timestamptz,                       -- when a signal collection or a listing admitted it to the boundary
    job               bigint,
    -- the queue of fetches
    phase             text not null default 'pending'
                      check (phase in ('pending', 'backfill', 'sync', 'unavailable', 'failed', 'excluded')),
    reason            text,                              -- why it is in this phase: for people, nothing is decided by it
    -- a hidden repo is fetched to learn whether its PDS has deleted or deactivated it
    confirm_deletion  boolean not null generated always as (not active and phase in ('pending', 'backfill')) stored,
    phase_since       timestamptz not null default now(),
    attempt           integer not null default 0,        -- fencing number of the newest claim
    worker            text,                              -- who holds the claim
    lease_until       timestamptz,
    produced_partition integer,                          -- where the outcome of this attempt stands in firehose_backfill
    produced_offset   bigint,
    retry_count       integer not null default 0,
    next_retry_at     timestamptz not null default now(),
    queued_at         timestamptz,                       -- null: control has to queue it
    last_error        text,
    fetched_at        timestamptz[] not null default '{}', -- when the newest attempts began, oldest first
    deferred_since    timestamptz,                       -- attempts have ended without being counted since then
    stale_since       timestamptz,                       -- snapshots have stayed below min_rev since then
    started_at        timestamptz,
    completed_at      timestamptz,
    -- the gate: live events that wait for this backfill
    buffered          integer not null default 0,
    buffered_rev      text collate "C" not null default '', -- highest rev among them
    buffered_bytes    bigint not null default 0,         -- of them; meaningless if there are none
    seen_rev          text collate "C" not null default '',
    -- the gate: what a live commit writes
    from_snapshot     boolean not null default false,    -- rev came from a snapshot, not from a live commit
    rev               text collate "C" not null default '',
    data              text,                              -- MST root at rev
    commit            text,
    commit_block      bytea,                             -- its signature; the whole block if did, rev and data do not give the rest
    check (completed_at is null or started_at is null or completed_at >= started_at),
    constraint repo_active_status check (not active or status is null or status in ('throttled', 'desynchronized'))
) with (fillfactor = 70);
-- Only columns that change with a phase are indexed, so that a live commit stays a HOT update.
create index repo_unqueued on sluice.repo (next_retry_at) where phase = 'pending' and queued_at is null;
create index repo_queued on sluice.repo (queued_at) where phase = 'pending' and queued_at is not null;
create index repo_claimed on sluice.repo (did) where phase = 'backfill';
create index repo_listed on sluice.repo (listed_since) where listed_since is not null;
create index repo_phase on sluice.repo (phase) where phase in ('unavailable', 'failed', 'excluded');
create index repo_job on sluice.repo (job, phase) where job is not null;

-- The newest ten attempts of each repo that have ended. An eleventh takes the row of the first.
create table sluice.backfill_attempt (
    did        text collate "C" not null,
    attempt    integer not null,
    slot       smallint not null generated always as (attempt % 10) stored,
    host       text,
    started_at timestamptz,
    ended_at   timestamptz not null,
    outcome    text not null,                            -- synced, unavailable, failed, deferred, released, dropped
    error      text,
    primary key (did, slot)
);

-- A repo's first success gets its row when the repo leaves `sync`. Until then the repo's own row has its times, so that the first
-- pass over the network writes none.
create function sluice.keep_first_success() returns trigger language plpgsql as $$
begin
    insert into sluice.backfill_attempt (did, attempt, host, started_at, ended_at, outcome)
    values (old.did, old.attempt, old.host, old.started_at, old.completed_at, 'synced')
    on conflict (did, slot) do update
    set attempt = excluded.attempt, host = excluded.host, started_at = excluded.started_at, ended_at = excluded.ended_at,
        outcome = excluded.outcome, error = null;
    return null;
end $$;
create trigger repo_keeps_first_success after update of phase on sluice.repo for each row
    when (old.phase = 'sync' and new.phase <> 'sync' and old.attempt = old.first_attempt and old.completed_at is not null)
    execute function sluice.keep_first_success();

-- Names of collections by a small number. Written in transactions of their own (flows/index/collection_ids.py); never deleted.
create table sluice.collection (
    id   integer primary key generated always as identity,
    name text collate "C" not null unique
);

-- The records, compact: 64 parts by hash of the repo. Read `sluice.record`. Eight bytes each, then four, then the rest: no gaps.
create table sluice.record_row (
    rev        bigint not null,                          -- sluice.tid_text
    indexed_at timestamptz not null,                     -- the message's time
    came       bigint,                                   -- when our log took it (steps/gate/batch.py, came_at)
    repo       integer not null,                         -- sluice.repo.id
    collection integer not null,                         -- sluice.collection.id
    attempt    integer not null,
    rkey       text collate "C" not null,
    cid        bytea not null,                           -- sluice.cid_stored
    json       json,                                     -- text as written: it must hash back to the cid
    raw        bytea,                                    -- the block, where JSON cannot reproduce its cid
    reason     text,                                     -- why json is null or not exact
    primary key (repo, collection, rkey)
) partition by hash (repo);
do $$
declare parts constant integer := coalesce(current_setting('sluice.record_parts', true), '64');  -- fewer: for tests
begin
    for part in 0..parts - 1 loop
        execute format('create table sluice.record_row_%s partition of sluice.record_row for values with (modulus %s, remainder %s)',
                       lpad(part::text, 2, '0'), parts, part);
    end loop;
end $$;
-- Rows are added in the order of their times: a small index finds those of a span.
create index record_row_time on sluice.record_row using brin (indexed_at) with (pages_per_range = 32, autosummarize = on);

-- What people query: a record with its names.
create view sluice.record as
select r.did, c.name as collection, p.rkey, 'at://' || r.did || '/' || c.name || '/' || p.rkey as uri,
       sluice.cid_text(p.cid) as cid, sluice.tid_text(p.rev) as rev, p.attempt, p.json, p.raw, p.reason, p.indexed_at, p.came
from sluice.record_row p
join sluice.repo r on r.id = p.repo
join sluice.collection c on c.id = p.collection;

create table sluice.buffered_event (
    did        text collate "C" not null,
    log_offset bigint not null,                          -- order of the live topic's partition
    rev        text collate "C" not null,
    event      bytea not null,                           -- the message as it stands in the log
    received   bigint,                                   -- the log's time, ms of the epoch
    primary key (did, log_offset)
);

create table sluice.label (
    src        text collate "C" not null,
    uri        text collate "C" not null,
    val        text collate "C" not null,
    cid        text collate "C" not null default '',
    neg        boolean not null,
    cts        text collate "C" not null,
    exp        text,
    sig        text,
    seq        bigint not null,
    primary key (src, uri, val, cid)
);
create index label_uri on sluice.label (uri);

create table sluice.identity (                           -- the resolver's cache, shared and persisted
    did         text collate "C" primary key,
    pds         text,
    handle      text,
    signing_key text,
    label_key   text,
    labeler     text,
    resolved_at timestamptz not null default now()
);

create table sluice.host (
    host           text primary key,                     -- URL of the PDS, without a path
    relay          text,
    status         text not null default 'active',
    cursor         text,                                 -- of this host's own listRepos
    pass           integer not null default 0,
    listed_at      timestamptz,
    tokens         double precision,                     -- rate budget, shared by all workers, leased in chunks
    tokens_at      timestamptz,
    leased         integer,                              -- tokens of the newest lease
    request_limit  integer,                              -- what the host's own headers allow in our window, if less
    paused_until   timestamptz,
    pause_reason   text,
    requests       bigint not null default 0,
    failures       bigint not null default 0,
    consecutive_failures integer not null default 0,
    last_error     text,
    last_seen_at   timestamptz not null default now()
);

create table sluice.cursor (
    flow       text not null,
    upstream   text not null,                            -- full URL
    share      integer not null default 0,               -- of the stream, from 0 (steps/shares.py)
    shares     integer not null default 1,
    position   text not null,
    detail     jsonb not null default '{}',
    updated_at timestamptz not null default now(),
    primary key (flow, upstream, shares, share),
    check (share between 0 and shares - 1)
);

create table sluice.stream_offset (
    cluster    text not null,
    group_id   text not null,
    topic      text not null,
    part       integer not null,
    next       bigint not null,                          -- first offset that is not yet in the tables
    updated_at timestamptz not null default now(),
    primary key (cluster, group_id, topic, part)
);

create table sluice.backfill_job (
    id            bigint generated always as identity primary key,
    name          text not null unique,
    kind          text not null check (kind in ('relay', 'pds', 'hosts', 'dids', 'collection')), -- pds: a permanent listing
    relay         text,                                  -- whose list (relay), or who lists a collection's repos
    hosts         text[],                                -- of a pds or hosts
    collection    text,
    first_dids    text[],                                -- of dids: to show; sluice.job_did has all
    again         boolean not null default false,        -- of dids: those in sync, too
    status        text not null default 'pending' check (status in
                  ('pending', 'running', 'paused', 'paused_quota_limit', 'retry', 'completed', 'failed', 'cancelled')),
    cutoff        timestamptz not null default now(),
    batch_size    integer not null default 1000 check (batch_size between 1 and 1000),
    priority      integer not null default 0,
    cutoff_seqs   jsonb not null default '{}',           -- relay → what its stream had reached here at the cutoff
    checkpoint    jsonb not null default '{}',
    total         bigint,                                -- DIDs or hosts in its list
    listed        bigint not null default 0,
    queued        bigint not null default 0,
    duplicates    bigint not null default 0,
    in_sync       bigint not null default 0,             -- of a list: DIDs in sync already when they were queued
    synced        bigint not null default 0,             -- its repos by their outcome; control counts
    failed        bigint not null default 0,
    unavailable   bigint not null default 0,
    pending       bigint not null default 0,
    rate          double precision,                      -- outcomes per second, lately
    counted_at    timestamptz,
    retry_count   integer not null default 0,
    next_retry_at timestamptz,
    error         text,
    created_at    timestamptz not null default now(),
    started_at    timestamptz,
    completed_at  timestamptz,
    updated_at    timestamptz not null default now(),
    check (completed_at is null or completed_at >= started_at),
    check ((completed_at is not null) = (status in ('completed', 'failed', 'cancelled'))),
    check ((relay is not null) = (kind in ('relay', 'collection'))),
    check ((hosts is not null) = (kind in ('pds', 'hosts'))),
    check ((collection is not null) = (kind = 'collection')),
    check ((first_dids is not null) = (kind = 'dids')),
    constraint backfill_job_resumes check ((next_retry_at is not null) = (status in ('paused_quota_limit', 'retry')))
);

create table sluice.skipped_range (
    id           bigint generated always as identity primary key,
    upstream     text not null,
    from_cursor  text not null,
    to_cursor    text not null,
    reason       text not null,
    retry_count  integer not null default 0,
    next_retry_at timestamptz not null default now(),
    skipped_at   timestamptz not null default now(),
    filled_at    timestamptz,
    filled_by    text,                                   -- its own upstream, or the listings of all PDSes
    unique (upstream, from_cursor, to_cursor)
);

create table sluice.stream_gap (                         -- a recorded loss: sequence gaps, windows and log starts passed
    id          bigint generated always as identity primary key,
    upstream    text not null,
    from_seq    bigint,
    to_seq      bigint,
    reason      text not null,
    noticed_at  timestamptz not null default now(),
    answered_at timestamptz                              -- when the re-list that answers it was done
);

create table sluice.shard (                              -- no row: all repos are here
    single boolean primary key default true check (single),
    main   uuid not null,                                -- of the main database, the same in all its shards
    ranges text not null,                                -- partitions of all shards, as in SLUICE_SHARDS: they never change
    own    text not null,                                -- those of this shard; empty: this is the main database
    named  text[] not null default '{}'                  -- in the main database: shards in use, so an empty one was lost
);

create table sluice.dead_letter (
    part       integer not null,                         -- place in the dead_letter topic
    log_offset bigint not null,
    topic      text not null,
    did        text,
    reason     text not null,
    error      text not null,
    state      text not null default 'open' check (state in ('open', 'retried', 'dismissed')),
    noticed_at timestamptz not null default now(),
    settled_at timestamptz,
    primary key (part, log_offset)
);
create index dead_letter_open on sluice.dead_letter (noticed_at) where state = 'open';
