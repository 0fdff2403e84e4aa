-- When a repo was let inside a boundary by a signal collection, by a record that it wrote or a listing that named it: until it
-- is fetched there are no rows that prove it. (A phase's own time proves nothing: desyncs and takedowns move it.)
alter table sluice.repo add column let_in_at timestamptz;

-- What a repo that was outside the boundary becomes inside: fetched; or, where it was hidden, hidden until its PDS is asked, or
-- what a relay decided about it, until a relay lists it again.
create function sluice.back_inside(active boolean, status text) returns table (phase text, reason text)
language sql immutable as $$
    select case when active or status in ('deleted', 'deactivated') then 'pending' else 'unavailable' end,
           case when active then 'filter' when status in ('deleted', 'deactivated') then 'deletion'
                else coalesce(status, 'inactive') end
$$;

-- Of a list of DIDs: how many were in sync already when they were queued.
alter table sluice.backfill_job add column in_sync bigint not null default 0;
