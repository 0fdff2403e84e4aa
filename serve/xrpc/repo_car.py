"""A repo's rows → its signed CAR, or the proof of one record: generators of CAR bytes, for a thread.

All reads are in one snapshot of the repo's shard. The leaves are read twice, in the order of the tree: first their CIDs, whose root
must be the signed one, before the first byte is given; then their bodies, each of which must hash to its CID. So an error
comes before the CAR, or (a damaged row) ends it early; a CAR that ends is the repo. Memory: BATCH_BYTES or one record.

A leaf without a body (its reason is in the row: its path is invalid, it is too large, it has a foreign CID) has no block: such a
repo has no CAR, but proofs of its other records.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.string import ByteaBinaryLoader

from connectors.postgres.pooled_calls import PooledCalls
from connectors.postgres.stored_forms import commit_block
from protocol.car_format import write_header, write_section
from protocol.cid import CID_SIZE, DAG_CBOR, any_cid_bytes, cid_bytes
from protocol.encoding.record_json import body_block
from protocol.mst.tree import TreeBuilder, prove
from protocol.syntax import tid_number
from schemas.sql import Statement, queries
from serve.guard import XrpcError
from serve.xrpc.stored_repos import SQL, Row, check_proven, proven_repo

KEYS_AT_ONCE = 5000
BODIES_AT_ONCE = 500
BATCH_BYTES = 8 << 20
"""Bodies of one read from the database, or one body."""
CHUNK_BYTES = 64 << 10
COLLECTIONS = 100_000
SNAPSHOT: tuple[Statement, ...] = (
    b"set transaction isolation level repeatable read, read only",
    b"set local statement_timeout = '25s'",
    b"set local idle_in_transaction_session_timeout = '120s'",
)

Leaf = tuple[bytes, bytes]


class DamagedRow(Exception):
    """A row's body does not hash to its CID. `sluice audit DID --repair` fetches the repo again."""


def repo_car(calls: PooledCalls, did: str, since: str | None) -> Generator[bytes]:
    """The whole CAR, or with `since` without the records that are not newer. Raises XrpcError before the first bytes; DamagedRow."""
    proven_repo(calls, did)
    with _snapshot(calls, did) as (db, repo):
        values = _collections(db, repo) | {"since": None if since is None else tid_number(since)}
        largest = _check(db, did, repo, values)
        yield from _start(did, repo)
        at_once = max(1, min(BODIES_AT_ONCE, BATCH_BYTES // max(1, largest)))
        with closing(_read(db, SQL["bodies"], values, at_once)) as rows:
            yield from _chunks(_leaves_and_nodes(rows))


def record_car(calls: PooledCalls, did: str, collection: str, rkey: str) -> Generator[bytes]:
    """The CAR that proves a record, or that there is none. Raises XrpcError before the first bytes."""
    proven_repo(calls, did)
    with _snapshot(calls, did) as (db, repo):
        path = f"{collection}/{rkey}"
        with closing(_all_leaves(db, did, repo)) as leaves:
            root, nodes = prove(leaves, path.encode())
        _check_root(did, repo, root)
        values = {"repo": repo["id"], "collection": collection, "rkey": rkey}
        with db.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(SQL["record"], values).fetchone()
        parts = [*_start(did, repo), *(write_section(_cid_of(node), node) for node in nodes)]
        if found is not None:
            json = None if found["json"] is None else found["json"].encode()
            if json is None and found["raw"] is None:
                raise _incomplete(did, repo, path, found["reason"])
            parts.append(_record_section(path, any_cid_bytes(found["cid"]), json, found["raw"]))
        yield b"".join(parts)


@contextmanager
def _snapshot(calls: PooledCalls, did: str) -> Iterator[tuple[psycopg.Connection[Any], Row]]:
    """A connection to the repo's shard within a read-only snapshot, and the repo's row in it, in sync. Raises XrpcError."""
    with calls.shards.of(did).connection() as db, db.transaction():
        for statement in SNAPSHOT:
            db.execute(statement)
        with db.cursor(row_factory=dict_row) as cursor:
            repo = cursor.execute(SQL["repo"], {"did": did}).fetchone() or {"active": True, "status": None, "phase": ""}
        check_proven(did, repo)
        yield db, repo


def _collections(db: psycopg.Connection[Any], repo: Row) -> Row:
    """The repo and its collections, as the statements take them; `odd`: whether a key is not a path."""
    rows = db.execute(SQL["collections"], {"repo": repo["id"], "limit": COLLECTIONS}).fetchall()
    ids, names, odd = zip(*rows, strict=True) if rows else ((), (), ())
    return {"repo": repo["id"], "ids": list(ids), "names": list(names), "odd": any(odd)}


def _read(db: psycopg.Connection[Any], statement: Statement, values: Row, at_once: int) -> Generator[Any]:
    with db.cursor("leaves", binary=True) as cursor:
        cursor.adapters.register_loader("json", ByteaBinaryLoader)
        cursor.itersize = at_once
        yield from cursor.execute(statement, values, binary=True)


def _check(db: psycopg.Connection[Any], did: str, repo: Row, values: Row) -> int:
    """The size of the largest body. Raises XrpcError if the leaves do not give the signed root, or one has no body."""
    if values["odd"]:
        raise _incomplete(did, repo, "a key that is no path", "bad_path")
    builder, largest = TreeBuilder(), 0
    with closing(_read(db, SQL["keys"], values, KEYS_AT_ONCE)) as rows:
        for path, cid, size, reason in rows:
            if size is None:
                raise _incomplete(did, repo, path, reason)
            builder.add(path.encode(), cid)
            largest = max(largest, size)
    _check_root(did, repo, builder.root())
    return largest


def _all_leaves(db: psycopg.Connection[Any], did: str, repo: Row) -> Generator[Leaf]:
    """The leaves in the order of the tree. If a key is not a path, the database sorts them."""
    values = _collections(db, repo) | {"since": None}
    if values["odd"]:
        with closing(_read(db, queries("audit")["roots"], {"dids": [did]}, KEYS_AT_ONCE)) as rows:
            yield from ((key, cid) for _, key, cid, *_ in rows)
        return
    with closing(_read(db, SQL["keys"], values, KEYS_AT_ONCE)) as rows:
        yield from ((path.encode(), cid) for path, cid, *_ in rows)


def _check_root(did: str, repo: Row, root: bytes) -> None:
    if root != cid_bytes(repo["data"] or ""):
        raise _refusal(
            did, repo, "the mirror has not all of its records (a filter leaves some out, or `sluice audit` finds why)"
        )


def _incomplete(did: str, repo: Row, path: str, reason: str | None) -> XrpcError:
    return _refusal(did, repo, f"the mirror has no block of {path} ({reason})")


def _refusal(did: str, repo: Row, why: str) -> XrpcError:
    return XrpcError("RepoIncomplete", f"{did}: {why}; its PDS has the whole repo: {repo['host']}", 404)


def _start(did: str, repo: Row) -> Iterator[bytes]:
    """The header and the commit's block. Raises XrpcError if the stored parts do not give it."""
    root = cid_bytes(repo["commit"])
    block = commit_block(repo["commit_block"], did, repo["rev"], repo["data"])
    if block is None or _cid_of(block) != root:
        raise _refusal(did, repo, "the mirror has not its commit")
    yield write_header(root)
    yield write_section(root, block)


def _leaves_and_nodes(rows: Iterable[Any]) -> Iterator[bytes]:
    """The section of each record that has a body, and of each node after what is below it. Raises DamagedRow."""
    nodes: list[bytes] = []
    builder = TreeBuilder(lambda _layer, cid, block: nodes.append(write_section(cid, block)))
    for path, cid, json, raw in rows:
        builder.add(path.encode(), cid)
        yield from nodes
        nodes.clear()
        if json is not None or raw is not None:
            yield _record_section(path, cid, json, raw)
    builder.root()
    yield from nodes


def _record_section(path: str, cid: bytes, json: bytes | None, raw: bytes | None) -> bytes:
    try:
        block = body_block(json, raw)
    except ValueError as err:
        raise DamagedRow(f"{path}: {err}") from err
    if len(cid) != CID_SIZE or sha256(block).digest() != cid[4:]:
        raise DamagedRow(f"{path}: its body does not hash to its CID")
    return write_section(cid, block)


def _chunks(sections: Iterable[bytes]) -> Iterator[bytes]:
    """Sections joined to chunks of CHUNK_BYTES or more."""
    waiting: list[bytes] = []
    size = 0
    for section in sections:
        waiting.append(section)
        size += len(section)
        if size >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _cid_of(block: bytes) -> bytes:
    return DAG_CBOR + sha256(block).digest()
