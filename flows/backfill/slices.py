"""Time slices of the flow's thread: which tasks are verified and encoded next, and how much of each.

Small tasks are open side by side, up to a number of bytes. Of the heavy ones a single task is open at a time, beside the
small ones: it is either a CAR on disk, or a small CAR that expanded and was parked. The least recently served task comes
first, so that none starves if one round has no room for all.
"""

from collections.abc import Iterator

from connectors.runtime.background_loop import Handover
from flows.backfill.task import MessageChunk, SnapshotTask

BATCH_BYTES = 8 * 1024 * 1024  # of messages in one round; one message may go beyond
LEAST_SHARE_BYTES = 256 * 1024
OPEN_CAR_BYTES = 1536 * 1024  # CARs open at the same time: about 4,000 records
MOST_COUNTED_BYTES = 384 * 1024  # as which a larger CAR counts
TASK_BYTES = 1024  # of a task beside its CAR
SMALL_WAITING_BYTES = 2 * 1024 * 1024  # CARs queued for the flow. Live events of their repos are buffered meanwhile
LARGE_WAITING = 2


class TimeSlices:
    """Used by the flow's thread; the pipelines put their tasks into `small` and `large`."""

    def __init__(self, waiting_bytes: int = SMALL_WAITING_BYTES) -> None:
        self.small: Handover[SnapshotTask] = Handover(waiting_bytes, lambda task: task.size + TASK_BYTES)
        self.large: Handover[SnapshotTask] = Handover(LARGE_WAITING)
        self._open: list[SnapshotTask] = []
        self._heavy: SnapshotTask | None = None
        self._parked: list[SnapshotTask] = []
        self._parked_last = False  # the newest heavy task was a parked one: `large` is next

    @property
    def busy(self) -> bool:
        """Whether a task is open."""
        return bool(self._open or self._parked) or (self._heavy is not None and not self._heavy.finished)

    @property
    def empty(self) -> bool:
        """Whether no task is open or queued."""
        return not (self.busy or self.small or self.large)

    def next_chunks(self) -> list[MessageChunk]:
        """One round: a step of every open task, and the messages of those that are verified."""
        self._open = [task for task in self._open if not task.finished]
        self._park()
        self._choose_heavy()
        self._admit_small()
        heavy = [self._heavy] if self._heavy is not None else []
        tasks = sorted(self._open + heavy, key=lambda task: task.newest_slice)
        return list(chunks_of([task for task in tasks if task.advance_verification()]))

    def _park(self) -> None:
        """Take heavy tasks out of the small ones; drop parked tasks whose claim was lost."""
        for task in [task for task in self._open if task.heavy]:
            self._open.remove(task)
            task.park()
            self._parked.append(task)
        for task in [task for task in self._parked if task.fenced]:
            self._parked.remove(task)
            task.finish(None)

    def _choose_heavy(self) -> None:
        """The next heavy task, alternately from `large` and from the parked ones."""
        if self._heavy is not None and not self._heavy.finished:
            return
        self._heavy = None
        for parked in (False, True) if self._parked_last else (True, False):
            taken = self._unpark() if parked else self.large.take(1)
            if taken:
                self._heavy, self._parked_last = taken[0], parked
                self._heavy.chosen = True
                return

    def _unpark(self) -> list[SnapshotTask]:
        taken, self._parked = self._parked[:1], self._parked[1:]
        return taken

    def _admit_small(self) -> None:
        size = sum(map(_counted_bytes, self._open))
        while size < OPEN_CAR_BYTES and (taken := self.small.take(1)):
            self._open += taken
            size += _counted_bytes(taken[0])


def chunks_of(tasks: list[SnapshotTask]) -> Iterator[MessageChunk]:
    """The next chunk of each verified task, while the round has room. The rest comes first in the next round."""
    left, share = BATCH_BYTES, max(LEAST_SHARE_BYTES, BATCH_BYTES // max(1, len(tasks)))
    for task in tasks:
        if left <= 0:
            return
        chunk = task.next_chunk(min(left, share))
        left -= chunk.size
        yield chunk


def _counted_bytes(task: SnapshotTask) -> int:
    return min(task.size, MOST_COUNTED_BYTES) + TASK_BYTES
