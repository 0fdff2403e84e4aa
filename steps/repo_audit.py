"""Audit of one repo: its rows in key order and its stored commit → counts and typed findings.

Never raises, whatever the rows contain. The root is rebuilt from (key, CID) of every row; each body is encoded again and hashed.
A row without a body needs a reason. `check_commit` verifies the signature.
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from protocol.cid import cid_bytes, cid_str, dag_cbor_cid, is_any_cid
from protocol.commit import CommitRejected, parse_commit, verify_commit
from protocol.encoding.record_json import BodyReason, RecordBody, body_cid, leaf_body
from protocol.keys import parse_did_key
from protocol.mst.tree import MstError, build

KEPT_FINDINGS = 20
"""Findings reported for one repo; further ones are only counted."""

_WITHOUT_JSON_ONCE = (BodyReason.NOT_CANONICAL, BodyReason.INVALID_UTF8)

Row = tuple[bytes, bytes, bytes | None, bytes | None, str | None]
"""key, cid, json, raw, reason: a row of `sluice.record_row`."""


class FindingKind(StrEnum):
    """What differs."""

    ROOT = "root"
    BAD_CID = "bad_cid"
    RECORD = "record"
    JSON = "json"
    NO_BODY = "no_body"
    BAD_ROWS = "bad_rows"
    NO_COMMIT = "no_commit"
    COMMIT = "commit"
    SIGNATURE = "signature"
    NO_KEY = "no_key"
    PDS = "pds"


MEANING = {
    FindingKind.ROOT: "the rows do not rebuild the tree whose root the account signed",
    FindingKind.BAD_CID: "a row's cid is not a CID",
    FindingKind.RECORD: "a record's body does not hash to its cid",
    FindingKind.JSON: "a record's json differs from its raw block",
    FindingKind.NO_BODY: "a record has no body and no reason",
    FindingKind.BAD_ROWS: "the rows cannot be read as the leaves of a tree",
    FindingKind.NO_COMMIT: "there is no stored commit block",
    FindingKind.COMMIT: "the stored commit block is not the commit that the row names",
    FindingKind.SIGNATURE: "the account's key did not sign the stored commit",
    FindingKind.NO_KEY: "no usable signing key is known, not even from the DID document",
    FindingKind.PDS: "the account's PDS has another commit",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `detail` names what was expected and what was found."""

    did: str
    kind: FindingKind
    detail: str


@dataclass(frozen=True, slots=True)
class StoredHead:
    """The commit of a repo in `sync`, from its row. `block`: the signed bytes."""

    did: str
    rev: str
    data: str | None
    commit: str | None
    block: bytes | None
    signing_key: str | None


@dataclass(slots=True)
class RowAudit:
    """The result for one repo. `differing`: all findings, also those not kept. `without_body`: rows whose reason explains it.

    `unrooted`: a collection filter left out rows, so the root cannot be rebuilt.
    """

    did: str
    records: int = 0
    bodies: int = 0
    without_body: int = 0
    differing: int = 0
    unrooted: bool = False
    findings: list[Finding] = field(default_factory=list)

    def find(self, kind: FindingKind, detail: str) -> None:
        self.differing += 1
        if len(self.findings) < KEPT_FINDINGS:
            self.findings.append(Finding(self.did, kind, detail))


def check_rows(head: StoredHead, rows: Iterable[Row], *, bodies: bool = True, filtered: bool = False) -> RowAudit:
    """Rebuild the root from all rows of the repo, in key order; with `bodies`, hash every record again.

    `filtered`: a collection filter may have left out rows.
    """
    checked = RowAudit(head.did)
    try:
        root = cid_str(build(_leaves(rows, checked, bodies)))
    except MstError as err:
        checked.find(FindingKind.BAD_ROWS, str(err))
        return checked
    if root != head.data and filtered:
        checked.unrooted = True
    elif root != head.data:
        checked.find(FindingKind.ROOT, f"signed {head.data}, the {checked.records} rows give {root}")
    return checked


def check_commit(head: StoredHead, signing_key: str | None) -> list[Finding]:
    """Whether the stored block is the row's commit, with the row's DID, rev and data, signed by `signing_key` (did:key)."""
    if head.block is None or head.commit is None:
        return [Finding(head.did, FindingKind.NO_COMMIT, f"at rev {head.rev}")]
    found = dag_cbor_cid(head.block)
    if found != head.commit:
        return [Finding(head.did, FindingKind.COMMIT, f"the row names {head.commit}, the block is {found}")]
    commit = parse_commit(head.block)
    if isinstance(commit, CommitRejected):
        return [Finding(head.did, FindingKind.COMMIT, f"{commit.reason}: {commit.detail}")]
    stored = (commit.did, commit.rev, cid_str(commit.data))
    if stored != (head.did, head.rev, head.data):
        return [
            Finding(head.did, FindingKind.COMMIT, f"the row has rev {head.rev} data {head.data}, the commit {stored}")
        ]
    if signing_key is None or parse_did_key(signing_key) is None:
        return [Finding(head.did, FindingKind.NO_KEY, f"key {signing_key}")]
    if not verify_commit(commit, signing_key):
        return [Finding(head.did, FindingKind.SIGNATURE, f"commit {head.commit}, key {signing_key}")]
    return []


def _leaves(rows: Iterable[Row], checked: RowAudit, bodies: bool) -> Iterator[tuple[bytes, bytes]]:
    for row in rows:
        key, cid = row[0], row[1]
        checked.records += 1
        if bodies:
            _check_body(row, checked)
        if not is_any_cid(cid):
            checked.find(FindingKind.BAD_CID, f"{_path(key)}: {cid[:100]!r}")
            continue
        yield key, cid


def _check_body(row: Row, checked: RowAudit) -> None:
    key, stored, json, raw, reason = row
    if json is None and raw is None:
        if reason is None:
            checked.find(FindingKind.NO_BODY, _path(key))
        else:
            checked.without_body += 1
        return
    checked.bodies += 1
    try:
        cid = cid_str(stored)
        found = body_cid(json, raw, cid)
    except ValueError as err:
        checked.find(FindingKind.RECORD, f"{_path(key)}: {err}")
        return
    if found != cid:
        checked.find(FindingKind.RECORD, f"{_path(key)}: the row names {cid}, the body is {found}")
    elif raw is not None and not _as_derived(json, leaf_body(cid_bytes(cid), raw, BodyReason.MISSING_BLOCK)):
        checked.find(FindingKind.JSON, _path(key))


def _as_derived(stored: bytes | None, body: RecordBody) -> bool:
    """Whether the JSON follows from the raw block. Rows of release 0.1 have none if the block is not canonical DAG-CBOR."""
    return _same(stored, body.json) or (stored is None and body.reason in _WITHOUT_JSON_ONCE)


def _same(stored: bytes | None, derived: bytes | None) -> bool:
    if stored == derived or stored is None or derived is None:
        return stored == derived
    try:
        here: Any = msgspec.json.decode(stored)
        return bool(here == msgspec.json.decode(derived))
    except msgspec.DecodeError:
        return False


def _path(key: bytes) -> str:
    return key.decode() if key.isascii() else f"base64 {b64encode(key).decode()}"
