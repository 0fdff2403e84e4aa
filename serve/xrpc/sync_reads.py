"""com.atproto.sync: the state of repos, and lists of them."""

from connectors.postgres.pooled_calls import PooledCalls
from serve.xrpc.pages import after_of, page_of
from serve.xrpc.parameters import Query, collection_of, did_of, limit_of
from serve.xrpc.stored_repos import SQL, Row, find_repo, proven_repo, status_of

PAGE, LONGEST_PAGE = 500, 1000
LONGEST_COLLECTION_PAGE = 2000
COLLECTION_SCAN = 5000
"""Repos that are probed for a record of the collection, in one round."""


def get_latest_commit(calls: PooledCalls, query: Query) -> Row:
    """CID and rev of the commit that the rows prove."""
    row = proven_repo(calls, did_of(query))
    return {"cid": row["commit"], "rev": row["rev"]}


def get_repo_status(calls: PooledCalls, query: Query) -> Row:
    """Whether a repo is active, and its rev."""
    did = did_of(query)
    row = find_repo(calls, did)
    found = {"did": did, **status_of(row)}
    return found | {"rev": row["rev"]} if found["active"] else found


def list_repos(calls: PooledCalls, query: Query) -> Row:
    """All repos that have a commit, in DID order, with their status."""
    limit = limit_of(query, PAGE, LONGEST_PAGE)
    rows, cursor = page_of(calls, SQL["repos"], {}, after=after_of(query), limit=limit, scan=limit + 1)
    repos = [{"did": row["did"], "head": row["commit"], "rev": row["rev"], **status_of(row)} for row in rows]
    return {"repos": repos} | ({"cursor": cursor} if cursor else {})


def list_repos_by_collection(calls: PooledCalls, query: Query) -> Row:
    """Repos with a record of a collection, in DID order."""
    limit = limit_of(query, PAGE, LONGEST_COLLECTION_PAGE)
    values = {"collection": collection_of(query)}
    rows, cursor = page_of(
        calls, SQL["repos_of_collection"], values, after=after_of(query), limit=limit, scan=COLLECTION_SCAN
    )
    return {"repos": [{"did": row["did"]} for row in rows]} | ({"cursor": cursor} if cursor else {})
