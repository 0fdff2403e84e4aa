-- What operators change and read: jobs, filters, handles, audits, storms.

create table sluice.job_did (
    job bigint not null references sluice.backfill_job (id) on delete cascade,
    n   integer not null,                                -- place in the list, from 1
    did text collate "C" not null,
    primary key (job, n)
);

-- The table of steps/job_states.py.
create function sluice.job_may_become(old_status text, new_status text) returns boolean
language sql immutable parallel safe as $$
    select (old_status, new_status) in (values
        ('pending', 'running'), ('pending', 'paused'), ('pending', 'failed'), ('pending', 'cancelled'),
        ('running', 'paused'), ('running', 'paused_quota_limit'), ('running', 'retry'), ('running', 'completed'),
        ('running', 'failed'), ('running', 'cancelled'),
        ('paused', 'pending'), ('paused', 'running'), ('paused', 'cancelled'),
        ('paused_quota_limit', 'running'), ('paused_quota_limit', 'paused'), ('paused_quota_limit', 'cancelled'),
        ('retry', 'running'), ('retry', 'paused'), ('retry', 'failed'), ('retry', 'cancelled'),
        ('failed', 'retry'), ('cancelled', 'retry')
    )
$$;

-- Illegal transitions are refused. All times are set here, from now(), whatever a statement says: greatest() because a
-- clock that was set back must not make a job end before it began.
create function sluice.job_moves() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        if new.status not in ('pending', 'running') then
            raise exception 'a job cannot begin as %', new.status
                using errcode = 'check_violation', constraint = 'backfill_job_transition';
        end if;
        new.created_at := now();
        new.started_at := null;
    else
        if new.status <> old.status and not sluice.job_may_become(old.status, new.status) then
            raise exception 'job % cannot go from % to %', old.id, old.status, new.status
                using errcode = 'check_violation', constraint = 'backfill_job_transition';
        end if;
        new.created_at := old.created_at;
        new.started_at := old.started_at;
        new.completed_at := old.completed_at;
    end if;
    new.updated_at := now();
    if new.status = 'running' then
        new.started_at := coalesce(new.started_at, now());
    end if;
    if new.status in ('completed', 'failed', 'cancelled') then
        if new.completed_at is null or new.status <> old.status then
            new.completed_at := greatest(now(), new.started_at);
        end if;
    else
        new.completed_at := null;
    end if;
    if new.status not in ('paused_quota_limit', 'retry') then
        new.next_retry_at := null;
    end if;
    return new;
end $$;

create trigger backfill_job_moves before insert or update on sluice.backfill_job
for each row execute function sluice.job_moves();

-- What of the network is mirrored, changed at run time: one row, read by every index transaction under a shared advisory lock.
create table sluice.filter (
    single      boolean primary key default true check (single),
    version     bigint not null default 1,
    collections text[] not null default '{*}',           -- NSIDs, or NSID.* (whatever is below), or *
    boundary    text not null default 'all' check (boundary in ('all', 'dids', 'collection')),
    signal      text,                                    -- boundary 'collection': repos that have records of this one
    clean       boolean not null default true,           -- no rows outside of it stand in sluice.record
    set_at      timestamptz not null default now(),
    bounded_at  timestamptz not null default now(),      -- when the boundary became what it is
    widened_at  timestamptz,                             -- repos that were completed before this lack records
    walk_after  text collate "C",                        -- control's walk over all repos stands here; null: it is done
    walk_again  boolean not null default false,
    prune_after text collate "C",                        -- the same of the removal of rows outside
    prune_version bigint,
    check ((boundary = 'collection') = (signal is not null))
);
insert into sluice.filter default values;

create table sluice.filter_did (did text collate "C" primary key);  -- boundary 'dids'

-- Does the boundary have this repo, judged by what we know of it?
create function sluice.inside(asked text) returns boolean language sql stable as $$
    select case f.boundary
           when 'all' then true
           when 'dids' then exists (select from sluice.filter_did d where d.did = asked)
           else exists (select from sluice.record r where r.did = asked and r.collection = f.signal)
           end
    from sluice.filter f
$$;

-- May a repo that nobody knew become a row? `listed_by`: the collection of the listing that names it; the signal collection proves it.
create function sluice.admits(asked text, listed_by text) returns boolean language sql stable as $$
    select case f.boundary
           when 'all' then true
           when 'dids' then exists (select from sluice.filter_did d where d.did = asked)
           else coalesce(listed_by = f.signal, false)
           end
    from sluice.filter f
$$;

-- What a repo that was outside the boundary becomes inside: fetched; or, where it was hidden, hidden until its PDS is asked, or
-- what a relay decided about it, until a relay lists it again.
create function sluice.back_inside(active boolean, status text) returns table (phase text, reason text)
language sql immutable as $$
    select case when active or status in ('deleted', 'deactivated') then 'pending' else 'unavailable' end,
           case when active then 'filter' when status in ('deleted', 'deactivated') then 'deletion'
                else coalesce(status, 'inactive') end
$$;

-- Handles as DID documents claim them, and whether their domains agree (connectors/identity/handle_checks.py).
create table sluice.handle (
    did           text collate "C" primary key,
    handle        text collate "C",                      -- what the DID document claims, in lower case
    verified      boolean not null default false,        -- document and domain named each other when they were last asked
    verified_at   timestamptz,                           -- when they last did
    checked_at    timestamptz,
    next_check_at timestamptz not null default '-infinity', -- what an event asks for goes before what is due by the clock
    asked         bigint not null default 0,             -- checks that events have asked for
    failures      integer not null default 0,            -- checks in a row that verified nothing
    reason        text,                                  -- why it is not verified
    detail        text,
    check (not verified or (handle is not null and verified_at is not null))
);
create unique index handle_owner on sluice.handle (handle) where verified;
create index handle_unverified on sluice.handle (handle) where not verified;
create index handle_due on sluice.handle (next_check_at);
-- Checks that come first: never made, or asked for by an event. Empty once all were checked.
create index handle_first on sluice.handle (next_check_at) where checked_at is null or next_check_at = '-infinity';

-- What may be shown of an account: a handle that is not verified is `handle.invalid`.
create view sluice.shown_handle as
select did, case when verified then handle else 'handle.invalid' end as handle, handle as claimed, verified_at, checked_at
from sluice.handle;

-- Runs of `sluice audit`, so that one that was stopped goes on where it stood, and what they found.
create table sluice.audit_run (
    id          bigint generated always as identity primary key,
    options     jsonb not null,
    after_did   text collate "C" not null default '',    -- every repo in sync up to here has been checked
    tally       jsonb not null default '{}',
    abandoned   boolean not null default false,
    started_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    finished_at timestamptz
);

create table sluice.audit_finding (
    id     bigint generated always as identity primary key,
    run    bigint not null references sluice.audit_run (id) on delete cascade,
    did    text collate "C" not null,
    kind   text not null,
    detail text not null
);
create index audit_finding_run on sluice.audit_finding (run, did);

-- Totals and lags over time, for the charts of the status page (control/tasks/figures.py).
create table sluice.figure (
    at      timestamptz primary key default now(),
    figures jsonb not null                               -- name → number
);

-- Repos that were queued to be fetched again, by reason and minute, and what an operator has let through (control/tasks/storms.py).
create table sluice.refetch (
    reason text not null,
    minute timestamptz not null,
    repos  bigint not null,
    primary key (reason, minute)
);
create table sluice.storm (
    reason         text primary key,
    repos          bigint not null default 0,            -- that wait
    began_at       timestamptz not null default now(),
    released_until timestamptz
);
