"""labelers → decode → cursor → verify → encode → label_live

One message per label, keyed by the DID that the label is about, or by a hash of a subject without one. What is no label, or not signed by the labeler that sent
it, becomes a dead letter.
"""

from collections import Counter
from collections.abc import Callable

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.atproto.deferred_events import ForKeys, finished
from connectors.atproto.labeler import label_source
from connectors.atproto.stream_sockets import WAKE, Frame
from connectors.identity.commit_signatures import deferred_events
from connectors.identity.key_ring import KeyRing
from connectors.identity.label_signatures import LabelSignatures, Signer
from connectors.kafka.producer import LogSink, Out, dead_letter, now_text
from connectors.runtime import metrics
from connectors.runtime.process import Health
from flows.labels.encode import label_value
from protocol.did_document import Identity as Document
from protocol.encoding.timestamps import canonical, to_unix
from protocol.event_stream import Info, Labels, Message, Rejected, StreamError, Unknown, decode
from protocol.labels import LabelReason, LabelRejected, parse_label, subject_key
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import LABEL_LIVE
from steps.cursor import Cursors, Gap
from steps.deferred import Deferred

TOPIC = LABEL_LIVE
FLOW = "labels"


class Received(msgspec.Struct, frozen=True, gc=False):
    """A frame and what it says; None where it only wakes the flow."""

    frame: Frame
    message: Message | None


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A frame's message, and what is wrong with its labels by their index."""

    frame: Frame
    message: Message | None
    wrong: dict[int, LabelRejected]


Step = Callable[[list[Received]], list[Received]]


Verify = Callable[[list[Received]], list[Checked]]


def build(labelers: Source[Frame], log: Sink[Out], *, cursor: Step, verify: Verify) -> Dataflow:
    """The dataflow over any source of frames and any sink of messages."""
    flow = Dataflow(FLOW)
    frames = op.input("labelers", flow, labelers)
    messages = op.flat_map_batch("decode", frames, decoded)
    followed = op.flat_map_batch("cursor", messages, cursor)
    verified = op.flat_map_batch("verify", followed, verify)
    encoded = op.flat_map_batch("encode", verified, encode_all)
    op.output(TOPIC, encoded, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the labelers, their identities and the log of the settings."""
    cursors, deferred = Cursors(), deferred_events()
    ring = KeyRing(settings, health, label_signer)
    return build(
        label_source(settings, health, cursors, ForKeys(FLOW, deferred, ring)),
        LogSink(settings),
        cursor=follower(cursors),
        verify=verifier(settings, ring, deferred),
    )


def label_signer(document: Document) -> Signer:
    """The key that signs a labeler's labels, and where the labeler is."""
    return Signer(document.label_key, document.labeler)


def decoded(frames: list[Frame]) -> list[Received]:
    """Frames → messages, counted by kind."""
    received = [Received(frame, None if frame is WAKE else decode(frame.data)) for frame in frames]
    for (labeler, kind), count in Counter((one.frame.upstream, type(one.message)) for one in received).items():
        if kind is not type(None):
            metrics.LABEL_FRAMES.labels(labeler, kind.__name__.lower()).inc(count)
    return received


def follower(cursors: Cursors) -> Step:
    """The `cursor` step: follow every labeler's sequence, and let through what carries labels or is no frame."""

    def follow_all(batch: list[Received]) -> list[Received]:
        kept = []
        for one in batch:
            message, labeler = one.message, one.frame.upstream
            if message is None:
                kept.append(one)
                continue
            if isinstance(message, StreamError):
                metrics.REJECTED.labels(FLOW, "error_frame").inc()
                continue
            if isinstance(message, Info):
                if message.name == "OutdatedCursor":
                    _count_gap(cursors.lose(Gap(labeler, cursors.positions.get(labeler), None, "outdated_cursor")))
                continue
            if isinstance(message, Unknown | Rejected):
                if message.seq is not None:
                    cursors.pass_by(labeler, message.seq)
            else:
                follow = cursors.restart if one.frame.restarted else cursors.see
                if (gap := follow(labeler, message.seq)) is not None:
                    _count_gap(gap)
            if isinstance(message, Labels | Rejected):
                kept.append(one)
            else:
                reason = "unknown_type" if isinstance(message, Unknown) else "foreign_type"
                metrics.DROPPED.labels(FLOW, reason).inc()
        return kept

    return follow_all


def _count_gap(gap: Gap) -> None:
    metrics.SEQUENCE_GAPS.labels(gap.upstream).inc()
    if gap.from_seq is not None and gap.to_seq is not None:
        metrics.GAP_SEQS.labels(gap.upstream).inc(gap.to_seq - gap.from_seq + 1)


def again(frame: Frame, settings: Settings) -> list[Out]:
    """A frame of a dead letter through the steps of today, without cursor."""
    ring, deferred = KeyRing(settings, Health(FLOW, exported=False), label_signer), deferred_events()
    try:
        (one,) = decoded([frame])
        return encode_all(finished(verifier(settings, ring, deferred), one, deferred, ring))
    finally:
        ring.close()


def verifier(settings: Settings, ring: KeyRing[Signer], deferred: Deferred[Received]) -> Verify:
    """The `verify` step: every label against the key and the address in its source's DID document."""
    signatures = LabelSignatures[Received](FLOW, ring, settings.verify, deferred)

    def verify_all(batch: list[Received]) -> list[Checked]:
        return [Checked(one.frame, one.message, wrong) for one, wrong in signatures.check(batch)]

    return verify_all


def encode_all(batch: list[Checked]) -> list[Out]:
    """Labels → messages; what is none → dead letters, one for each reason of a frame."""
    out: list[Out] = []
    for one in batch:
        message, labeler = one.message, one.frame.upstream
        if isinstance(message, Labels):
            refused: dict[LabelReason, list[str]] = {}
            for at, value in enumerate(message.labels):
                label = one.wrong.get(at) or parse_label(value)
                if isinstance(label, LabelRejected):
                    refused.setdefault(label.reason, []).append(label.detail)
                else:
                    out.append(Out(TOPIC, subject_key(label.uri), label_value(label, message.seq, labeler)))
            # a letter holds the frame: one for each of its labels would be gigabytes
            out += [_dead(one, reason.value, _detail(details)) for reason, details in refused.items()]
        elif isinstance(message, Rejected):
            out.append(_dead(one, message.reason.value, message.detail))
    _note_times(batch)
    return out


def _detail(details: list[str]) -> str:
    return details[0] if len(details) == 1 else f"{details[0]}; and {len(details) - 1} labels more"


def _note_times(batch: list[Checked]) -> None:
    """Every labeler's own time of its last label here; one that claims to come from the future says nothing."""
    latest = now_text()
    for labeler, message in {one.frame.upstream: one.message for one in batch}.items():
        last = message.labels[-1] if isinstance(message, Labels) and message.labels else None
        own = canonical(last.get("cts")) if isinstance(last, dict) else None
        if own is not None and own <= latest:
            metrics.LAST_EVENT.labels(FLOW, labeler).set(to_unix(own))


def _dead(one: Checked, reason: str, error: str) -> Out:
    code = DeadReason.of(reason)
    metrics.DEAD_LETTERS.labels(FLOW, code.value).inc()
    error = error if code == reason else f"{reason}: {error}"
    return dead_letter(f"{FLOW} {one.frame.upstream}", code, error, one.frame.data)
