"""A fetched repo, verified: CarIndex → Snapshot, or SnapshotRejected (and nothing else).

`open_snapshot` proves everything before the first record is given out: the root is a commit of the DID that was asked
for, not older than what is known, signed by the account's key, and its tree is whole and well-formed with every record
block present. What a record's block contains is not judged here; a path of bad syntax costs that record its body only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from steps.car import CarError, CarIndex, CarReason
from steps.cid import cid_str
from steps.commit import Commit, CommitRejected, parse_commit, verify_commit
from steps.keys import parse_did_key
from steps.mst import MstError, MstReason, walk
from steps.paths import row_path

KEPT_LEAVES = 20_000
"""Up to this many leaves the first walk is kept; a larger repo is walked again, so that memory stays bounded."""


class SnapshotReason(StrEnum):
    """Why a snapshot was refused. Reasons of a CAR that was read badly are the fetcher's: see `from_car_error`."""

    BAD_CAR = "bad_car"
    TOO_MANY_BLOCKS = "too_many_blocks"
    TRUNCATED = "truncated"
    MISSING_BLOCK = "missing_block"
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    STALE = "stale"
    FUTURE_REV = "future_rev"
    NO_KEY = "no_key"
    BAD_SIGNATURE = "bad_signature"
    BAD_MST = "bad_mst"


_TRANSIENT = frozenset({SnapshotReason.TRUNCATED, SnapshotReason.MISSING_BLOCK, SnapshotReason.STALE})


class SnapshotRejected(Exception):
    """`transient`: a later fetch may well be fine; the others are what the host believes, and change only if it does."""

    def __init__(self, reason: SnapshotReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def transient(self) -> bool:
        return self.reason in _TRANSIENT


@dataclass(frozen=True, slots=True)
class Head:
    """The commit of a snapshot: `commit` its CID, `commit_block` its bytes, `data` the CID of the tree's root."""

    did: str
    rev: str
    commit: str
    commit_block: bytes
    data: str


class Snapshot:
    """A verified repo. `count` is the number of records that `records()` gives, `bad_paths` how many of them have a path of
    bad syntax."""

    __slots__ = ("_car", "_kept", "_root", "bad_paths", "count", "head")

    def __init__(self, car: CarIndex, head: Head, root: bytes) -> None:
        """Walks the whole tree; MstError where it is not whole or not well-formed."""
        self.head = head
        self.count = 0
        self.bad_paths = 0
        self._car = car
        self._root = root
        self._kept: list[tuple[str, str, bool, bytes]] | None = []
        for path, cid in walk(root, car.get):
            if cid not in car:
                raise MstError(MstReason.MISSING_BLOCK, cid, path)
            collection, rkey, valid = row_path(path)
            self.count += 1
            self.bad_paths += not valid
            if self._kept is not None:
                self._kept.append((collection, rkey, valid, cid))
                if self.count > KEPT_LEAVES:
                    self._kept = None

    def records(self) -> Iterator[tuple[str, str, str, bytes | None]]:
        """(collection, rkey, CID, block) in key order; may be called again. No block: the path is none of a record."""
        get = self._car.get
        for collection, rkey, valid, cid in self._leaves() if self._kept is None else self._kept:
            block = get(cid)
            if block is None:
                raise RuntimeError(f"the index lost block {cid_str(cid)}")
            yield collection, rkey, cid_str(cid), block if valid else None

    def _leaves(self) -> Iterator[tuple[str, str, bool, bytes]]:
        for path, cid in walk(self._root, self._car.get):
            yield *row_path(path), cid


def open_snapshot(
    car: CarIndex, did: str, signing_key: str | None, min_rev: str | None = None, max_rev: str | None = None
) -> Snapshot:
    """Verify the repo in a finished CarIndex.

    `signing_key`: did:key of the account's #atproto method. `min_rev`: the highest rev known of the repo, None or empty
    if none is. `max_rev`: revs above it are from the future (the caller knows the time). Raises SnapshotRejected.
    """
    root = car.root
    block = car.get(root) if root is not None else None
    if root is None or block is None:
        raise SnapshotRejected(SnapshotReason.MISSING_BLOCK, "the commit is not in the CAR")
    commit = parse_commit(block)
    if isinstance(commit, CommitRejected):
        raise SnapshotRejected(SnapshotReason.BAD_COMMIT, f"{commit.reason}: {commit.detail}")
    _check_commit(commit, did, signing_key, min_rev, max_rev)
    head = Head(did, commit.rev, cid_str(root), block, cid_str(commit.data))
    try:
        return Snapshot(car, head, commit.data)
    except MstError as err:
        missing = err.reason is MstReason.MISSING_BLOCK
        reason = SnapshotReason.MISSING_BLOCK if missing else SnapshotReason.BAD_MST
        raise SnapshotRejected(reason, str(err)) from err


def from_car_error(err: CarError) -> SnapshotRejected:
    """The verdict on a CAR that could not be indexed."""
    if err.reason is CarReason.TOO_MANY_BLOCKS:
        return SnapshotRejected(SnapshotReason.TOO_MANY_BLOCKS, f"{err.detail} (SLUICE_CAR_MAX_BLOCKS)")
    truncated = err.reason is CarReason.TRUNCATED
    return SnapshotRejected(SnapshotReason.TRUNCATED if truncated else SnapshotReason.BAD_CAR, str(err))


def _check_commit(commit: Commit, did: str, signing_key: str | None, min_rev: str | None, max_rev: str | None) -> None:
    if commit.did != did:
        raise SnapshotRejected(SnapshotReason.WRONG_DID, f"asked for {did}, got {commit.did[:200]}")
    if min_rev and commit.rev < min_rev:
        raise SnapshotRejected(SnapshotReason.STALE, f"rev {commit.rev} is below {min_rev}")
    if max_rev and commit.rev > max_rev:
        raise SnapshotRejected(SnapshotReason.FUTURE_REV, f"rev {commit.rev} is above {max_rev}")
    if not signing_key or parse_did_key(signing_key) is None:
        raise SnapshotRejected(SnapshotReason.NO_KEY, f"no usable signing key: {signing_key}")
    if not verify_commit(commit, signing_key):
        raise SnapshotRejected(SnapshotReason.BAD_SIGNATURE, f"commit of rev {commit.rev}, key {signing_key}")
