-- Jobs: their states as a machine that the database holds too, their lists of DIDs, and what their repos have come to.
alter table sluice.backfill_job
    add column batch_size  integer not null default 1000 check (batch_size between 1 and 1000),
    add column priority    integer not null default 0,
    add column cutoff_seqs jsonb not null default '{}',  -- relay → what its stream had reached here at the cutoff
    add column total       bigint,                       -- DIDs or hosts in its list
    add column synced      bigint not null default 0,    -- its repos by what they have come to; control counts
    add column failed      bigint not null default 0,
    add column unavailable bigint not null default 0,
    add column pending     bigint not null default 0,
    add column rate        double precision,             -- repos that came to an end, per second, lately
    add column counted_at  timestamptz;

create table sluice.job_did (
    job bigint not null references sluice.backfill_job (id) on delete cascade,
    n   integer not null,                                -- place in the list, from 1
    did text collate "C" not null,
    primary key (job, n)
);

-- A job's repos by phase. Both columns stand still while a repo follows the stream: a live commit stays a HOT update.
create index repo_job on sluice.repo (job, phase) where job is not null;

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

-- What goes on by itself says when.
alter table sluice.backfill_job add constraint backfill_job_resumes
    check ((next_retry_at is not null) = (status in ('paused_quota_limit', 'retry')));
