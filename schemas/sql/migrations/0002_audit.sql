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

-- How a skipped range was filled in the end: by its own upstream, or by the listings of all PDSes.
alter table sluice.skipped_range add column filled_by text;
