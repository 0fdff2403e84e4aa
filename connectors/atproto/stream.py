"""Event streams over websockets: the source that the firehose and the labelers share.

One process reads many upstreams. `stream_sockets.Sockets` reads them in a background loop; `poll` takes frames from its queue.
An upstream's position is the last seq that the flow's `cursor` step has seen (`steps.cursor.Cursors`). It is stored after the
log has acknowledged the messages up to it, so a restart continues after the last durable frame.
"""

import time
from collections.abc import Mapping, Sequence

from typing_extensions import override

from connectors.atproto.deferred_events import DeferralStatus
from connectors.atproto.stream_sockets import QUEUE_UNIT_BYTES, WAKE, Frame, Sockets
from connectors.kafka.back_pressure import HighWater
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime import metrics
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from protocol.encoding.timestamps import from_unix
from protocol.event_stream import position
from schemas.settings import Settings
from steps.cursor import Cursors, Gap
from steps.shares import WHOLE, Share

POLL_FRAMES = 3000
POLL_BYTES = 6 * 1024 * 1024  # of frames in one batch; their messages are at most about 16 times as large
IDLE_AFTER_SECONDS = 1.0
DRAIN_SECONDS = 5.0  # for deferred events at a stop; longer than the time limit of an untrusted host
TOUCH_SECONDS = 5.0  # between writes of "caught up" for quiet upstreams, and between removals of former shares' rows


class StreamPartition(CheckpointedPartition[Frame, dict[str, int]]):
    """The frames of all upstreams of a flow.

    `start`: the cursor for an upstream without a stored one (None: its newest event). `fillable`: whether a listing can recover
    the events of a gap: true for a firehose, false for labels. `share`: whose position is stored; all frames are read and emitted.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        cursors: Cursors,
        *,
        method: str,
        upstreams: Sequence[str],
        start: int | None,
        pressure: HighWater | None,
        fillable: bool,
        deferral: DeferralStatus,
        share: Share = WHOLE,
    ) -> None:
        super().__init__(health)
        self._deferral = deferral
        self._cursors = cursors
        self._store = CursorStore(settings, health.flow, share)
        self._pressure = pressure
        self._fillable = fillable
        self._start = start
        stored = self._store.starts(upstreams)
        durable = {url: mark.seq for url, mark in stored.items()}
        cursors.positions.update(durable)
        # no stored cursor (a new upstream, or an operator's reset): a new epoch begins
        cursors.epochs.update({url: stored[url].epoch if url in stored else int(time.time()) for url in upstreams})
        self._durable = durable
        self._sockets = Sockets(settings, health.flow, method, {url: durable.get(url, start) for url in upstreams})
        self._polled_at = time.monotonic()
        self._touch_at = 0.0
        self._retire_at = 0.0
        self._drain_until: float | None = None
        self._gaps: list[Gap] = []  # taken from `cursors`, not durable yet
        if pressure is not None:
            pressure.start()
        self._sockets.start()

    @override
    def poll(self) -> list[Frame]:
        self._sockets.check()
        if self._drain_until is not None:
            return [WAKE] if self._deferral.ready else []
        if self._pressure is not None and (why := self._pressure.paused):
            self.health.report("paused", why)
            return []
        full = self._deferral.full
        frames = [] if full else self._sockets.queue.take(POLL_FRAMES, POLL_BYTES // QUEUE_UNIT_BYTES)
        self._report(frames)
        if len(self._durable) < len(self._sockets.upstreams):
            self._anchor(frames)
            self._anchor_quiet()
        now = time.monotonic()
        if not frames and not full and now >= self._touch_at:
            self._touch()
        if now >= self._retire_at:
            retry_database(lambda: self._store.retire(self._durable), self.health)
            self._retire_at = now + TOUCH_SECONDS
        return [*frames, WAKE] if self._deferral.ready else frames

    @override
    def position(self) -> dict[str, int] | None:
        return self._passable(self._cursors.positions) or None

    def _passable(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Each position, at most the one before the upstream's first deferred event, but at least the durable position.

        A position below the durable one is from a restarted sequence: the durable one is then no lower limit.
        """
        found = {}
        for url, seq in positions.items():
            passable, durable = self._deferral.passable(url, seq), self._durable.get(url, -1)
            found[url] = passable if seq < durable else max(passable, durable)
        return found

    @override
    def commit(self, position: dict[str, int]) -> dict[str, int]:
        # an event up to this position may have been deferred since `position` was called
        position = self._passable(position)
        self._gaps += self._cursors.take_gaps()
        moved = {url: seq for url, seq in position.items() if self._durable.get(url) != seq}
        details = {url: self._cursors.detail(url) for url in moved}
        self._store.save(moved, details, self._gaps, answered=not self._fillable)
        self._gaps.clear()
        self._durable.update(moved)
        return position

    @override
    def drain(self) -> None:
        """Stop reading. Queued frames are dropped; no position covers them, so the next start reads them again."""
        self._sockets.cancel()
        self._drain_until = time.monotonic() + DRAIN_SECONDS

    @override
    def drained(self) -> bool:
        """Wait up to DRAIN_SECONDS for deferred events: the cursor stays before them, so a restart would repeat later events."""
        return not self._deferral.waiting or self._drain_until is None or time.monotonic() > self._drain_until

    @override
    def close(self) -> None:
        self._sockets.cancel()
        self._store.close()
        if self._pressure is not None:
            self._pressure.stop()

    def _anchor(self, frames: list[Frame]) -> None:
        """For upstreams without a cursor, store the position before the first event, before that event is emitted.

        Otherwise a crash would restart at the newest event and lose the events in between.
        """
        for upstream in {frame.upstream for frame in frames} - self._durable.keys():
            seqs = (position(frame.data) for frame in frames if frame.upstream == upstream)
            first = next((seq for seq in seqs if seq is not None), None)
            if first is not None:
                self._begin(upstream, max(0, first - 1), first - 1)
                self._cursors.positions.setdefault(upstream, max(0, first - 1))

    def _anchor_quiet(self) -> None:
        """Store cursor 0 for upstreams that have no cursor and send nothing; the next connection reads all that they keep.

        Without a cursor the events between this connection and the next one would be lost.
        """
        for one in self._sockets.upstreams:
            if one.is_quiet() and one.url not in self._durable and one.last_seq() is None:
                self._begin(one.url, 0, None)
                one.cursor = 0

    def _touch(self) -> None:
        """Record that quiet upstreams are caught up, to distinguish them from upstreams that are behind."""
        self._touch_at = time.monotonic() + TOUCH_SECONDS
        positions = self._cursors.positions
        quiet = [one.url for one in self._sockets.upstreams if one.is_quiet()]
        if settled := [url for url in quiet if url in self._durable and self._durable[url] == positions.get(url)]:
            self._store.caught_up(settled, from_unix(time.time()))

    def _begin(self, upstream: str, position: int, missed: int | None) -> None:
        """Store the first position of an upstream. If it began at the newest event, record all earlier events as a gap."""
        at_tip = self._start is None and self._fillable
        gap, detail = Gap(upstream, None, missed, "began_at_tip") if at_tip else None, self._cursors.detail(upstream)
        epoch = retry_database(lambda: self._store.begin(upstream, position, detail, gap), self.health)
        self._cursors.epochs[upstream] = epoch
        self._durable[upstream] = position

    def _report(self, frames: list[Frame]) -> None:
        now = time.monotonic()
        if frames:
            self._polled_at = now
            for upstream, seq in self._cursors.positions.items():
                metrics.UPSTREAM_SEQ.labels(upstream).set(seq)
        metrics.QUEUE_FRAMES.labels(self.health.flow).set(len(self._sockets.queue))
        problems = "; ".join(filter(None, (self._sockets.problems(), self._deferral.problem)))
        if problems:
            self.health.report("failing", problems)
        elif frames or now - self._polled_at < IDLE_AFTER_SECONDS:
            self.health.report("working")
        else:
            self.health.report("idle")
