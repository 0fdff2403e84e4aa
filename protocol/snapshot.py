"""A fetched repo, verified: CarIndex → Snapshot, or SnapshotRejected (and nothing else).

`opening` proves everything before the first record is given out: the root is a commit of the DID that was asked for, not
older than what is known, signed by the account's key, and its tree is whole and well-formed with every record block present.
It also knows how much the records come to: a tree may name one block many times, so the size of the CAR does not bound that.
What a record's block contains is not judged here. A path of bad syntax, a block that is too large to keep, and a CID by
another codec or hash function cost that record its body only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from protocol.car import CarIndex
from protocol.car_format import CarError, CarReason
from protocol.cid import cid_str, is_cid
from protocol.commit import Commit, CommitRejected, parse_commit, verify_commit
from protocol.encoding.record_json import BodyReason, leaf_body
from protocol.keys import parse_did_key
from protocol.mst.record_path import row_path
from protocol.mst.tree import MstError, MstReason, walk

KEPT_LEAVES = 20_000
"""Up to this many leaves the first walk is kept; a larger repo is walked again, so that memory stays bounded."""
WALKED_LEAVES = 20_000
"""Leaves of one step of the walk: some 50 ms."""
_WEIGHED_BLOCKS = 10_000
_WEIGHED_BYTES = 1 << 20  # of one step
_JSON_TIMES = 14  # an empty byte string: 0x40 → {"$bytes":""},


class SnapshotReason(StrEnum):
    """Why a snapshot was refused. Reasons of a CAR that was read badly are the fetcher's: see `from_car_error`."""

    BAD_CAR = "bad_car"
    NOT_A_CAR = "not_a_car"
    TOO_LARGE = "too_large"
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


_TRANSIENT = frozenset(
    {SnapshotReason.NOT_A_CAR, SnapshotReason.TRUNCATED, SnapshotReason.MISSING_BLOCK, SnapshotReason.STALE}
)


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


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what a tree may name: the bytes of its records, each counted as often as it is named, and their number."""

    record_bytes: int = 2 << 30
    records: int = 4_000_000


class Snapshot:
    """A verified repo. `count`: records that `records()` gives; `size`: bytes of their blocks, each as often as it is named;
    `bad_paths`: how many have a path of bad syntax, `bodiless`: how many have no body for another reason."""

    __slots__ = ("_car", "_kept", "_root", "bad_paths", "bodiless", "count", "head", "size")

    def __init__(self, car: CarIndex, head: Head, root: bytes) -> None:
        self.head = head
        self.count = 0
        self.size = 0
        self.bad_paths = 0
        self.bodiless = 0
        self._car = car
        self._root = root
        self._kept: list[tuple[str, str, bool, bytes]] | None = []

    def survey(self, limits: Limits) -> Iterator[None]:
        """Walk the whole tree, some leaves a step. Raises MstError where it is not whole or not well-formed, TooLarge."""
        car = self._car
        for path, cid in walk(self._root, car.get):
            size = car.size_of(cid)
            if size is not None:
                self.size += size
            elif cid in car or not is_cid(cid):
                self.bodiless += 1
            else:
                raise MstError(MstReason.MISSING_BLOCK, cid, path)
            collection, rkey, valid = row_path(path)
            self.count += 1
            self.bad_paths += not valid
            if self._kept is not None:
                self._kept.append((collection, rkey, valid, cid))
                if self.count > KEPT_LEAVES:
                    self._kept = None
            if self.size > limits.record_bytes:
                raise TooLarge(f"records of more than {limits.record_bytes} bytes (SLUICE_BACKFILL_MAX_CAR_BYTES)")
            if self.count > limits.records:
                raise TooLarge(f"more than {limits.records} records (SLUICE_BACKFILL_MAX_CAR_BLOCKS)")
            if self.count % WALKED_LEAVES == 0:
                yield
        if self.size > car.size:
            yield from self._weigh(limits.record_bytes)

    def _weigh(self, limit: int) -> Iterator[None]:
        """Where blocks are named many times, their JSON has to fit as well: a byte of a record is at most 14 of it."""
        weights: dict[bytes, int] = {}
        total = worked = 0
        for _, _, valid, cid in self._leaves():
            block = self._car.get(cid) if valid and cid not in weights else None
            if block is not None and len(weights) < _WEIGHED_BLOCKS:
                weights[cid] = leaf_body(cid, block, BodyReason.TOO_LARGE).size
                worked += len(block)
            elif block is not None:
                total += _JSON_TIMES * len(block)
            total += weights.get(cid, 0) if valid else 0
            worked += 50
            if total > limit:
                raise TooLarge(f"records of more than {limit} bytes of JSON (SLUICE_BACKFILL_MAX_CAR_BYTES)")
            if worked > _WEIGHED_BYTES:
                worked = 0
                yield

    def records(self) -> Iterator[tuple[str, str, bytes, bytes | None, BodyReason]]:
        """(collection, rkey, CID, block, why there is none) in key order; may be called again."""
        get = self._car.get
        for collection, rkey, valid, cid in self._leaves():
            block = get(cid) if valid else None
            if valid and block is None and cid not in self._car and is_cid(cid):
                raise RuntimeError(f"the index lost block {cid_str(cid)}")
            yield collection, rkey, cid, block, BodyReason.TOO_LARGE if valid else BodyReason.BAD_PATH

    def _leaves(self) -> Iterator[tuple[str, str, bool, bytes]]:
        if self._kept is not None:
            yield from self._kept
            return
        for path, cid in walk(self._root, self._car.get):
            yield *row_path(path), cid


class TooLarge(Exception):
    """The records come to more than is allowed; the message names the setting."""


def opening(
    car: CarIndex,
    did: str,
    signing_key: str | None,
    min_rev: str | None = None,
    max_rev: str | None = None,
    *,
    limits: Limits | None = None,
) -> Iterator[Snapshot | None]:
    """Verify the repo in a finished CarIndex, some leaves a step: None until it is done, then the snapshot.

    `signing_key`: did:key of the account's #atproto method. `min_rev`: the highest rev known of the repo, None or empty
    if none is. `max_rev`: revs above it are from the future (the caller knows the time). Raises SnapshotRejected.
    """
    root = car.root
    block = car.get(root) if root is not None else None
    if root is None or block is None:
        if root in car.oversized:
            raise SnapshotRejected(SnapshotReason.BAD_COMMIT, f"a commit of {car.oversized[root]} bytes")
        raise SnapshotRejected(SnapshotReason.MISSING_BLOCK, "the commit is not in the CAR")
    commit = parse_commit(block)
    if isinstance(commit, CommitRejected):
        raise SnapshotRejected(SnapshotReason.BAD_COMMIT, f"{commit.reason}: {commit.detail}")
    _check_commit(commit, did, signing_key, min_rev, max_rev)
    snapshot = Snapshot(car, Head(did, commit.rev, cid_str(root), block, cid_str(commit.data)), commit.data)
    try:
        yield from snapshot.survey(limits or Limits())
    except TooLarge as err:
        raise SnapshotRejected(SnapshotReason.TOO_LARGE, str(err)) from err
    except MstError as err:
        missing = err.reason is MstReason.MISSING_BLOCK and err.cid not in car.oversized
        reason = SnapshotReason.MISSING_BLOCK if missing else SnapshotReason.BAD_MST
        raise SnapshotRejected(reason, str(err)) from err
    yield snapshot


def open_snapshot(
    car: CarIndex, did: str, signing_key: str | None, min_rev: str | None = None, max_rev: str | None = None
) -> Snapshot:
    """`opening` in one go. Raises SnapshotRejected."""
    *_, snapshot = opening(car, did, signing_key, min_rev, max_rev)
    assert snapshot is not None  # noqa: S101  # the last one
    return snapshot


def from_car_error(err: CarError) -> SnapshotRejected:
    """The verdict on a CAR that could not be indexed."""
    if err.reason is CarReason.TOO_MANY_BLOCKS:
        return SnapshotRejected(SnapshotReason.TOO_MANY_BLOCKS, f"{err.detail} (SLUICE_BACKFILL_MAX_CAR_BLOCKS)")
    if err.reason is CarReason.NOT_A_CAR:
        return SnapshotRejected(SnapshotReason.NOT_A_CAR, err.detail)
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
