"""Event streams over websockets: the source that the firehose and the labelers share.

One process reads many upstreams, each over its own socket with its own cursor. The sockets live in a background loop and
hand frames over through a bounded queue: while it is full nothing is read, and TCP makes the upstream wait. The position of
an upstream is what the flow has seen of it (`steps.cursor.Cursors`, moved by the flow's `cursor` step) and becomes durable
when the log has acknowledged it. A reconnect continues after the last frame received, a restart after the last durable one. The
first event of a connection that lies before the cursor asked for is of a sequence that restarted, and says so.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence

import aiohttp
import msgspec
from aiohttp import WSMsgType
from typing_extensions import override

from connectors.atproto.deferred_events import ForKeys
from connectors.atproto.recent_frames import Recent
from connectors.http.client import HostRefused, Unreachable, check_url, open_session, retry_after, translated
from connectors.kafka.back_pressure import HighWater
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime import metrics
from connectors.runtime.background_loop import Background, Handover
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.patience import patiently
from connectors.runtime.process import Health
from protocol.encoding.timestamps import from_unix
from protocol.event_stream import MAX_SOCKET_BYTES, StreamError, decode, position
from schemas.settings import Settings
from steps.backoff import STEADY_SECONDS, reconnect_seconds
from steps.cursor import Cursors, Gap

POLL_FRAMES = 3000
QUEUE_UNIT_BYTES = 2048  # a frame of this size or less counts as one in the queue, a larger one as several
POLL_BYTES = 6 * 1024 * 1024  # of frames in one batch; its messages have at most some sixteen times as many
LONGEST_REST_SECONDS = 300.0  # of an upstream that refuses connections and names a longer time
PATIENCE_WITHOUT_CURSOR = 10  # without a cursor a reconnect could lose an event, so silence is borne longer
IDLE_AFTER_SECONDS = 1.0
DRAIN_SECONDS = 5.0  # longer than an untrusted host is waited for
RECOVERED_SECONDS = 10.0  # a connection that stands so long has been taken, though nothing came over it yet
TOUCH_SECONDS = 5.0  # between notes that a quiet upstream has come to now
QUIET_SECONDS = 2.0  # a busy upstream shows its place sooner, and is never read from its oldest event for this
_KNOWN_ERRORS = ("FutureCursor", "ConsumerTooSlow")  # others are words of strangers, and no label takes those

logger = logging.getLogger("stream")


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One websocket message of an upstream (its full URL). `restarted`: the upstream's sequence begins anew with it.
    `received`: ms of the epoch."""

    upstream: str
    data: bytes
    restarted: bool = False
    received: int = 0


WAKE = Frame("", b"")
"""Wakes the steps of a flow: answers came for events that they deferred."""


class _Closed(Exception):
    """A connection ended; the message says how."""


class _RateLimited(Unreachable):
    """The upstream refused the connection and named the seconds to wait."""

    def __init__(self, detail: str, seconds: float) -> None:
        super().__init__(detail)
        self.seconds = seconds


class _FrameTooLarge(Exception):
    """The next frame does not fit into memory that we are willing to give."""


def _refused(err: Exception, url: str) -> Exception:
    """The error for a connection that was not made; a 429 or 503 may name the time of the next try."""
    if isinstance(err, aiohttp.WSServerHandshakeError) and err.status in (429, 503):
        seconds = retry_after(err.headers or {}, time.time())
        if seconds is not None:
            return _RateLimited(f"answered {err.status}, to wait {seconds:.0f} s", seconds)
    return translated(err, url)


class Upstream:
    """One socket's state, used in the loop; `problem` is read by the flow's thread."""

    def __init__(self, url: str, cursor: int | None) -> None:
        self.url = url
        self.cursor = cursor
        self.recent = Recent()
        self.heard_at = time.monotonic()
        self.connected = False
        self.waiting = False  # for room in the queue: our own silence, not the upstream's
        self.failures = 0
        self.rest = 0.0  # seconds that the upstream asked us to wait
        self.short = 0  # connections in a row
        self.too_large = 0
        self.problem: str | None = None

    def last_seq(self) -> int | None:
        """The highest seq among what was received and what we started from."""
        seqs = [seq for seq in (self.recent.last_seq(), self.cursor) if seq is not None]
        return max(seqs, default=None)


class Sockets:
    """All websockets of a flow, in one background loop."""

    def __init__(self, settings: Settings, flow: str, method: str, starts: Mapping[str, int | None]) -> None:
        self._settings = settings
        self._flow = flow
        self._method = method
        self.upstreams = [Upstream(url, cursor) for url, cursor in starts.items()]
        self.queue: Handover[Frame] = Handover(
            settings.stream_queue_frames, lambda frame: 1 + len(frame.data) // QUEUE_UNIT_BYTES
        )
        self._background = Background(f"{flow} sockets", self._main)
        self.start, self.check, self.cancel = self._background.start, self._background.check, self._background.cancel

    def problems(self) -> str:
        """What keeps upstreams from being read, or ''."""
        return "; ".join(f"{one.url}: {one.problem}" for one in self.upstreams if one.problem)

    async def _main(self) -> None:
        async with open_session(self._settings) as session, asyncio.TaskGroup() as group:
            for upstream in self.upstreams:
                group.create_task(self._follow(session, upstream))

    async def _follow(self, session: aiohttp.ClientSession, upstream: Upstream) -> None:
        """Connect, read, and again, for ever."""
        while True:
            began = time.monotonic()
            try:
                await self._connection(session, upstream)
            except (_Closed, HostRefused, Unreachable, _FrameTooLarge) as err:
                self._settle(upstream, err)
                upstream.short = upstream.short + 1 if time.monotonic() - began < STEADY_SECONDS else 0
            fraction = random.random()  # noqa: S311 (jitter)
            await asyncio.sleep(reconnect_seconds(upstream.failures, upstream.short, fraction, upstream.rest))

    async def _connection(self, session: aiohttp.ClientSession, upstream: Upstream) -> None:
        url = f"{upstream.url}/xrpc/{self._method}"
        check_url(url, allow_private=self._settings.allow_private_hosts)
        upstream.cursor = upstream.last_seq()
        upstream.recent.clear()
        if upstream.cursor is not None:
            url += f"?cursor={upstream.cursor}"
        try:
            socket = await session.ws_connect(
                url,
                max_msg_size=MAX_SOCKET_BYTES,
                heartbeat=None,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                compress=0,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            raise _refused(err, url) from err
        metrics.WEBSOCKETS.labels(self._flow).inc()
        logger.info("connected", extra={"upstream": upstream.url, "cursor": upstream.cursor})
        upstream.heard_at, upstream.connected = time.monotonic(), True
        reader = asyncio.create_task(self._read(socket, upstream))
        try:
            await self._watch(reader, upstream)
        finally:
            upstream.connected = False
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            metrics.WEBSOCKETS.labels(self._flow).dec()
            await socket.close()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, upstream: Upstream) -> None:
        """Frames into the queue until the socket ends; raises how it ended."""
        queue, received, url, binary = self.queue, upstream.recent.add, upstream.url, WSMsgType.BINARY
        upstream.heard_at = time.monotonic()
        asked = upstream.cursor  # until the first event has come
        while True:
            message = await socket.receive()
            if message.type is not binary:
                break
            upstream.heard_at = time.monotonic()
            received(message.data)
            restarted = False
            if asked is not None and (seq := position(message.data)) is not None:
                restarted, asked = self._restarted(upstream, asked, seq), None
            upstream.waiting = True
            await queue.put(Frame(url, message.data, restarted, time.time_ns() // 1_000_000))
            upstream.waiting = False
            if upstream.failures and position(message.data) is not None:  # an error frame is no recovery
                upstream.failures = upstream.too_large = 0
                upstream.problem = None
        if (
            isinstance(message.data, aiohttp.WebSocketError)
            and message.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        ):
            raise _FrameTooLarge
        raise _Closed(f"closed by the upstream (code {socket.close_code})")

    def _restarted(self, upstream: Upstream, asked: int, first: int) -> bool:
        """Whether the first event after the cursor asked for is of another sequence, which is then followed.

        A cursor that stepped over what is too large may lie ahead of the same sequence.
        """
        if first >= asked or upstream.too_large:
            return False
        metrics.INGEST_ERRORS.labels(self._flow, "sequence_restarted").inc()
        logger.warning("sequence restarted", extra={"upstream": upstream.url, "cursor": asked, "seq": first})
        upstream.cursor = first
        return True

    async def _watch(self, reader: "asyncio.Task[None]", upstream: Upstream) -> None:
        """Wait for the reader's end, but no longer than silence lasts. Data counts, pings do not (B8)."""
        limit = self._settings.stream_silence_seconds
        if upstream.last_seq() is None:
            limit *= PATIENCE_WITHOUT_CURSOR
        upstream.heard_at = time.monotonic()
        since = upstream.heard_at
        while not reader.done():
            await asyncio.wait({reader}, timeout=min(limit / 4, QUIET_SECONDS))
            if not reader.done() and time.monotonic() - since > RECOVERED_SECONDS:
                upstream.problem = None  # who refuses a cursor says so at once; one that is quiet is there
            if upstream.waiting:
                upstream.heard_at = time.monotonic()
            elif not reader.done() and time.monotonic() - upstream.heard_at > limit:
                metrics.INGEST_ERRORS.labels(self._flow, "silence").inc()
                logger.warning("silent", extra={"upstream": upstream.url, "seconds": limit})
                upstream.failures = 0  # a quiet network is no failure: look again at once
                return
        reader.result()

    def _settle(self, upstream: Upstream, err: Exception) -> None:
        """What the end of a connection means for the next one."""
        newest = upstream.recent.newest()
        last = None if newest is None else decode(newest)
        reason, text = type(err).__name__.strip("_"), str(err)
        upstream.cursor = upstream.last_seq()
        if isinstance(last, StreamError):
            reason = last.error if last.error in _KNOWN_ERRORS else "error_frame"
            text = f"{last.error} {last.message}".strip()
            upstream.recent.drop_newest()
            if last.error == "FutureCursor":
                text = (
                    f"FutureCursor: our cursor {upstream.cursor} is ahead of the upstream, whose sequence restarted;"
                    f" decide with `sluice cursors set {self._flow} {upstream.url} SEQ` or `reset`"
                )
        elif isinstance(err, _FrameTooLarge):
            text = f"a frame of more than {MAX_SOCKET_BYTES} bytes after seq {upstream.cursor}"
            if upstream.cursor is not None and upstream.failures:
                upstream.cursor += 1 << upstream.too_large  # stepped over; the cursor step will see the gap
                upstream.too_large = min(upstream.too_large + 1, 16)
        upstream.failures += 1
        upstream.rest = min(err.seconds, LONGEST_REST_SECONDS) if isinstance(err, _RateLimited) else 0.0
        metrics.INGEST_ERRORS.labels(self._flow, reason).inc()
        if upstream.failures > 1 or isinstance(last, StreamError) or isinstance(err, HostRefused):
            if upstream.problem != text:
                logger.warning("disconnected", extra={"upstream": upstream.url, "why": text})
            upstream.problem = text


class StreamPartition(CheckpointedPartition[Frame, dict[str, int]]):
    """The frames of all upstreams of a flow. `start`: the cursor of an upstream without one (None: the tip)."""

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
        deferral: ForKeys,
    ) -> None:
        super().__init__(health)
        self._deferral = deferral
        self._cursors = cursors
        self._store = CursorStore(settings, health.flow)
        self._pressure = pressure
        self._fillable = fillable
        self._start = start
        stored = self._store.load_sequences()
        durable = {url: stored[url][0] for url in upstreams if url in stored}
        cursors.positions.update(durable)
        # where nobody knows what was read before (a new upstream, or an operator's reset), a sequence of its own begins
        cursors.epochs.update({url: stored[url][1] if url in stored else int(time.time()) for url in upstreams})
        self._durable = durable
        self._sockets = Sockets(settings, health.flow, method, {url: durable.get(url, start) for url in upstreams})
        self._polled_at = time.monotonic()
        self._touch_at = 0.0
        self._drain_until: float | None = None
        self._gaps: list[Gap] = []  # taken, and not durable yet
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
        if not frames and not full and time.monotonic() >= self._touch_at:
            self._touch()
        return [*frames, WAKE] if self._deferral.ready else frames

    @override
    def position(self) -> dict[str, int] | None:
        return self._passable(self._cursors.positions) or None

    def _passable(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Positions that pass nothing deferred. A copy of what is durable already moves no upstream back."""
        found = {}
        for url, seq in positions.items():
            passable, durable = self._deferral.passable(url, seq), self._durable.get(url, -1)
            found[url] = passable if seq < durable else max(passable, durable)
        return found

    @override
    def commit(self, position: dict[str, int]) -> dict[str, int]:
        # once more: an event of this epoch may have been deferred after its position was taken
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
        """What still waits in the queue is left to the next start: no position covers it."""
        self._sockets.cancel()
        self._drain_until = time.monotonic() + DRAIN_SECONDS

    @override
    def drained(self) -> bool:
        """What is deferred gets a moment: the next start would repeat all that has passed it."""
        return not self._deferral.waiting or self._drain_until is None or time.monotonic() > self._drain_until

    @override
    def close(self) -> None:
        self._sockets.cancel()
        self._store.close()
        if self._pressure is not None:
            self._pressure.stop()

    def _anchor(self, frames: list[Frame]) -> None:
        """The first event of an upstream read from its tip: its place is durable before it goes on, or a kill loses it."""
        for upstream in {frame.upstream for frame in frames} - self._durable.keys():
            seqs = (position(frame.data) for frame in frames if frame.upstream == upstream)
            first = next((seq for seq in seqs if seq is not None), None)
            if first is not None:
                self._begin(upstream, max(0, first - 1), first - 1)
                self._cursors.positions.setdefault(upstream, max(0, first - 1))

    def _anchor_quiet(self) -> None:
        """An upstream that shows no event has no place yet: the next connection reads all that it still keeps.

        At the tip again it would lose what is written between this connection and the next one.
        """
        for one in self._sockets.upstreams:
            silent = one.connected and time.monotonic() - one.heard_at > QUIET_SECONDS
            if silent and one.url not in self._durable and one.last_seq() is None:
                self._begin(one.url, 0, None)
                one.cursor = 0

    def _touch(self) -> None:
        """Note how far the streams of quiet upstreams have come: nothing else tells one from an upstream that is behind."""
        now, positions = time.monotonic(), self._cursors.positions
        self._touch_at = now + TOUCH_SECONDS
        quiet = [one.url for one in self._sockets.upstreams if one.connected and now - one.heard_at > QUIET_SECONDS]
        if settled := [url for url in quiet if url in self._durable and self._durable[url] == positions.get(url)]:
            self._store.caught_up(settled, from_unix(time.time()))

    def _begin(self, upstream: str, position: int, missed: int | None) -> None:
        """Make the first place of an upstream durable; what came before the tip is a gap that a listing has to answer."""
        if self._start is None and self._fillable:
            gap, detail = Gap(upstream, None, missed, "began_at_tip"), self._cursors.detail(upstream)
            patiently(lambda: self._store.begin(upstream, position, detail, gap), self.health)
        else:
            detail = self._cursors.detail(upstream)
            patiently(lambda: self._store.save({upstream: position}, {upstream: detail}), self.health)
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
