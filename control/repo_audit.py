"""The audit of one repo while an operator waits: `audit_one`. `sluice audit` has no limit, and asks directory and PDS too."""

import threading
from dataclasses import dataclass

from connectors.postgres.connection import connect
from connectors.postgres.shards import Shards
from control.audit_chunk import check_chunk, close_connection
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("api")
MAX_RECORDS = 50_000
MAX_FINDINGS = 100

_one_at_a_time = threading.Lock()  # check_chunk keeps a connection


@dataclass(frozen=True, slots=True)
class RepoAudit:
    """Rows that were checked, and what differs."""

    records: int
    findings: list[str]


def audit_one(settings: Settings, did: str) -> RepoAudit:
    """Compare a repo's rows with its signed tree, without the network. Raises OperatorError, psycopg.Error."""
    shards = Shards(settings, lambda one: one.database)
    if not _one_at_a_time.acquire(blocking=False):
        raise OperatorError("another repo is being audited; retry in a moment")
    try:
        return shards.call(shards.number_of(did), lambda database: _audit(database, did))
    finally:
        _one_at_a_time.release()


def _audit(database: str, did: str) -> RepoAudit:
    with connect(database, "sluice audit") as db:
        (records,) = db.execute(SQL["count_to"], {"did": did, "limit": MAX_RECORDS + 1}).fetchone() or (0,)
    if records > MAX_RECORDS:
        raise OperatorError(f"{did} has more than {MAX_RECORDS:,} records; use `sluice audit {did}`")
    try:
        chunk = check_chunk(database, [did], bodies=True)
    finally:
        close_connection(database)
    if not chunk.checked:
        raise OperatorError(f"{did} is not in sync; only repos in sync have rows that must match")
    findings = [f"{one.kind}: {one.detail}" for checked in chunk.checked for one in checked.findings]
    findings += [
        f"no_key: the stored key did not sign {head.commit}; `sluice audit {did}` asks for the current one"
        for head in chunk.unsigned
    ]
    return RepoAudit(sum(one.records for one in chunk.checked), findings[:MAX_FINDINGS])
