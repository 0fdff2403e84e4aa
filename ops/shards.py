"""`sluice shards`: check the databases of the shards, and show all of them through the main one.

`attach` makes a foreign table (postgres_fdw) of each shard's records, repos, labels and buffered events, and views over all shards:
`sluice.record`, and `sluice_shards.repo`, `.label`, `.buffered_event`. They are views with UNION ALL, not partitioned tables: the
partition of a DID is a hash (murmur2) that no SQL condition names, so PostgreSQL could prune nothing; the parts of both are
scanned at the same time (`async_capable`), with conditions evaluated by each shard.
"""

import time
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from connectors.postgres import shard_identity
from connectors.postgres.connection import connect
from connectors.runtime.errors import one_line
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.shard_ranges import ShardRange, shard_ranges
from schemas.sql import queries

SQL = queries("attach")
NAME = "sluice shards"
CLOCK_SECONDS = 5.0
VIEWS = {"repo": "sluice_shards", "label": "sluice_shards", "buffered_event": "sluice_shards", "record": "sluice"}
"""Table → schema of the view over all shards."""


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard as `sluice shards check` found it. `problem`: '' if there is none."""

    partitions: str
    repos: int | None
    bytes: int | None
    problem: str = ""


def check(settings: Settings) -> list[ShardState]:
    """The state of each shard. Raises OperatorError without SLUICE_SHARDS."""
    return [_state(settings, number, one) for number, one in enumerate(_ranges(settings))]


def attach(settings: Settings) -> list[str]:
    """Show all shards through the main database; repeat it after each migration. Returns the names of the views.

    Raises OperatorError, psycopg.Error.
    """
    ranges = _ranges(settings)
    for number, one in enumerate(ranges):
        try:
            shard_identity.check(settings, number)
        except psycopg.Error as err:
            raise OperatorError(f"shard {one.name}: {one_line(err)}; start PostgreSQL there") from err
    servers = [f"sluice_shard_{one.first}_{one.last}" for one in ranges]
    with connect(settings.database, NAME) as db, db.transaction():
        for name in ("extension", "own_view", "drop_all", "all_shards"):
            db.execute(SQL[name])
        for server, one in zip(servers, ranges, strict=True):
            _import(db, server, one.url)
        for table, schema in VIEWS.items():
            _view(db, table, schema, servers)
    return [f"{schema}.{table}" for table, schema in VIEWS.items()]


def _ranges(settings: Settings) -> tuple[ShardRange, ...]:
    ranges = shard_ranges(settings.shards)
    if not ranges:
        raise OperatorError("SLUICE_SHARDS is not set: all repos are in SLUICE_DATABASE")
    return ranges


def _state(settings: Settings, number: int, one: ShardRange) -> ShardState:
    try:
        shard_identity.check(settings, number)
        with connect(one.url, NAME) as db:
            before = time.time()
            clock = db.execute(queries("control")["now"]).fetchone() or (before,)
            off = max(before - float(clock[0]), float(clock[0]) - time.time())
            repos = db.execute(queries("control")["repos_estimated"]).fetchone() or (0,)
            size = db.execute(queries("gauges")["size"]).fetchone() or (0,)
    except (OperatorError, psycopg.Error) as err:
        return ShardState(one.name, None, None, one_line(err))
    problem = f"its clock differs from ours by {off:.1f} s; synchronise both with NTP" if off > CLOCK_SECONDS else ""
    return ShardState(one.name, int(repos[0]), int(size[0]), problem)


def _import(db: psycopg.Connection[tuple[object, ...]], server: str, url: str) -> None:
    """Foreign tables of one shard, in a schema with the name of its server."""
    given = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    user = {key: given.pop(key) for key in ("user", "password") if key in given}
    place = {**given, "async_capable": "true", "use_remote_estimate": "true", "fetch_size": "1000"}
    for name, options in (
        *(("drop_tables", {}), ("drop_server", {}), ("server", place), ("user", user)),
        *(("schema", {}), ("tables", {})),
    ):
        listed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in options.items()
        )
        db.execute(_format(name, server=sql.Identifier(server), options=listed))


def _view(db: psycopg.Connection[tuple[object, ...]], table: str, schema: str, servers: list[str]) -> None:
    parts = [sql.SQL("select * from {}").format(sql.Identifier(server, table)) for server in servers]
    view = sql.SQL("create view {} as ").format(sql.Identifier(schema, table))
    db.execute(view + sql.SQL(" union all ").join(parts))


def _format(name: str, **parts: sql.Composable) -> sql.Composed:
    text: str = SQL[name].decode()
    return sql.SQL(text).format(**parts)
