"""Audit of one repo: its rows in key order and its stored commit → what they prove, as counts and typed findings.

Never raises on what a table holds. The root is rebuilt from (key, CID) of every row; a body is encoded again and hashed. A
row may lack its body only with a reason. The signature is checked by `check_commit` under the key that it is given.
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from protocol.cid import any_cid_bytes, cid_bytes, cid_str, dag_cbor_cid
from protocol.commit import CommitRejected, parse_commit, verify_commit
from protocol.encoding.record_json import BodyReason, RecordBody, body_cid, leaf_body
from protocol.keys import parse_did_key
from protocol.mst.tree import MstError, build

KEPT_FINDINGS = 20
"""Findings of one repo that are told one by one; the others are counted."""

_WITHOUT_JSON_ONCE = (BodyReason.NOT_CANONICAL, BodyReason.INVALID_UTF8)

Row = tuple[bytes, str, bytes | None, bytes | None, str | None]
"""key, cid, json, raw, reason: a row of `sluice.record`."""


class Kind(StrEnum):
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
    Kind.ROOT: "the rows do not rebuild the tree whose root the account signed",
    Kind.BAD_CID: "a row's cid is none",
    Kind.RECORD: "a record's body does not hash to its cid",
    Kind.JSON: "a record's json is not what its raw block says",
    Kind.NO_BODY: "a record has no body, and no reason why",
    Kind.BAD_ROWS: "the rows cannot be read as the leaves of a tree",
    Kind.NO_COMMIT: "there is no stored commit block",
    Kind.COMMIT: "the stored commit block is not the commit that the row names",
    Kind.SIGNATURE: "the account's key did not sign the stored commit",
    Kind.NO_KEY: "no usable signing key is known, also not from the DID document",
    Kind.PDS: "the account's PDS stands at another commit",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `detail` says what was expected and what was found."""

    did: str
    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Head:
    """What the row of a repo in `sync` says of its commit. `block`: the bytes that were signed."""

    did: str
    rev: str
    data: str | None
    commit: str | None
    block: bytes | None
    signing_key: str | None


@dataclass(slots=True)
class Checked:
    """What a repo's rows proved. `differing`: findings, also those that were not kept. `without_body`: with a reason.

    `unrooted`: rows that a collection filter thinned out do not rebuild the root, so they prove nothing of the tree.
    """

    did: str
    records: int = 0
    bodies: int = 0
    without_body: int = 0
    differing: int = 0
    unrooted: bool = False
    findings: list[Finding] = field(default_factory=list)

    def find(self, kind: Kind, detail: str) -> None:
        self.differing += 1
        if len(self.findings) < KEPT_FINDINGS:
            self.findings.append(Finding(self.did, kind, detail))


def check_rows(head: Head, rows: Iterable[Row], *, bodies: bool = True, filtered: bool = False) -> Checked:
    """Rebuild the root from all rows of the repo, in key order, and (with `bodies`) hash every record again.

    `filtered`: rows may be missing on purpose.
    """
    checked = Checked(head.did)
    try:
        root = cid_str(build(_leaves(rows, checked, bodies)))
    except MstError as err:
        checked.find(Kind.BAD_ROWS, str(err))
        return checked
    if root != head.data and filtered:
        checked.unrooted = True
    elif root != head.data:
        checked.find(Kind.ROOT, f"signed {head.data}, the {checked.records} rows give {root}")
    return checked


def check_commit(head: Head, signing_key: str | None) -> list[Finding]:
    """The stored commit block: it is `commit`, says what the row says, and `signing_key` (did:key) signed it."""
    if head.block is None or head.commit is None:
        return [Finding(head.did, Kind.NO_COMMIT, f"at rev {head.rev}")]
    found = dag_cbor_cid(head.block)
    if found != head.commit:
        return [Finding(head.did, Kind.COMMIT, f"the row names {head.commit}, the block is {found}")]
    commit = parse_commit(head.block)
    if isinstance(commit, CommitRejected):
        return [Finding(head.did, Kind.COMMIT, f"{commit.reason}: {commit.detail}")]
    said = (commit.did, commit.rev, cid_str(commit.data))
    if said != (head.did, head.rev, head.data):
        return [Finding(head.did, Kind.COMMIT, f"the row says rev {head.rev} data {head.data}, the commit {said}")]
    if signing_key is None or parse_did_key(signing_key) is None:
        return [Finding(head.did, Kind.NO_KEY, f"key {signing_key}")]
    if not verify_commit(commit, signing_key):
        return [Finding(head.did, Kind.SIGNATURE, f"commit {head.commit}, key {signing_key}")]
    return []


def _leaves(rows: Iterable[Row], checked: Checked, bodies: bool) -> Iterator[tuple[bytes, bytes]]:
    for row in rows:
        key, cid = row[0], row[1]
        checked.records += 1
        if bodies:
            _check_body(row, checked)
        try:
            value = any_cid_bytes(cid)
        except ValueError:
            checked.find(Kind.BAD_CID, f"{_path(key)}: {cid[:100]}")
            continue
        yield key, value


def _check_body(row: Row, checked: Checked) -> None:
    key, cid, json, raw, reason = row
    if json is None and raw is None:
        if reason is None:
            checked.find(Kind.NO_BODY, _path(key))
        else:
            checked.without_body += 1
        return
    checked.bodies += 1
    try:
        found = body_cid(json, raw, cid)
    except ValueError as err:
        checked.find(Kind.RECORD, f"{_path(key)}: {err}")
        return
    if found != cid:
        checked.find(Kind.RECORD, f"{_path(key)}: named {cid}, the body is {found}")
    elif raw is not None and not _as_derived(json, leaf_body(cid_bytes(cid), raw, BodyReason.MISSING_BLOCK)):
        checked.find(Kind.JSON, _path(key))


def _as_derived(stored: bytes | None, body: RecordBody) -> bool:
    """Whether the JSON is what the raw block gives. A row of 0.1 has none where the block is no canonical DAG-CBOR."""
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
