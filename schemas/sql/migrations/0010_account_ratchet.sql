-- The ratchet of #account and #identity names the relay whose sequence `account_seq` belongs to (steps/gate/ratchet.py).
alter table sluice.repo
    add column account_relay text collate "C" not null default '',
    add column account_seen  text collate "C" not null default '';  -- JSON: what differs from it

-- Beside `active` only a status that does not hide the account (protocol/account_status.py).
update sluice.repo set status = null
where active and status is not null and status not in ('throttled', 'desynchronized');
alter table sluice.repo add constraint repo_active_status
    check (not active or status is null or status in ('throttled', 'desynchronized'));

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
