"""com.atproto.label.queryLabels: the newest state of labels, negations included, in the order of (uri, src, val, cid).

A cursor is the key of the page's last label. Each shard has the labels of its repos' subjects; every shard must answer.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from itertools import chain, islice
from typing import Any

from connectors.postgres.pooled_calls import PooledCalls
from protocol.syntax import is_did
from serve.guard import XrpcError
from serve.xrpc.parameters import Query, limit_of, texts_of
from serve.xrpc.stored_repos import SQL, Row

PAGE, LONGEST_PAGE = 50, 250
PATTERNS, SOURCES = 50, 20
_HIGHEST = "\U0010ffff"
_KEY = ("uri", "src", "val", "cid")


def query_labels(calls: PooledCalls, query: Query) -> Row:
    """Labels on these URIs, each exact or a prefix that ends with `*`, of all labelers or of these."""
    patterns, sources = texts_of(query, "uriPatterns", PATTERNS), texts_of(query, "sources", SOURCES)
    if not patterns:
        raise XrpcError("InvalidRequest", "uriPatterns is missing; give URIs, or prefixes that end with *")
    if not all(map(is_did, sources)):
        raise XrpcError("InvalidRequest", "sources must be DIDs")
    limit = limit_of(query, PAGE, LONGEST_PAGE)
    values: Row = dict(zip(_KEY, _read_cursor(query.get("cursor", "")), strict=True))
    values |= {"from": [one.removesuffix("*") for one in patterns], "sources": sources}
    values |= {"to": [f"{one[:-1]}{_HIGHEST}" if one.endswith("*") else one for one in patterns], "limit": limit + 1}
    parts = calls.every(SQL["labels_of_sources" if sources else "labels"], values)
    found = sorted(chain(*parts), key=lambda row: tuple(row[name] for name in _KEY))
    page = list(islice(found, limit))
    answer: Row = {"labels": [label_json(row) for row in page]}
    return answer | ({"cursor": _write_cursor(page[-1])} if len(found) > limit else {})


def label_json(row: Row) -> dict[str, Any]:
    """A label in the form of its lexicon."""
    label = {name: row[name] for name in ("src", "uri", "cid", "val", "cts", "exp") if row[name]}
    if row["neg"]:
        label["neg"] = True
    if row["sig"]:
        label["sig"] = {"$bytes": row["sig"]}
    return {"ver": 1, **label}


def _write_cursor(row: Row) -> str:
    return urlsafe_b64encode(json.dumps([row[name] for name in _KEY]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> list[str]:
    """The key after which the page begins. Raises XrpcError."""
    if not cursor:
        return ["", "", "", ""]
    try:
        key = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        json.dumps(key, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError) as err:
        raise XrpcError("InvalidRequest", "cursor is not from this list") from err
    if not isinstance(key, list) or len(key) != len(_KEY) or any(type(part) is not str or "\0" in part for part in key):
        raise XrpcError("InvalidRequest", "cursor is not from this list")
    return key
