"""One repo and one record, for `sluice repo`, `sluice record` and the API: `repo_details`, `find_record`, `find_repo`, `did_of`.

They read through a `Reader`: the API's pooled connections, or a `DirectReader` of a command.
"""

from typing import Any, Protocol

from psycopg.rows import DictRow

from connectors.postgres.connection import dict_database
from connectors.postgres.shards import with_main
from protocol.encoding.safe_text import printable
from protocol.syntax import is_did, is_handle
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import Statement, queries

SQL = queries("api")
SHOWN = 10  # newest rows of each list

Row = dict[str, Any]


class Reader(Protocol):
    """Rows of statements as dicts."""

    def rows(self, statement: Statement, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Of the main database."""
        ...

    def repo(self, statement: Statement, did: str, **values: Any) -> list[DictRow]:
        """Of the database that the repo is in; the statement gets `did` too."""
        ...


class DirectReader:
    """A Reader with connections of its own, opened on first use."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._main, self._shards = with_main(settings, lambda one: dict_database(one, name, connect_timeout=5))

    def rows(self, statement: Statement, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Rows of the main database."""
        return self._main().execute(statement, values).fetchall()

    def repo(self, statement: Statement, did: str, **values: Any) -> list[DictRow]:
        """Rows of the repo's shard."""
        shards = self._shards
        return shards.call(
            shards.number_of(did), lambda shard: shard().execute(statement, values | {"did": did}).fetchall()
        )

    def close(self) -> None:
        for one in (self._main, *self._shards.all()):
            one.close()


def find_repo(reader: Reader, did: str) -> Row | None:
    """The row of a repo; None if it is unknown."""
    return next(iter(reader.repo(SQL["repo"], did)), None)


def repo_details(reader: Reader, did: str) -> Row | None:
    """A repo's row, and what the tables have of it: attempts, identity, records, labels, events, dead letters. None if it is unknown."""
    row = find_repo(reader, did)
    if row is None:
        return None
    (identity,) = reader.rows(SQL["repo_identity"], {"did": did})
    lists = {
        name: reader.repo(SQL[f"repo_{name}"], did, limit=SHOWN)
        for name in ("attempts", "collections", "records", "labels", "buffered")
    }
    letters = reader.rows(SQL["repo_dead_letters"], {"did": did, "limit": SHOWN})
    times = reader.repo(SQL["repo_times"], did)
    return {
        **row,
        **(times[0] if times else {}),
        "identity": identity,
        "attempts": lists["attempts"],
        "collections": {one["collection"]: one["records"] for one in lists["collections"]},
        "records": lists["records"],
        "labels": lists["labels"],
        "buffered_events": lists["buffered"],
        "dead_letters": letters,
    }


def find_record(reader: Reader, did: str, collection: str, rkey: str) -> Row | None:
    """A record; `json` is its text as it was written. None if it is not in the mirror."""
    return next(iter(reader.repo(SQL["record"], did, collection=collection, rkey=rkey)), None)


def did_of(reader: Reader, account: str) -> str | None:
    """The DID of an account, given as DID or handle. None: no document claims the handle. Raises OperatorError.

    A handle that is not verified is accepted if a single account claims it.
    """
    if is_did(account):
        return account
    handle = account.removeprefix("@").lower()
    if not is_handle(handle):
        raise OperatorError(
            f"{printable(account, 100)!r} is not a DID or a handle; write did:plc:…, did:web:HOST or name.example"
        )
    found = reader.rows(SQL["claimants"], {"handle": handle})
    if len(found) > 1 and not found[0]["verified"]:
        claiming = ", ".join(row["did"] for row in found)
        raise OperatorError(f"{handle} is claimed by several accounts, none of them verified: {claiming}; name the DID")
    return str(found[0]["did"]) if found else None


def parts_of(uri: str) -> tuple[str, str, str]:
    """(account, collection, rkey) of an AT-URI. Raises OperatorError."""
    account, _, path = uri.removeprefix("at://").partition("/")
    collection, _, rkey = path.partition("/")
    if not (uri.startswith("at://") and account and collection and rkey):
        raise OperatorError(f"{printable(uri, 100)!r} is not the AT-URI of a record; write at://DID/COLLECTION/RKEY")
    return account, collection, rkey
