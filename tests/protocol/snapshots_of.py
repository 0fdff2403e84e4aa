"""A small repo as a CAR, opened as a snapshot or refused."""

import pytest

from protocol.car import index_bytes
from protocol.snapshot import (
    Snapshot,
    SnapshotRejected,
)
from tests.support.opened_snapshot import open_snapshot
from tests.support.tiny_repo import DID, Repo, sample

REPO = sample(120)


def opened(repo: Repo, data: bytes | None = None, min_rev: str | None = None, **changes: str | None) -> Snapshot:
    arguments = {"did": DID, "signing_key": repo.key.did_key, "min_rev": min_rev} | changes
    return open_snapshot(index_bytes(repo.car() if data is None else data), **arguments)


def refused(repo: Repo, data: bytes | None = None, **changes: str | None) -> SnapshotRejected:
    with pytest.raises(SnapshotRejected) as caught:
        opened(repo, data, **changes)
    return caught.value
