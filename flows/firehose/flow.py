"""relays → decode → cursor → verify → dedup → signatures → encode → firehose_live

One process reads every relay. What cannot be processed becomes a dead letter in `encode`; it never stops the rest.
"""

import time
from collections import Counter
from collections.abc import Callable

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.atproto.deferred_events import ForKeys, finished
from connectors.atproto.relay import firehose_source
from connectors.atproto.stream_sockets import WAKE, Frame
from connectors.identity.commit_signatures import CommitSignatures, deferred_events, seq_of
from connectors.identity.key_ring import KeyRing
from connectors.kafka.producer import LogSink, Out, dead_letter, now_text
from connectors.runtime import metrics
from connectors.runtime.process import Health
from flows.firehose.encode import account_value, commit_message, identity_value, moment
from protocol.did_document import Identity as Document
from protocol.encoding.safe_text import failure, shown
from protocol.encoding.timestamps import canonical, from_unix, to_unix
from protocol.event_stream import Account, Commit, Identity, Info, Message, Rejected, StreamError, Sync, Unknown, decode
from protocol.verify_commit import FUTURE_MICROS, Refused, Verified, verify
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE
from steps.cursor import Cursors, Gap
from steps.dedup import Remembered
from steps.deferred import Deferred

TOPIC = FIREHOSE_LIVE
FLOW = "firehose"
TIMES = 15  # events whose times tell how far a relay has come


class Received(msgspec.Struct, frozen=True, gc=False):
    """A frame and what it says; None where it only wakes the flow. `epoch`: which of its relay's sequences it belongs to."""

    frame: Frame
    message: Message | Verified | Refused | None
    epoch: int = 0


Step = Callable[[list[Received]], list[Received]]


def build(
    relays: Source[Frame], log: Sink[Out], *, cursor: Step, verify: Step, dedup: Step, signatures: Step
) -> Dataflow:
    """The dataflow over any source of frames and any sink of messages."""
    flow = Dataflow(FLOW)
    frames = op.input("relays", flow, relays)
    messages = op.flat_map_batch("decode", frames, decoded)
    followed = op.flat_map_batch("cursor", messages, cursor)
    verified = op.flat_map_batch("verify", followed, verify)
    fresh = op.flat_map_batch("dedup", verified, dedup)
    signed = op.flat_map_batch("signatures", fresh, signatures)
    encoded = op.flat_map_batch("encode", signed, encode_all)
    op.output(TOPIC, encoded, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the relays, the identities and the log of the settings."""
    cursors, remembered, deferred = Cursors(), Remembered(settings.tuning.dedup_entries), deferred_events()
    ring = KeyRing(settings, health, signing_key)
    return build(
        firehose_source(settings, health, cursors, ForKeys(FLOW, deferred, ring)),
        LogSink(settings),
        cursor=follower(cursors),
        verify=verifier(settings),
        dedup=deduplicator(remembered, deferred),
        signatures=signature_checker(settings, ring, remembered, deferred),
    )


def signing_key(document: Document) -> str | None:
    """The key that signs an account's commits."""
    return document.signing_key


def decoded(frames: list[Frame]) -> list[Received]:
    """Frames → messages, counted by kind."""
    received = [Received(frame, None if frame is WAKE else decode(frame.data)) for frame in frames]
    for (relay, kind), count in Counter((one.frame.upstream, type(one.message)) for one in received).items():
        if kind is not type(None):
            metrics.FIREHOSE_EVENTS.labels(relay, kind.__name__.lower()).inc(count)
    return received


def follower(cursors: Cursors) -> Step:
    """The `cursor` step: follow every relay's sequence, note what is missing, and let through what is an event."""

    def follow_all(batch: list[Received]) -> list[Received]:
        events = []
        now = time.time()
        for one in batch:
            message, relay = one.message, one.frame.upstream
            if message is None:
                events.append(one)
                continue
            if isinstance(message, Info | StreamError):
                _note_info(cursors, relay, message)
                continue
            if isinstance(message, Unknown | Rejected):
                if message.seq is not None:
                    cursors.pass_by(relay, message.seq)
                if isinstance(message, Unknown):
                    metrics.DROPPED.labels(FLOW, "unknown_type").inc()
                    continue
            elif isinstance(message, Commit | Sync) and message.odd:
                cursors.pass_by(relay, message.seq)
            else:
                seq: int = message.seq  # type: ignore[union-attr]  # all others have one
                gap = cursors.restart(relay, seq, int(now)) if one.frame.restarted else cursors.see(relay, seq)
                if gap is not None:
                    _count_gap(gap)
            events.append(Received(one.frame, message, cursors.epochs.get(relay, 0)))
        cursors.times.update(_times(events, from_unix(now)))
        return events

    return follow_all


def verifier(settings: Settings) -> Step:
    """The `verify` step: commits and syncs → what their blocks prove."""

    def verify_all(batch: list[Received]) -> list[Received]:
        now_micros = time.time_ns() // 1000
        return [
            Received(one.frame, verify(one.message, now_micros, settings.verify), one.epoch)
            if isinstance(one.message, Commit | Sync)
            else one
            for one in batch
        ]

    return verify_all


def signature_checker(
    settings: Settings, ring: KeyRing[str | None], remembered: Remembered, deferred: Deferred[Received]
) -> Step:
    """The `signatures` step: what the account's key did not sign is refused; what has no key yet waits beside the stream."""

    def forget(message: object) -> None:
        remembered.discard(identity(message))

    return CommitSignatures(FLOW, ring, settings.verify, deferred, identity=identity, unproven=forget).check


def again(frame: Frame, settings: Settings) -> list[Out]:
    """A frame of a dead letter through the steps of today, without cursor and dedup."""
    ring, deferred = KeyRing(settings, Health(FLOW, exported=False), signing_key), deferred_events()
    check = signature_checker(settings, ring, Remembered(1), deferred)
    try:
        (one,) = verifier(settings)(decoded([frame]))
        return encode_all(finished(check, one, deferred, ring))
    finally:
        ring.close()


def deduplicator(remembered: Remembered, deferred: Deferred[Received]) -> Step:
    """The `dedup` step: the first relay that brings an event wins. What was refused is kept: it proves nothing.

    A commit that lacks its proof or a record is dropped where any relay has brought it whole, also later in this batch.
    A copy of an event that is deferred holds its own relay's cursor as well: the event is not durable.
    What relays say of an account is never a duplicate: each of them has its own order, and the ratchet has to know it.
    """

    def first_ones(batch: list[Received]) -> list[Received]:
        keys = [identity(one.message) for one in batch]
        here = {key for key in keys if key is not None and key[-1] is True}

        def is_new(key: tuple[object, ...] | None, one: Received) -> bool:
            if key is None:
                return True
            if key[-1] is False and ((whole := (*key[:-1], True)) in here or whole in remembered):
                deferred.repeat(whole, one.frame.upstream, seq_of(one.message))
                return False
            if remembered.add(key):
                return True
            deferred.repeat(key, one.frame.upstream, seq_of(one.message))
            return False

        fresh = [one for one, key in zip(batch, keys, strict=True) if is_new(key, one)]
        if len(fresh) < len(batch):
            metrics.DROPPED.labels(FLOW, "duplicate").inc(len(batch) - len(fresh))
        return fresh

    return first_ones


def identity(message: object) -> tuple[object, ...] | None:
    """What makes two events the same one, whichever relay brings them."""
    if isinstance(message, Verified):
        event = message.event
        # One that lacks its proof or a record must not mask another relay's whole one.
        whole = message.ops is not None and all(op.cid is None or op.cid in message.blocks for op in message.ops)
        return ("commit" if type(event) is Commit else "sync", event.did, event.rev, message.commit, whole)
    if isinstance(message, Identity):
        return ("identity", message.did, shown(message.time), message.handle)
    return None


def encode_all(batch: list[Received]) -> list[Out]:
    """Events → messages of the live topic; refusals and what lost its operations → dead letters."""
    micros = time.time_ns() // 1000
    now, latest = now_text(), from_unix((micros + FUTURE_MICROS) / 1e6)
    out: list[Out] = []
    for one in batch:
        made = len(out)
        try:
            _encode(one, now, latest, out)
        except Exception as err:  # a fault of ours costs this event, not the stream
            del out[made:]
            out.append(_dead(one, DeadReason.FAILED.value, failure(err), None))
    _note_times(batch, latest)
    return out


def _encode(one: Received, now: str, latest: str, out: list[Out]) -> None:
    message, relay = one.message, one.frame.upstream
    if isinstance(message, Verified):
        event = message.event
        encoded = commit_message(message, relay, moment(event.time, now, latest))
        # its own time, or a gate that waits for its account's key would count from when it no longer does
        out.append(Out(TOPIC, event.did, encoded.value, one.frame.received))
        if encoded.missing:
            metrics.REJECTED.labels(FLOW, "missing_block").inc(encoded.missing)
        if message.bad_paths:
            metrics.REJECTED.labels(FLOW, "bad_path").inc(message.bad_paths)
        for reason in message.counted:
            metrics.REPORTED_FAILURES.labels(FLOW, reason.value).inc()
        if encoded.problem is not None:
            out.append(_dead(one, encoded.problem.reason.value, encoded.problem.detail, event.did))
    elif isinstance(message, Account):
        # a clock ahead must not make this event newer than what another relay says later
        out.append(Out(TOPIC, message.did, account_value(message, relay, one.epoch, moment(message.time, now, now))))
    elif isinstance(message, Identity):
        out.append(Out(TOPIC, message.did, identity_value(message, relay, one.epoch, moment(message.time, now, now))))
    elif isinstance(message, Refused | Rejected):
        out.append(_dead(one, message.reason.value, message.detail, message.did))
    else:
        metrics.DROPPED.labels(FLOW, "foreign_type").inc()  # labels on a relay's stream


def _times(events: list[Received], now: str) -> dict[str, str]:
    """Relay → its own time at the end of these events: the median of the last few, as any PDS's clock may be wrong."""
    last: dict[str, list[str]] = {}
    for one in reversed(events):
        if isinstance(one.message, Commit | Sync | Account | Identity):
            found = last.setdefault(one.frame.upstream, [])
            if len(found) < TIMES and (own := canonical(one.message.time)) is not None:
                found.append(min(own, now))
    return {relay: sorted(found)[len(found) // 2] for relay, found in last.items() if found}


def _note_times(batch: list[Received], latest: str) -> None:
    """Every relay's own time of its last event here: the distance from its head, also while a past is caught up."""
    events = {
        one.frame.upstream: one.message for one in batch if isinstance(one.message, Verified | Account | Identity)
    }
    for relay, message in events.items():
        own = canonical(message.event.time if isinstance(message, Verified) else message.time)
        if own is not None and own <= latest:
            metrics.LAST_EVENT.labels(FLOW, relay).set(to_unix(own))


def _dead(one: Received, reason: str, error: str, did: str | None) -> Out:
    code = DeadReason.of(reason)
    metrics.DEAD_LETTERS.labels(FLOW, code.value).inc()
    error = error if code == reason else f"{reason}: {error}"
    return dead_letter(f"{FLOW} {one.frame.upstream}", code, error, one.frame.data, did=did)


def _note_info(cursors: Cursors, relay: str, message: Info | StreamError) -> None:
    if isinstance(message, StreamError):
        metrics.REJECTED.labels(FLOW, "error_frame").inc()  # the socket's end is reported by the source
    elif message.name == "OutdatedCursor":
        _count_gap(cursors.lose(Gap(relay, cursors.positions.get(relay), None, "outdated_cursor")))
    else:
        metrics.DROPPED.labels(FLOW, "info").inc()


def _count_gap(gap: Gap) -> None:
    metrics.SEQUENCE_GAPS.labels(gap.upstream).inc()
    if gap.from_seq is not None and gap.to_seq is not None:
        metrics.GAP_SEQS.labels(gap.upstream).inc(gap.to_seq - gap.from_seq + 1)
