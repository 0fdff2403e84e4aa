"""labelers → decode → cursor → verify → encode → label_live

One message per label. Its key is the DID that the label is about, or a hash of a subject without one. A value that is not a
valid label, or that the labeler did not sign, becomes a dead letter. Threads and their hand-overs are those of
`flows.firehose.flow`.
"""

from collections.abc import Callable

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.atproto.deferred_events import DeferralStatus, new_deferred, run_to_end
from connectors.atproto.labeler import label_source
from connectors.atproto.stream_sockets import Frame
from connectors.identity.key_ring import KeyRing
from connectors.identity.label_signatures import CheckedFrame, LabelSignatures
from connectors.identity.label_sources import Signer
from connectors.kafka.producer import LogSink, Out, now_text
from connectors.runtime import metrics
from connectors.runtime.health import Health
from flows.labels.encode import label_value
from flows.streams import Received, Step, cursor_step, dead_frame, decode_frames, note_event_times
from protocol.did_document import ResolvedIdentity
from protocol.event_stream import Labels, Rejected
from protocol.labels import LabelReason, LabelRejected, parse_label, subject_key
from schemas.settings import Settings
from schemas.topics import LABEL_LIVE
from steps.cursor import Cursors
from steps.deferred import Deferred

TOPIC = LABEL_LIVE
FLOW = "labels"


Verify = Callable[[list[Received]], list[CheckedFrame[Received]]]


def build(labelers: Source[Frame], log: Sink[Out], *, cursor: Step, verify: Verify) -> Dataflow:
    """The dataflow over any source of frames and any sink of messages."""
    flow = Dataflow(FLOW)
    frames = op.input("labelers", flow, labelers)
    messages = op.flat_map_batch("decode", frames, decode_all)
    followed = op.flat_map_batch("cursor", messages, cursor)
    verified = op.flat_map_batch("verify", followed, verify)
    encoded = op.flat_map_batch("encode", verified, encode_all)
    op.output(TOPIC, encoded, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the labelers, their identities and the log of the settings."""
    cursors, deferred = Cursors(), new_deferred()
    ring = KeyRing(settings, health, label_signer)
    return build(
        label_source(settings, health, cursors, DeferralStatus(FLOW, deferred, ring)),
        LogSink(settings),
        cursor=cursor_step(FLOW, cursors, (Labels,)),
        verify=verifier(settings, ring, deferred),
    )


def label_signer(identity: ResolvedIdentity) -> Signer:
    """The key that signs a labeler's labels, and the labeler's URL."""
    return Signer(identity.label_key, identity.labeler)


def decode_all(frames: list[Frame]) -> list[Received]:
    return decode_frames(frames, metrics.LABEL_FRAMES)


def verifier(settings: Settings, ring: KeyRing[Signer], deferred: Deferred[Received]) -> Verify:
    """The `verify` step: check each label against the key and the URL in its source's DID document."""
    return LabelSignatures[Received](FLOW, ring, settings.verify, deferred).check


def encode_all(batch: list[CheckedFrame[Received]]) -> list[Out]:
    """The `encode` step: labels → messages of the live topic; refused labels and frames → dead letters."""
    out: list[Out] = []
    times: dict[str, object] = {}
    for one, wrong in batch:
        message = one.message
        if isinstance(message, Labels):
            out += _encode(one.frame, message, wrong)
            last = message.labels[-1] if message.labels else None
            times[one.frame.upstream] = last.get("cts") if isinstance(last, dict) else None
        elif isinstance(message, Rejected):
            out.append(dead_frame(FLOW, one.frame, message.reason.value, message.detail))
    note_event_times(FLOW, times, now_text())
    return out


def _encode(frame: Frame, message: Labels, wrong: dict[int, LabelRejected]) -> list[Out]:
    out: list[Out] = []
    refused: dict[LabelReason, list[str]] = {}
    for at, value in enumerate(message.labels):
        label = wrong.get(at) or parse_label(value)
        if isinstance(label, LabelRejected):
            refused.setdefault(label.reason, []).append(label.detail)
        else:
            out.append(Out(TOPIC, subject_key(label.uri), label_value(label, message.seq, frame.upstream)))
    # one dead letter per reason: each holds the whole frame, and one per label could take gigabytes
    out += [dead_frame(FLOW, frame, reason.value, _detail(details)) for reason, details in refused.items()]
    return out


def _detail(details: list[str]) -> str:
    return details[0] if len(details) == 1 else f"{details[0]}; and {len(details) - 1} more labels"


def retry_frame(frame: Frame, settings: Settings) -> list[Out]:
    """Pass the frame of a dead letter through the current steps, without `cursor`. Raises Stopping."""
    ring, deferred = KeyRing(settings, Health(FLOW, exported=False), label_signer), new_deferred()
    try:
        (one,) = decode_all([frame])
        return encode_all(run_to_end(verifier(settings, ring, deferred), one, deferred, ring))
    finally:
        ring.close()
