"""What the firehose and the labels flow share: the message of a frame, the steps `decode` and `cursor`, dead letters, metrics."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
import prometheus_client

from connectors.atproto.stream_sockets import WAKE, Frame
from connectors.kafka.producer import Out, dead_letter
from connectors.runtime import metrics
from protocol.encoding.timestamps import canonical, to_unix
from protocol.event_stream import Commit, Info, Message, Rejected, StreamError, Sync, Unknown, decode
from schemas.reasons import DeadReason
from steps.cursor import Cursors, Gap


class Received(msgspec.Struct, frozen=True, gc=False):
    """A frame and its message; each step may replace the message by its result. The message of WAKE is None.

    `epoch`: which of its upstream's sequences the frame belongs to (`steps.cursor`).
    """

    frame: Frame
    message: Any
    epoch: int = 0


Step = Callable[[list[Received]], list[Received]]


def decode_frames(frames: list[Frame], received: prometheus_client.Counter) -> list[Received]:
    """The `decode` step: frames → messages, counted by upstream and kind."""
    batch = [Received(frame, None if frame is WAKE else decode(frame.data)) for frame in frames]
    for (upstream, kind), count in Counter((one.frame.upstream, type(one.message)) for one in batch).items():
        if kind is not type(None):
            received.labels(upstream, kind.__name__.lower()).inc(count)
    return batch


def cursor_step(flow: str, cursors: Cursors, carried: Collection[type]) -> Step:
    """The `cursor` step: follow the sequence of each upstream, record gaps, and pass on rejected frames and `carried` types.

    Info and error frames have no seq and end here. Types that this stream does not carry use up their seq and are dropped.
    """
    kept = frozenset((*carried, Rejected))

    def follow(batch: list[Received]) -> list[Received]:
        events = []
        now = int(time.time())
        for one in batch:
            message, upstream = one.message, one.frame.upstream
            if message is None:
                events.append(one)
                continue
            kind = type(message)
            if kind is Info or kind is StreamError:
                _note_info(flow, cursors, upstream, message)
                continue
            _advance(cursors, one.frame, message, now)
            if kind in kept:
                events.append(Received(one.frame, message, cursors.epochs.get(upstream, 0)))
            else:
                metrics.DROPPED.labels(flow, "unknown_type" if kind is Unknown else "foreign_type").inc()
        return events

    return follow


def _advance(cursors: Cursors, frame: Frame, message: Message, now: int) -> None:
    """A frame that we cannot read completely may not move the position beyond the next seq."""
    kind = type(message)
    seq: int | None = message.seq  # type: ignore[union-attr]  # only Info and StreamError have none
    if kind is Unknown or kind is Rejected or ((kind is Commit or kind is Sync) and message.wrong_field):  # type: ignore[union-attr]
        if seq is not None:
            cursors.pass_by(frame.upstream, seq)
        return
    assert seq is not None  # noqa: S101 (for mypy: all other messages have one)
    restarted = frame.restarted
    gap = cursors.restart(frame.upstream, seq, now) if restarted else cursors.advance(frame.upstream, seq)
    if gap is not None:
        _count_gap(gap)


def _note_info(flow: str, cursors: Cursors, upstream: str, message: Info | StreamError) -> None:
    if isinstance(message, StreamError):
        metrics.REJECTED.labels(flow, "error_frame").inc()  # the source reports the end of the connection
    elif message.name == "OutdatedCursor":
        _count_gap(cursors.record_gap(Gap(upstream, cursors.positions.get(upstream), None, "outdated_cursor")))
    else:
        metrics.DROPPED.labels(flow, "info").inc()


def _count_gap(gap: Gap) -> None:
    metrics.SEQUENCE_GAPS.labels(gap.upstream).inc()
    if gap.from_seq is not None and gap.to_seq is not None:
        metrics.GAP_SEQS.labels(gap.upstream).inc(gap.to_seq - gap.from_seq + 1)


def dead_frame(flow: str, frame: Frame, reason: str, error: str, did: str | None = None) -> Out:
    """The dead letter of a frame. A reason without its own code is put before the error text."""
    code = DeadReason.of(reason)
    metrics.DEAD_LETTERS.labels(flow, code.value).inc()
    error = error if code == reason else f"{reason}: {error}"
    return dead_letter(f"{flow} {frame.upstream}", code, error, frame.data, did=did, received=frame.received or None)


def note_event_times(flow: str, times: Mapping[str, object], latest: str) -> None:
    """Set the gauge of each upstream's last event: its distance from now is the lag. Times after `latest` are ignored."""
    for upstream, text in times.items():
        own = canonical(text)
        if own is not None and own <= latest:
            metrics.LAST_EVENT.labels(flow, upstream).set(to_unix(own))
