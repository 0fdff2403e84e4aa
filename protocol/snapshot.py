"""Verification of a fetched repo: CarIndex → Snapshot. Raises SnapshotRejected, and nothing else.

`opening` verifies everything before the first record is read: the root is a commit of the requested DID, not older than what is
known, signed by the account's key; its tree is complete and well-formed; every record block is present. It also limits the total
size of the records: a tree may name one block many times, so the size of the CAR is no limit. The content of record blocks is
not checked. A record with an invalid path, a block that is too large, or a CID of another kind loses only its body.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from protocol.car import CarIndex
from protocol.car_format import CarError, CarReason
from protocol.cid import cid_str, is_cid
from protocol.commit import CommitObject, CommitRejected, parse_commit, verify_commit
from protocol.encoding.record_json import BodyReason, leaf_body
from protocol.keys import parse_did_key
from protocol.mst.record_path import row_path
from protocol.mst.tree import MstError, MstReason, walk

KEPT_LEAVES = 20_000
"""Leaves that the first walk keeps at most. A larger repo is walked again, to bound memory."""
WALKED_LEAVES = 20_000
"""Leaves per step of the walk, about 50 ms."""
_WEIGHED_BLOCKS = 10_000
_WEIGHED_BYTES = 1 << 20  # of one step
_JSON_TIMES = 14  # an empty byte string: 0x40 → {"$bytes":""},


class SnapshotReason(StrEnum):
    """Why a snapshot was refused. `from_car_error` maps the reasons of a CAR."""

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
    """A snapshot was refused. `transient`: a later fetch may succeed; otherwise it fails until the host changes its repo."""

    def __init__(self, reason: SnapshotReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def transient(self) -> bool:
        return self.reason in _TRANSIENT


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """The commit of a snapshot. `commit`: its CID. `commit_block`: its bytes. `data`: the CID of the tree's root."""

    did: str
    rev: str
    commit: str
    commit_block: bytes
    data: str


@dataclass(frozen=True, slots=True)
class Limits:
    """`record_bytes`: of the blocks of all records, repeated ones each time. `records`: their number."""

    record_bytes: int = 2 << 30
    records: int = 4_000_000


class Snapshot:
    """A verified repo.

    `count`: number of records. `size`: bytes of their blocks, repeated ones each time. `bad_paths`: records with an invalid path.
    `bodiless`: records without a body for another reason.
    """

    __slots__ = ("_car", "_kept", "_root", "bad_paths", "bodiless", "count", "head", "size")

    def __init__(self, car: CarIndex, head: SnapshotHead, root: bytes) -> None:
        self.head = head
        self.count = 0
        self.size = 0
        self.bad_paths = 0
        self.bodiless = 0
        self._car = car
        self._root = root
        self._kept: list[tuple[str, str, bool, bytes]] | None = []

    def survey(self, limits: Limits) -> Iterator[None]:
        """Walk the whole tree in steps. Raises MstError if it is incomplete or malformed, and SnapshotTooLarge."""
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
                raise SnapshotTooLarge(
                    f"records of more than {limits.record_bytes} bytes (SLUICE_BACKFILL_MAX_CAR_BYTES)"
                )
            if self.count > limits.records:
                raise SnapshotTooLarge(f"more than {limits.records} records (SLUICE_BACKFILL_MAX_CAR_BYTES)")
            if self.count % WALKED_LEAVES == 0:
                yield
        if self.size > car.size:
            yield from self._weigh(limits.record_bytes)

    def _weigh(self, limit: int) -> Iterator[None]:
        """Check the size of the JSON if blocks are repeated: one byte of a block is at most 14 bytes of JSON."""
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
                raise SnapshotTooLarge(f"records of more than {limit} bytes of JSON (SLUICE_BACKFILL_MAX_CAR_BYTES)")
            if worked > _WEIGHED_BYTES:
                worked = 0
                yield

    def records(self) -> Iterator[tuple[str, str, bytes, bytes | None, BodyReason]]:
        """(collection, rkey, CID, block or None, reason if None) in key order. May be called again."""
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


class SnapshotTooLarge(Exception):
    """The records exceed a limit. The message names its setting."""


def opening(
    car: CarIndex,
    did: str,
    signing_key: str | None,
    min_rev: str | None = None,
    max_rev: str | None = None,
    *,
    limits: Limits | None = None,
) -> Iterator[Snapshot | None]:
    """Verify the repo in a finished CarIndex, in steps: yields None after each, and the snapshot at the end.

    `signing_key`: did:key of the account's #atproto method. `min_rev`: the highest rev known of the repo, None or empty if none
    is known. `max_rev`: a rev above it is from the future. Raises SnapshotRejected.
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
    snapshot = Snapshot(car, SnapshotHead(did, commit.rev, cid_str(root), block, cid_str(commit.data)), commit.data)
    try:
        yield from snapshot.survey(limits or Limits())
    except SnapshotTooLarge as large:
        raise SnapshotRejected(SnapshotReason.TOO_LARGE, str(large)) from large
    except MstError as err:
        missing = err.reason is MstReason.MISSING_BLOCK and err.cid not in car.oversized
        reason = SnapshotReason.MISSING_BLOCK if missing else SnapshotReason.BAD_MST
        raise SnapshotRejected(reason, str(err)) from err
    yield snapshot


def from_car_error(err: CarError) -> SnapshotRejected:
    """The rejection of a CAR that could not be indexed."""
    if err.reason is CarReason.TOO_MANY_BLOCKS:
        return SnapshotRejected(SnapshotReason.TOO_MANY_BLOCKS, f"{err.detail} (SLUICE_BACKFILL_MAX_CAR_BYTES)")
    if err.reason is CarReason.NOT_A_CAR:
        return SnapshotRejected(SnapshotReason.NOT_A_CAR, err.detail)
    truncated = err.reason is CarReason.TRUNCATED
    return SnapshotRejected(SnapshotReason.TRUNCATED if truncated else SnapshotReason.BAD_CAR, str(err))


def _check_commit(
    commit: CommitObject, did: str, signing_key: str | None, min_rev: str | None, max_rev: str | None
) -> None:
    if commit.did != did:
        raise SnapshotRejected(SnapshotReason.WRONG_DID, f"requested {did}, got {commit.did[:200]}")
    if min_rev and commit.rev < min_rev:
        raise SnapshotRejected(SnapshotReason.STALE, f"rev {commit.rev} is below {min_rev}")
    if max_rev and commit.rev > max_rev:
        raise SnapshotRejected(SnapshotReason.FUTURE_REV, f"rev {commit.rev} is above {max_rev}")
    if not signing_key or parse_did_key(signing_key) is None:
        raise SnapshotRejected(SnapshotReason.NO_KEY, f"no usable signing key: {signing_key}")
    if not verify_commit(commit, signing_key):
        raise SnapshotRejected(SnapshotReason.BAD_SIGNATURE, f"commit of rev {commit.rev}, key {signing_key}")
