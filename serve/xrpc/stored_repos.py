"""The row of a repo, and what may be shown of it. An error has its lexicon's name.

A hidden account has no reads but its status. The rows of a repo prove its signed root only in phase `sync`: in any other one it is
`desynchronized`, and has no commit, CAR or proof.
"""

from typing import Any

from connectors.postgres.pooled_calls import PooledCalls
from protocol.account_status import is_served
from protocol.syntax import is_did
from schemas.sql import queries
from serve.guard import XrpcError

SQL = queries("serve")
_HIDDEN = {
    "takendown": "RepoTakendown",
    "suspended": "RepoSuspended",
    "deactivated": "RepoDeactivated",
    "deleted": "RepoNotFound",
}
_NO_STATUS = "inactive"  # hidden by a host that gave no reason

Row = dict[str, Any]


def find_repo(calls: PooledCalls, did: str) -> Row:
    """The row of a repo, whatever its state. Raises XrpcError(RepoNotFound)."""
    row = next(iter(calls.repo(SQL["repo"], did)), None)
    if row is None or row["phase"] == "excluded":
        raise XrpcError("RepoNotFound", f"{did} is not in this mirror")
    return row


def shown_repo(calls: PooledCalls, did: str) -> Row:
    """The row of a repo that may be shown. Raises XrpcError."""
    row = find_repo(calls, did)
    check_shown(did, row)
    return row


def proven_repo(calls: PooledCalls, did: str) -> Row:
    """The row of a repo that may be shown and is in sync. Raises XrpcError."""
    row = find_repo(calls, did)
    check_proven(did, row)
    return row


def check_shown(did: str, row: Row) -> None:
    """Raise XrpcError if the account is hidden."""
    if not is_served(row["active"], row["status"]):
        raise XrpcError(_HIDDEN.get(row["status"], "RepoInactive"), f"the account {did} is {row['status']}")


def check_proven(did: str, row: Row) -> None:
    """Raise XrpcError if the account is hidden, or its repo not in sync."""
    check_shown(did, row)
    if not in_sync(row):
        raise XrpcError("RepoNotSynchronized", f"this mirror is fetching the repo of {did}; retry later", 404)


def in_sync(row: Row) -> bool:
    """Whether the rows prove the repo's root."""
    return row["phase"] == "sync" and row["commit"] is not None


def status_of(row: Row) -> Row:
    """The fields `active` and `status` of listRepos and getRepoStatus."""
    if not is_served(row["active"], row["status"]):
        return {"active": False} if row["status"] == _NO_STATUS else {"active": False, "status": row["status"]}
    return {"active": True} if in_sync(row) else {"active": False, "status": "desynchronized"}


def did_of_account(calls: PooledCalls, account: str) -> str:
    """The DID of an account given as DID or handle. Raises XrpcError(HandleNotFound)."""
    if is_did(account):
        return account
    found = calls.rows(SQL["owner"], {"handle": account})
    if not found:
        raise XrpcError("HandleNotFound", f"no account has proven the handle {account}")
    return str(found[0]["did"])
