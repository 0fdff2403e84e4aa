"""The websockets of a flow's upstreams, in one background loop.

Each upstream has its own socket and cursor. Frames reach the flow through a bounded queue; while it is full the sockets are not
read, so TCP flow control stops the upstreams. A reconnect continues after the last frame received. If the first event of a
connection is before the requested cursor, the upstream has restarted its sequence, and the frame is marked `restarted`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping

import aiohttp
import msgspec
from aiohttp import WSMsgType

from connectors.atproto.recent_frames import RecentFrames
from connectors.http.client import HostRefused, Unreachable, check_url, open_session, retry_after, to_http_error
from connectors.runtime import metrics
from connectors.runtime.background_loop import Background, Handover
from protocol.event_stream import MAX_SOCKET_BYTES, StreamError, decode, position
from schemas.settings import Settings
from steps.backoff import STEADY_SECONDS, reconnect_seconds

QUEUE_UNIT_BYTES = 2048  # a frame counts as 1 unit in the queue, plus 1 for each full 2,048 bytes
LONGEST_REST_SECONDS = 300.0  # maximum wait for an upstream's Retry-After
SILENCE_FACTOR_WITHOUT_CURSOR = 10  # factor of the silence limit: without a cursor, a reconnect could lose an event
RECOVERED_SECONDS = 10.0  # a connection open for this long is healthy, even without events
QUIET_SECONDS = 2.0  # without a frame: the upstream has no backlog to send
_KNOWN_ERRORS = ("FutureCursor", "ConsumerTooSlow")  # allowed as metric labels; other names are untrusted and unbounded

logger = logging.getLogger("stream")


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One websocket message. `upstream` is a URL, `received` the Unix time in ms.

    `restarted`: the upstream has restarted its sequence, and this is the first event of the new one.
    """

    upstream: str
    data: bytes
    restarted: bool = False
    received: int = 0


WAKE = Frame("", b"")
"""An empty frame, sent through the steps when keys for deferred events have arrived."""


class _Closed(Exception):
    """A connection ended; the message gives the reason."""


class _RateLimited(Unreachable):
    """The upstream answered 429 or 503 with a Retry-After of `seconds`."""

    def __init__(self, detail: str, seconds: float) -> None:
        super().__init__(detail)
        self.seconds = seconds


class _FrameTooLarge(Exception):
    """The next frame is larger than MAX_SOCKET_BYTES."""


def _connect_error(err: Exception, url: str) -> Exception:
    """The exception for a connection that could not be opened."""
    if isinstance(err, aiohttp.WSServerHandshakeError) and err.status in (429, 503):
        seconds = retry_after(err.headers or {}, time.time())
        if seconds is not None:
            return _RateLimited(f"answered {err.status} with Retry-After {seconds:.0f} s", seconds)
    return to_http_error(err, url)


class UpstreamSocket:
    """State of one socket. Changed in the loop; the flow's thread reads it."""

    def __init__(self, url: str, cursor: int | None) -> None:
        self.url = url
        self.cursor = cursor
        self.recent = RecentFrames()
        self.received_at = time.monotonic()
        self.connected = False
        self.blocked = False  # the queue is full and no frame is read, so the upstream is not silent
        self.failures = 0  # connections in a row without an event
        self.retry_after = 0.0  # seconds of the last Retry-After
        self.short = 0  # connections in a row that lasted less than STEADY_SECONDS
        self.too_large = 0  # frames in a row above MAX_SOCKET_BYTES
        self.problem: str | None = None

    def last_seq(self) -> int | None:
        """The highest seq received, or the connection's initial cursor."""
        seqs = [seq for seq in (self.recent.last_seq(), self.cursor) if seq is not None]
        return max(seqs, default=None)

    def is_quiet(self) -> bool:
        """Connected, and no frame for QUIET_SECONDS."""
        return self.connected and time.monotonic() - self.received_at > QUIET_SECONDS


class Sockets:
    """All websockets of a flow, in one background loop."""

    def __init__(self, settings: Settings, flow: str, method: str, starts: Mapping[str, int | None]) -> None:
        self._settings = settings
        self._flow = flow
        self._method = method
        self.upstreams = [UpstreamSocket(url, cursor) for url, cursor in starts.items()]
        self.queue: Handover[Frame] = Handover(
            settings.tuning.stream_queue_frames, lambda frame: 1 + len(frame.data) // QUEUE_UNIT_BYTES
        )
        self._background = Background(f"{flow} sockets", self._main)
        self.start, self.check, self.cancel = self._background.start, self._background.check, self._background.cancel

    def problems(self) -> str:
        """Why upstreams cannot be read, or ''."""
        return "; ".join(f"{one.url}: {one.problem}" for one in self.upstreams if one.problem)

    async def _main(self) -> None:
        async with open_session(self._settings, websockets=True) as session, asyncio.TaskGroup() as group:
            for upstream in self.upstreams:
                group.create_task(self._follow(session, upstream))

    async def _follow(self, session: aiohttp.ClientSession, upstream: UpstreamSocket) -> None:
        """Connect, read to the end of the connection, wait, and repeat until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self._connection(session, upstream)
            except (_Closed, HostRefused, Unreachable, _FrameTooLarge) as err:
                self._after(upstream, err)
                upstream.short = upstream.short + 1 if time.monotonic() - began < STEADY_SECONDS else 0
            fraction = random.random()  # noqa: S311 (jitter)
            await asyncio.sleep(reconnect_seconds(upstream.failures, upstream.short, fraction, upstream.retry_after))

    async def _connection(self, session: aiohttp.ClientSession, upstream: UpstreamSocket) -> None:
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
            raise _connect_error(err, url) from err
        metrics.WEBSOCKETS.labels(self._flow).inc()
        logger.info("connected", extra={"upstream": upstream.url, "cursor": upstream.cursor})
        upstream.received_at, upstream.connected = time.monotonic(), True
        reader = asyncio.create_task(self._read(socket, upstream))
        try:
            await self._watch(reader, upstream)
        finally:
            upstream.connected = False
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            metrics.WEBSOCKETS.labels(self._flow).dec()
            await socket.close()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, upstream: UpstreamSocket) -> None:
        """Put frames into the queue until the socket ends. Raises _Closed or _FrameTooLarge."""
        queue, received, url, binary = self.queue, upstream.recent.add, upstream.url, WSMsgType.BINARY
        upstream.received_at = time.monotonic()
        asked = upstream.cursor  # set to None after the first event
        while True:
            message = await socket.receive()
            if message.type is not binary:
                break
            upstream.received_at = time.monotonic()
            received(message.data)
            restarted = False
            if asked is not None and (seq := position(message.data)) is not None:
                restarted, asked = self._restarted(upstream, asked, seq), None
            upstream.blocked = True
            await queue.put(Frame(url, message.data, restarted, time.time_ns() // 1_000_000))
            upstream.blocked = False
            if upstream.failures and position(message.data) is not None:  # not by an error frame
                upstream.failures = upstream.too_large = 0
                upstream.problem = None
        if (
            isinstance(message.data, aiohttp.WebSocketError)
            and message.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        ):
            raise _FrameTooLarge
        raise _Closed(f"closed by the upstream (code {socket.close_code})")

    def _restarted(self, upstream: UpstreamSocket, asked: int, first: int) -> bool:
        """Whether the first event is before the requested cursor: the upstream restarted its sequence. Sets the new cursor.

        A cursor that skipped too large frames may be ahead of an unchanged sequence.
        """
        if first >= asked or upstream.too_large:
            return False
        metrics.UPSTREAM_ERRORS.labels(self._flow, "sequence_restarted").inc()
        logger.warning("sequence restarted", extra={"upstream": upstream.url, "cursor": asked, "seq": first})
        upstream.cursor = first
        return True

    async def _watch(self, reader: "asyncio.Task[None]", upstream: UpstreamSocket) -> None:
        """Wait for the reader to end. Return earlier if no frame arrives for the silence limit; pings do not count (B8)."""
        limit = self._settings.stream_silence_seconds
        if upstream.last_seq() is None:
            limit *= SILENCE_FACTOR_WITHOUT_CURSOR
        upstream.received_at = time.monotonic()
        since = upstream.received_at
        while not reader.done():
            await asyncio.wait({reader}, timeout=min(limit / 4, QUIET_SECONDS))
            if not reader.done() and time.monotonic() - since > RECOVERED_SECONDS:
                upstream.problem = None  # a rejected cursor fails immediately, so a quiet connection is healthy
            if upstream.blocked:
                upstream.received_at = time.monotonic()
            elif not reader.done() and time.monotonic() - upstream.received_at > limit:
                metrics.UPSTREAM_ERRORS.labels(self._flow, "silence").inc()
                logger.warning("silent", extra={"upstream": upstream.url, "seconds": limit})
                upstream.failures = 0  # a quiet network is not a failure: reconnect immediately
                return
        reader.result()

    def _after(self, upstream: UpstreamSocket, err: Exception) -> None:
        """Set the cursor, the wait and the reported problem after a connection has ended."""
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
                upstream.cursor += 1 << upstream.too_large  # skip it; the `cursor` step records the gap
                upstream.too_large = min(upstream.too_large + 1, 16)
        upstream.failures += 1
        upstream.retry_after = min(err.seconds, LONGEST_REST_SECONDS) if isinstance(err, _RateLimited) else 0.0
        metrics.UPSTREAM_ERRORS.labels(self._flow, reason).inc()
        if upstream.failures > 1 or isinstance(last, StreamError) or isinstance(err, HostRefused):
            if upstream.problem != text:
                logger.warning("disconnected", extra={"upstream": upstream.url, "why": text})
            upstream.problem = text
