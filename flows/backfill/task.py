"""The snapshot of one claimed repo: verification and encoding, in bounded steps on the flow's thread.

One repo may be a thousand times larger than the next, so `advance_verification()` and `next_chunk()` each do a piece that
is bounded in bytes and time; `slices.py` calls them until `finished`. The result goes back to the repo's pipeline: None
(written, or the claim was lost) or the SnapshotRejected.

A fenced task, whose claim was lost, ends at its next step. A `heavy` task (a large CAR, or a small one that expands)
makes no messages before it is `chosen`: only one of them at a time is in memory as more than its CAR.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from connectors.atproto.pds import Download
from connectors.atproto.spool import SpoolFull
from connectors.postgres.repo_queue import Claim
from connectors.runtime import metrics
from flows.backfill.encode import Attempt, create_messages, synced_outcome, unavailable_outcome
from protocol.car_format import CarError
from protocol.did_document import ResolvedIdentity
from protocol.snapshot import Limits, Snapshot, SnapshotRejected, from_car_error, opening
from protocol.syntax import FUTURE_MICROS, tid_from_micros
from schemas.topics import MAX_VALUE_BYTES
from steps.retry import Unavailable

SLICE_RECORDS = 1000
SLICE_BYTES = 4 * 1024 * 1024  # of JSON
SLICE_SECONDS = 0.1  # for records that are slow to decode
HEAVY_BYTES = 32 * 1024 * 1024  # of records
HEAVY_BLOCKS = 80_000  # about 16 MB of index

Result = SnapshotRejected | None


@dataclass(frozen=True, slots=True)
class MessageChunk:
    """Messages of one task, in order. `closes`: the last of them is the attempt's outcome."""

    task: "SnapshotTask"
    values: list[bytes]
    closes: bool

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum(map(len, self.values))


_slices = count()


class SnapshotTask:
    """A claim with what was fetched for it: a download, or the account's state (`unavailable`)."""

    __slots__ = (
        "_blocks",
        "_limits",
        "_on_result",
        "_opening",
        "_snapshot",
        "_values",
        "attempt",
        "chosen",
        "claim",
        "download",
        "fenced",
        "finished",
        "min_rev",
        "newest_slice",
        "unavailable",
    )

    def __init__(
        self,
        claim: Claim,
        min_rev: str,
        *,
        identity: ResolvedIdentity | None,
        fetched: Download | Unavailable,
        at: str,
        on_result: Callable[[Result], None],
        limits: Limits | None = None,
    ) -> None:
        self.claim = claim
        self.min_rev = min_rev
        self.download = fetched if isinstance(fetched, Download) else None
        self.unavailable = fetched if isinstance(fetched, Unavailable) else None
        self.attempt = Attempt(
            did=claim.did,
            number=claim.attempt,
            time=at,
            account_time=claim.account_time,
            account_seq=claim.account_seq,
            account_relay=claim.account_relay,
            account_seen=claim.account_seen,
            host=identity.pds if identity else claim.host,
            handle=identity.handle if identity else None,
            signing_key=identity.signing_key if identity else None,
        )
        self.fenced = False
        self.finished = False
        self.chosen = False
        self.newest_slice = next(_slices)  # ordinal; the scheduler serves the lowest first
        self._blocks = 0
        self._on_result = on_result
        self._limits = limits
        self._opening: Iterator[Snapshot | None] | None = None
        self._snapshot: Snapshot | None = None
        self._values: Iterator[bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes that were fetched."""
        return self.download.spool.size if self.download else 0

    @property
    def large(self) -> bool:
        """Whether the CAR is on disk."""
        return self.download is not None and self.download.spool.on_disk

    @property
    def heavy(self) -> bool:
        """Whether it takes much memory or many slices; for a small CAR only known once it is indexed or verified."""
        much = self._snapshot is not None and self._snapshot.size > HEAVY_BYTES
        return self.large or self.chosen or much or self._blocks > HEAVY_BLOCKS

    def park(self) -> None:
        """Keep only the CAR's bytes, on disk if there is room, until the task is chosen and verified again."""
        self._snapshot = self._values = self._opening = None
        if self.download is not None:
            with suppress(SpoolFull):
                self.download.spool.spill()

    def advance_verification(self) -> bool:
        """One step of the verification; True once `next_chunk` may be called. A rejection finishes the task."""
        if self.finished:
            return False
        if self.fenced:
            self.finish(None)
            return False
        if self.download is None or self._snapshot is not None:
            return self.chosen or not self.heavy
        try:
            self._snapshot = self._open(self.download)
        except SnapshotRejected as err:
            self.finish(err)
        except CarError as err:
            self.finish(from_car_error(err))
        return self._snapshot is not None and (self.chosen or not self.heavy)

    def next_chunk(self, room: int = SLICE_BYTES) -> MessageChunk:
        """The next messages of a verified task, the outcome last. At most one message goes beyond `room`, in bytes."""
        self.newest_slice = next(_slices)
        if self._snapshot is None:
            assert self.unavailable is not None  # noqa: S101  # a task has one of the two
            self.finished = True
            return MessageChunk(
                self,
                [unavailable_outcome(self.attempt, self.unavailable.status, deleted=self.unavailable.deleted)],
                closes=True,
            )
        if self._values is None:
            self._values = create_messages(self._snapshot, self.attempt, MAX_VALUE_BYTES)
        values: list[bytes] = []
        size, deadline = 0, time.monotonic() + SLICE_SECONDS
        for value in self._values:
            values.append(value)
            size += len(value)
            if size > room or len(values) == SLICE_RECORDS or time.monotonic() > deadline:
                return MessageChunk(self, values, closes=False)
        values.append(synced_outcome(self._snapshot.head, self.attempt, self._snapshot.count))
        metrics.RECORDS_EXTRACTED.inc(self._snapshot.count)
        if self._snapshot.bad_paths:
            metrics.REJECTED.labels("backfill", "bad_path").inc(self._snapshot.bad_paths)
        self.finished = True
        return MessageChunk(self, values, closes=True)

    def finish(self, result: Result) -> None:
        """End the task: free its memory and disk space, and report the result to its pipeline."""
        self.finished = True
        self._snapshot = self._values = self._opening = None
        if self.download is not None:
            self.download.spool.close()
        self._on_result(result)

    def _open(self, download: Download) -> Snapshot | None:
        if self._opening is None:
            self._opening = self._steps(download)
        return next(self._opening)

    def _steps(self, download: Download) -> Iterator[Snapshot | None]:
        for index in download.spool.index():
            if index is None:
                yield None
                continue
            self._blocks = len(index)
            newest = tid_from_micros(int(time.time() * 1_000_000) + FUTURE_MICROS)
            did, key = self.claim.did, self.attempt.signing_key
            yield from opening(index, did, key, self.min_rev or None, newest, limits=self._limits)
