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

-- Records of an attempt that the filter left out: with its rows they number what the snapshot has.
alter table sluice.repo
    add column left_out     integer not null default 0,
    add column left_attempt integer,
    add column left_filter  bigint;

-- Does the boundary have this repo, judged by what we know of it?
create function sluice.inside(asked text) returns boolean language sql stable as $$
    select case f.boundary
           when 'all' then true
           when 'dids' then exists (select from sluice.filter_did d where d.did = asked)
           else exists (select from sluice.record r where r.did = asked and r.collection = f.signal)
           end
    from sluice.filter f
$$;

-- May a repo that nobody knew become a row? `job`: the listing that names it; one by the signal collection proves it.
create function sluice.admits(asked text, job bigint) returns boolean language sql stable as $$
    select case f.boundary
           when 'all' then true
           when 'dids' then exists (select from sluice.filter_did d where d.did = asked)
           else exists (
               select from sluice.backfill_job j
               where j.id = job and j.source ->> 'collection' = f.signal
           )
           end
    from sluice.filter f
$$;
