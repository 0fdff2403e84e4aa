"""A snapshot opened in one go, for tests; the backfill does it in steps."""

from protocol.car import CarIndex
from protocol.snapshot import Snapshot, opening


def open_snapshot(
    car: CarIndex, did: str, signing_key: str | None, min_rev: str | None = None, max_rev: str | None = None
) -> Snapshot:
    """`opening` without steps. Raises SnapshotRejected."""
    *_, snapshot = opening(car, did, signing_key, min_rev, max_rev)
    assert snapshot is not None
    return snapshot
