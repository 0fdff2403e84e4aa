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

-- What may be shown of an account: a handle that is not verified is `handle.invalid`.
create view sluice.shown_handle as
select did, case when verified then handle else 'handle.invalid' end as handle, handle as claimed, verified_at, checked_at
from sluice.handle;

-- Accounts that are known already are checked within a day.
insert into sluice.handle (did, handle, next_check_at)
select did, handle, now() + random() * interval '1 day' from sluice.repo where handle is not null;

-- When the newest attempts of a repo began, oldest first: at most so many in an hour (connectors/postgres/repo_queue.py).
alter table sluice.repo add column fetched_at timestamptz[] not null default '{}';
