"""Which database is which shard, stored in each (`sluice.shard`). A wrong one is refused before anything is written to it."""

import logging

from connectors.postgres.connection import connect
from connectors.postgres.main_database import SILENT, asking_main
from connectors.postgres.migrate import migrate, missing
from connectors.postgres.stream_cursors import note_gap
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.shard_ranges import ShardRange, shard_ranges
from schemas.sql import queries
from steps.cursor import Gap

SQL = queries("shard")
NAME = "sluice shards"

log = logging.getLogger("shards")

_checked: set[tuple[str, str]] = set()  # (URL of the main database, URL of a shard) that this process has found right


def prepare_shards(settings: Settings) -> list[str]:
    """Migrate the shards, and name new ones; the main database is migrated. Returns the applied migrations.

    A shard that does not answer is only logged: pods have to start. `check` comes before its first use. Raises OperatorError.
    """
    ranges = shard_ranges(settings.shards)
    main = _main(settings, " ".join(one.name for one in ranges))
    applied: list[str] = []
    for one in ranges:
        try:
            applied += [f"{name} (shard {one.name})" for name in migrate(one.url)]
            _claim(settings, one, *main)
            _checked.add((settings.database, one.url))
        except SILENT as err:
            log.warning("a shard does not answer", extra={"shard": one.name, "error": " ".join(str(err).split())})
    return applied


def check(settings: Settings, number: int) -> None:
    """Raise OperatorError if a shard is another one's database or lacks migrations; once for each shard. Raises MainUnavailable."""
    one = shard_ranges(settings.shards)[number]
    if (settings.database, one.url) in _checked:
        return
    if lacking := missing(one.url):
        raise OperatorError(f"shard {one.name} lacks {', '.join(lacking)}; run `sluice migrate`")
    with asking_main(), connect(settings.database, NAME) as db:
        row = db.execute(SQL["identity"]).fetchone()
    with connect(one.url, NAME) as db:
        own = db.execute(SQL["identity"]).fetchone()
    if row is None or own is None:
        raise OperatorError(f"shard {one.name} has no name yet; run `sluice migrate`")
    _compare(one, own, (row[0], row[1], one.name))
    _checked.add((settings.database, one.url))


def forget(settings: Settings, number: int) -> None:
    """Check a shard again before its next use."""
    _checked.discard((settings.database, shard_ranges(settings.shards)[number].url))


def accept_loss(settings: Settings, name: str) -> None:
    """Let an empty database become this shard, and have its repos listed again. Raises OperatorError."""
    if name not in [one.name for one in shard_ranges(settings.shards)]:
        raise OperatorError(f"SLUICE_SHARDS has no shard {name}")
    with connect(settings.database, NAME) as db, db.transaction():
        note_gap(db, Gap(f"shard:{name}", None, None, "the shard was lost"))
        db.execute(SQL["forget_named"], {"own": name})


def _main(settings: Settings, ranges: str) -> tuple[str, str]:
    """The main database's id and ranges; it is named if it is new. Raises OperatorError if it has others."""
    with connect(settings.database, NAME) as db, db.transaction():
        row = db.execute(SQL["identity"]).fetchone()
        if row is None and ranges:
            if db.execute(SQL["holds_repos"]).fetchone() == (True,):
                raise OperatorError("SLUICE_SHARDS is set, but SLUICE_DATABASE holds repos; give an empty database")
            row = db.execute(SQL["name_main"], {"ranges": ranges}).fetchone()
    if row is None:
        return "", ""
    main, stored, own = row
    if own:
        raise OperatorError(f"SLUICE_DATABASE is shard {own} of a mirror; set it to the mirror's main database")
    if stored != ranges:
        raise OperatorError(
            f"the shards of this mirror are {stored}, but SLUICE_SHARDS has {ranges or 'none'}; ranges and the number of partitions"
            " never change"
        )
    return main, stored


def _claim(settings: Settings, one: ShardRange, main: str, ranges: str) -> None:
    """Name a new shard, or check the name of a known one. Raises OperatorError."""
    with connect(settings.database, NAME) as db:
        ((known,),) = db.execute(SQL["is_named"], {"own": one.name}).fetchall()
    with connect(one.url, NAME) as db, db.transaction():
        row = db.execute(SQL["identity"]).fetchone()
        if row is None:
            if db.execute(SQL["holds_repos"]).fetchone() == (True,):
                raise OperatorError(f"the database of shard {one.name} holds repos of no shard; give an empty database")
            if known:
                raise OperatorError(
                    f"the database of shard {one.name} is empty, but was in use; restore its backup, or accept the loss with"
                    f" `sluice shards accept-loss {one.name}`"
                )
            row = (main, ranges, one.name)
            db.execute(SQL["name_shard"], {"main": main, "ranges": ranges, "own": one.name})
    _compare(one, row, (main, ranges, one.name))
    if not known:
        with connect(settings.database, NAME) as db:
            db.execute(SQL["note_named"], {"own": one.name})


def _compare(one: ShardRange, found: tuple[str, ...], wanted: tuple[str, str, str]) -> None:
    main, ranges, own = found
    if main != wanted[0]:
        raise OperatorError(
            f"the database of shard {one.name} belongs to another mirror; correct its URL in SLUICE_SHARDS"
        )
    if (ranges, own) != wanted[1:]:
        raise OperatorError(
            f"the database of shard {one.name} is shard {own or 'none'} of {ranges}; correct SLUICE_SHARDS"
        )
