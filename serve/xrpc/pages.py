"""Pages of lists over all repos, in DID order over the shards. Every shard must answer.

A statement reads the next `scan` rows of each shard; its column `listed` says which ones are in the list. So a request reads
a bounded number of rows, and a page may have fewer items than its limit, or none, and still a cursor.
"""

from typing import Any

from connectors.postgres.pooled_calls import PooledCalls
from protocol.syntax import is_did
from schemas.sql import Statement
from serve.guard import XrpcError
from serve.xrpc.parameters import Query

ROUNDS = 10

Row = dict[str, Any]


def after_of(query: Query) -> str:
    """The DID after which the page begins: the parameter `cursor`. Raises XrpcError."""
    cursor = query.get("cursor", "")
    if cursor and not is_did(cursor):
        raise XrpcError("InvalidRequest", "cursor is not from this list")
    return cursor


def page_of(
    calls: PooledCalls, statement: Statement, values: Row, *, after: str, limit: int, scan: int
) -> tuple[list[Row], str | None]:
    """The rows of the page, and the cursor of the next one or None."""
    for _ in range(ROUNDS):
        parts = calls.every(statement, values | {"after": after, "scan": scan})
        ends = [part[-1]["did"] for part in parts if len(part) == scan]
        end = min(ends, default=None)  # beyond it, the rows of a shard are not known yet
        rows = sorted((row for part in parts for row in part if row["listed"]), key=lambda row: str(row["did"]))
        listed = rows if end is None else [row for row in rows if row["did"] <= end]
        if len(listed) > limit:
            return listed[:limit], listed[limit - 1]["did"]
        if listed or end is None:
            return listed, end
        after = end
    return [], after
