"""Makes the view `sluice.record` writable in a test's database: tests put rows there, and damage them, by names."""

from __future__ import annotations

import psycopg

TRIGGER = r"""
create or replace function public.record_written() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        delete from sluice.record_row p using sluice.repo r, sluice.collection c
        where r.did = old.did and c.name = old.collection and p.repo = r.id and p.collection = c.id and p.rkey = old.rkey;
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    insert into sluice.repo (did) values (new.did) on conflict do nothing;
    insert into sluice.collection (name) values (new.collection) on conflict do nothing;
    insert into sluice.record_row (rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason)
    select sluice.tid_number(new.rev), coalesce(new.indexed_at, '2026-01-01Z'), new.came, r.id, c.id, new.attempt, new.rkey,
           sluice.cid_bytes(new.cid), new.json, new.raw, new.reason
    from sluice.repo r, sluice.collection c where r.did = new.did and c.name = new.collection;
    return new;
end $$;
create or replace trigger record_written instead of insert or update or delete on sluice.record
for each row execute function public.record_written();
"""


def make_writable(database: str) -> None:
    """Accept insert, update and delete on `sluice.record` in this database."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(TRIGGER)
