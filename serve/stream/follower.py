"""The live stream: one thread reads the end of the log for all clients, and extends the sequence (`steps/sequence.py`).

Every replica writes marks. The one whose mark counted last writes at once, the others wait for WAIT_SECONDS first; so there
is mostly one writer, and another one takes over when it ends. While the broker does not answer, it is asked again from the last mark
on, and clients keep their connections.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from connectors.kafka.log import LogUnavailable
from connectors.kafka.producer import LogProducer
from connectors.runtime import metrics
from connectors.runtime.errors import one_line
from connectors.runtime.health import Health
from connectors.runtime.worker_thread import WorkerThread
from schemas.settings import Settings
from serve.stream.events import StreamEvent, events
from serve.stream.log_reader import LogReader, OutOfRange
from serve.stream.marks import StoredMark, log_range, opened, write
from serve.stream.ring import Ring
from steps.sequence import LogMark, advance, replaced, restart

READ_SECONDS = 0.5
"""The longest wait for a message; it ends when one comes."""
WAIT_SECONDS = 0.03
LOST_SECONDS = 2.0
"""A mark that is not read back in this time is written again."""
AGAIN_SECONDS = 1.0

log = logging.getLogger("serve")


class Follower:
    """Fills the ring of an event loop. `start`, `check` and `stop` as of WorkerThread."""

    def __init__(self, settings: Settings, health: Health, ring: Ring, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._health = health
        self._ring = ring
        self._loop = loop
        self._producer = LogProducer(settings)
        self._at: StoredMark | None = None  # the last mark whose events are in the ring
        self._written: tuple[int, LogMark] | None = None  # offset before it, and the mark
        self._due = 0.0
        self._wait = WAIT_SECONDS * (1 + random.random())  # noqa: S311 - so that not all others write at once
        self.worker = WorkerThread("follower", self._run)

    def _run(self) -> None:
        while not self.worker.stopping:
            try:
                self._follow()
            except OutOfRange as err:
                log.warning("the log was replaced; the stream continues with the new one", extra={"error": str(err)})
                self._at = None
                self._in_loop(self._ring.clear)
            except LogUnavailable as err:
                self._health.report("failing", one_line(err))
                self.worker.wait(AGAIN_SECONDS)

    def _follow(self) -> None:
        """Read until stopped. Raises LogUnavailable and OutOfRange."""
        self._at = self._at or self._begin()
        reader = LogReader(self._settings, self._at, "live", log_range(self._settings)[0])
        self._publish([], self._at)
        patience = 0.0
        try:
            while not self.worker.wait(0):
                messages = reader.read(patience)
                if reader.newest.offset != self._at.offset:
                    self._due = 0.0 if self._is_ours(reader) else time.monotonic() + self._wait
                    self._publish(list(events(messages)), reader.newest)
                patience = self._extend(reader)
                self._health.report("working")  # not idle between two messages: each change is a line of the log
                self._health.progressed()
        finally:
            reader.close()

    def _begin(self) -> StoredMark:
        """The newest mark; a new log gets its first one. Raises LogUnavailable."""
        while True:
            with opened(self._settings) as marks:
                newest, last = marks.newest(), marks.end - 1
            starts, ends = log_range(self._settings)
            if newest is not None and not replaced(newest.mark, ends):
                return newest
            write(self._producer, last, restart(newest.mark if newest else None, starts, _now()))

    def _is_ours(self, reader: LogReader) -> bool:
        return self._written is not None and self._written[1] == reader.newest.mark

    def _publish(self, found: list[StreamEvent], newest: StoredMark) -> None:
        self._at = newest
        metrics.SERVE_SEQ.set(newest.mark.seq)
        self._in_loop(self._ring.extend, found, newest.mark)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)

    def _extend(self, reader: LogReader) -> float:
        """Write a mark if there are new messages, it is our turn, and no mark of ours is under way.

        Returns the longest useful wait for the next message, in seconds.
        """
        now = time.monotonic()
        if now < self._due:
            return min(self._due - now, READ_SECONDS)
        after = reader.sequence_next - 1
        if self._written is not None and self._written[0] == after and now < self._due + LOST_SECONDS:
            return READ_SECONDS
        mark = advance(reader.last_read.mark, reader.seen, _now())
        if mark is not None:
            write(self._producer, after, mark)
            self._written, self._due = (after, mark), now
        return READ_SECONDS


def _now() -> int:
    return time.time_ns() // 1000
