"""com.atproto.repo: records as JSON, and what a repo has. The account may be given by its proven handle.

A record whose block has no JSON (docs/design.md §3) is not found here; com.atproto.sync.getRecord has its block.
"""

import msgspec

from connectors.postgres.pooled_calls import PooledCalls
from protocol.handle import NO_HANDLE
from protocol.syntax import is_nsid
from serve.guard import XrpcError
from serve.xrpc.identity_reads import find_identity
from serve.xrpc.parameters import Query, account_of, collection_of, flag_of, limit_of, rkey_of, texts_of
from serve.xrpc.stored_repos import SQL, Row, did_of_account, shown_repo

PAGE, LONGEST_PAGE = 50, 100
PAGE_BYTES = 4 << 20
"""JSON of a page of records; a larger record is a page of its own."""
COLLECTIONS = 10_000


def get_record(calls: PooledCalls, query: Query) -> Row:
    """A record; with `cid`, only that version of it."""
    account, collection, rkey = account_of(query, "repo"), collection_of(query), rkey_of(query)
    did = did_of_account(calls, account)
    repo = shown_repo(calls, did)
    uri = f"at://{did}/{collection}/{rkey}"
    values = {"repo": repo["id"], "collection": collection, "rkey": rkey}
    row = next(iter(calls.repo(SQL["record"], did, **values)), None)
    if row is None or row["json"] is None or query.get("cid", row["cid"]) != row["cid"]:
        raise XrpcError("RecordNotFound", f"could not locate record: {uri}")
    return {"uri": uri, "cid": row["cid"], "value": msgspec.Raw(row["json"].encode())}


def list_records(calls: PooledCalls, query: Query) -> Row:
    """Records of a collection by descending rkey, or ascending with `reverse`. The cursor is the last rkey."""
    account, collection = account_of(query, "repo"), collection_of(query)
    limit, upwards = limit_of(query, PAGE, LONGEST_PAGE), flag_of(query, "reverse")
    after = next(iter(texts_of(query, "cursor", 1)), "")
    did = did_of_account(calls, account)
    values = {"repo": shown_repo(calls, did)["id"], "collection": collection, "after": after}
    values |= {"limit": limit + 1, "bytes": PAGE_BYTES}
    rows = calls.repo(SQL["records_upwards" if upwards else "records"], did, **values)
    shown = rows[:limit]
    records = [
        {"uri": f"at://{did}/{collection}/{row['rkey']}", "cid": row["cid"], "value": msgspec.Raw(row["json"].encode())}
        for row in shown
        if row["json"] is not None
    ]
    more = bool(shown) and rows[0]["total"] > len(shown)
    return {"records": records} | ({"cursor": shown[-1]["rkey"]} if more else {})


def describe_repo(calls: PooledCalls, query: Query) -> Row:
    """The account's handle, DID document and collections."""
    did = did_of_account(calls, account_of(query, "repo"))
    repo = shown_repo(calls, did)
    found = calls.repo(SQL["collections"], did, repo=repo["id"], limit=COLLECTIONS)
    identity = find_identity(calls, did)
    return {
        "handle": identity.handle,
        "did": did,
        "didDoc": identity.document,
        "collections": [row["name"] for row in found if is_nsid(row["name"])],
        "handleIsCorrect": identity.handle != NO_HANDLE,
    }
