"""The clock of a test's database: it stands still, and moves with the loop's.

A schema before `pg_catalog` in the search path has its own `now()` and `clock_timestamp()`; defaults of columns are bound to
them again.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import psycopg

STEP_SECONDS = 0.5  # smaller jumps of the loop's clock are passed on together, unless a test needs them exactly

_SETUP = """
create schema clock;
create unlogged table clock.time (began timestamptz not null, seconds float8 not null);
insert into clock.time values (pg_catalog.now(), 0);
create function clock.now() returns timestamptz language sql stable
    as $$ select began + make_interval(secs => seconds) from clock.time $$;
create function clock.clock_timestamp() returns timestamptz language sql stable as $$ select clock.now() $$;
alter database {name} set search_path = clock, pg_catalog, public;
alter database {name} set synchronous_commit = off;
do $$
declare found record;
begin
    for found in select table_name, column_name, column_default from information_schema.columns
                 where table_schema = 'sluice' and column_default ~ 'now[(][)]' loop
        execute format('alter table sluice.%I alter %I set default %s', found.table_name, found.column_name,
                       replace(found.column_default, 'now()', 'clock.now()'));
    end loop;
end $$;
"""


class DatabaseClock:
    """Holds a connection until `close`. Make it before anything else connects to the database."""

    def __init__(self, database: str, step_seconds: float = STEP_SECONDS) -> None:
        self._step = step_seconds
        self._db = psycopg.connect(database, autocommit=True)
        self._db.execute(_SETUP.format(name=urlsplit(database).path.strip("/")).encode())
        self._waiting = 0.0

    def passed(self, seconds: float) -> None:
        """So much time has passed in the loop."""
        self._waiting += seconds
        if self._waiting and self._waiting >= self._step:
            self._db.execute("update clock.time set seconds = seconds + %s", (self._waiting,))
            self._waiting = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._db.close()
