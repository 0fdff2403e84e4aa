"""The clock of a test's database, moved along with the loop's: `now()` there is the real time and what passed in the loop.

A schema before `pg_catalog` in the search path has its own `now()` and `clock_timestamp()`. Defaults of columns keep the real
time: they are bound when the table is made.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import psycopg

STEP_SECONDS = 0.5  # smaller jumps of the loop's clock are passed on together

_SETUP = """
create schema clock;
create unlogged table clock.ahead (seconds float8 not null);
insert into clock.ahead values (0);
create function clock.now() returns timestamptz language sql stable
    as $$ select pg_catalog.now() + make_interval(secs => (select seconds from clock.ahead)) $$;
create function clock.clock_timestamp() returns timestamptz language sql volatile
    as $$ select pg_catalog.clock_timestamp() + make_interval(secs => (select seconds from clock.ahead)) $$;
alter database {name} set search_path = clock, pg_catalog, public;
alter database {name} set synchronous_commit = off;
"""


class DatabaseClock:
    """Holds a connection until `close`. Make it before anything else connects to the database."""

    def __init__(self, database: str) -> None:
        self._db = psycopg.connect(database, autocommit=True)
        self._db.execute(_SETUP.format(name=urlsplit(database).path.strip("/")).encode())
        self._waiting = 0.0

    def passed(self, seconds: float) -> None:
        """So much time has passed in the loop."""
        self._waiting += seconds
        if self._waiting >= STEP_SECONDS:
            self._db.execute("update clock.ahead set seconds = seconds + %s", (self._waiting,))
            self._waiting = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._db.close()
