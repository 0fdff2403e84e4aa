"""relays → decode → cursor → verify → dedup → signatures → encode → firehose_live

Each process reads every relay; with several, each handles the repos of its share (`steps.shares`) and drops all others after `cursor`.
A frame that cannot be processed becomes a dead letter in `encode`; it never stops the others.
The functions below follow the order of the steps. Everything runs in the flow's thread. Two other threads hand over to it:

- the sockets' loop (`connectors.atproto.stream_sockets`): reading must go on while the flow waits for PostgreSQL or Kafka;
- the key lookups' loop (`connectors.identity.key_lookups`): a slow directory must delay only the events of the unknown key.

librdkafka sends messages from threads of its own; the sink waits for its delivery reports.
"""

import time

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.atproto.deferred_events import DeferralStatus, new_deferred, run_to_end, seq_of
from connectors.atproto.relay import firehose_source
from connectors.atproto.stream_sockets import Frame
from connectors.identity.commit_signatures import CommitSignatures
from connectors.identity.key_ring import KeyRing
from connectors.kafka.producer import LogSink, Out, now_text
from connectors.runtime import metrics
from connectors.runtime.health import Health
from flows.firehose.encode import account_value, commit_message, identity_value, moment
from flows.streams import Received, Step, cursor_step, dead_frame, decode_frames, note_event_times
from protocol.did_document import ResolvedIdentity
from protocol.encoding.safe_text import failure, shown
from protocol.encoding.timestamps import canonical, from_unix
from protocol.event_stream import Account, Commit, Identity, Rejected, Sync
from protocol.syntax import FUTURE_MICROS
from protocol.verify_commit import Refused, Verified, verify
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE
from steps.cursor import Cursors
from steps.dedup import DedupCache
from steps.deferred import Deferred
from steps.shares import WHOLE, Share

TOPIC = FIREHOSE_LIVE
FLOW = "firehose"
EVENTS = (Commit, Sync, Identity, Account)
TIMES = 15  # a relay's time is the median of this many events


def build(
    relays: Source[Frame], log: Sink[Out], *, cursor: Step, verify: Step, dedup: Step, signatures: Step
) -> Dataflow:
    """The dataflow over any source of frames and any sink of messages."""
    flow = Dataflow(FLOW)
    frames = op.input("relays", flow, relays)
    messages = op.flat_map_batch("decode", frames, decode_all)
    followed = op.flat_map_batch("cursor", messages, cursor)
    verified = op.flat_map_batch("verify", followed, verify)
    fresh = op.flat_map_batch("dedup", verified, dedup)
    signed = op.flat_map_batch("signatures", fresh, signatures)
    encoded = op.flat_map_batch("encode", signed, encode_all)
    op.output(TOPIC, encoded, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the relays, the identities and the log of the settings."""
    share = Share(settings.tuning.firehose_share, settings.firehose_shares)
    cursors, seen, deferred = Cursors(), DedupCache(settings.tuning.dedup_entries), new_deferred()
    ring = KeyRing(settings, health, signing_key)
    return build(
        firehose_source(settings, health, cursors, DeferralStatus(FLOW, deferred, ring), share),
        LogSink(settings),
        cursor=follower(cursors, share),
        verify=verifier(settings),
        dedup=deduplicator(seen, deferred),
        signatures=signature_checker(settings, ring, seen, deferred),
    )


def signing_key(identity: ResolvedIdentity) -> str | None:
    """The key that signs an account's commits."""
    return identity.signing_key


def decode_all(frames: list[Frame]) -> list[Received]:
    return decode_frames(frames, metrics.FIREHOSE_EVENTS)


def follower(cursors: Cursors, share: Share = WHOLE) -> Step:
    """The `cursor` step: follow each relay's sequence, record gaps, and keep the relay's own time beside its position.

    Then drop what other shares handle. Decoding a frame first costs less than any search for its DID in Python, and the position,
    gaps and errors are those of a process that reads alone.
    """
    follow = cursor_step(FLOW, cursors, EVENTS)

    def follow_all(batch: list[Received]) -> list[Received]:
        events = follow(batch)
        now = from_unix(time.time())
        times = _times(events, now)
        cursors.times.update(times)
        if share.count == 1:
            return events
        note_event_times(FLOW, times, now)  # a share without events of its own is not behind
        own = [one for one in events if one.message is None or share.owns(one.message.did)]
        metrics.DROPPED.labels(FLOW, "other_share").inc(len(events) - len(own))
        return own

    return follow_all


def _times(events: list[Received], now: str) -> dict[str, str]:
    """Relay → its time at the end of these events: the median of the last few, because any PDS's clock may be wrong."""
    last: dict[str, list[str]] = {}
    for one in reversed(events):
        if type(one.message) in EVENTS:
            found = last.setdefault(one.frame.upstream, [])
            if len(found) < TIMES and (own := canonical(one.message.time)) is not None:
                found.append(min(own, now))
    return {relay: sorted(found)[len(found) // 2] for relay, found in last.items() if found}


def verifier(settings: Settings) -> Step:
    """The `verify` step: replace each commit and sync by what its blocks prove, or by the reason of its refusal."""

    def verify_all(batch: list[Received]) -> list[Received]:
        now_micros = time.time_ns() // 1000
        return [
            Received(one.frame, verify(one.message, now_micros, settings.verify), one.epoch)
            if isinstance(one.message, Commit | Sync)
            else one
            for one in batch
        ]

    return verify_all


def deduplicator(seen: DedupCache, deferred: Deferred[Received]) -> Step:
    """The `dedup` step: keep the first copy of each event. Refused events are never duplicates: they prove nothing.

    A commit that lacks its proof or a record is dropped if any relay has sent a complete copy, even later in this batch.
    A copy of a deferred event also holds back the cursor of its own relay, because the event is not durable yet.
    #account events are never duplicates: each relay has its own order of them, which the ratchet needs.
    """

    def first_ones(batch: list[Received]) -> list[Received]:
        keys = [identity(one.message) for one in batch]
        here = {key for key in keys if key is not None and key[-1] is True}

        def is_new(key: tuple[object, ...] | None, one: Received) -> bool:
            if key is None:
                return True
            if key[-1] is False and ((whole := (*key[:-1], True)) in here or whole in seen):
                deferred.repeat(whole, one.frame.upstream, seq_of(one.message))
                return False
            if seen.add(key):
                return True
            deferred.repeat(key, one.frame.upstream, seq_of(one.message))
            return False

        fresh = [one for one, key in zip(batch, keys, strict=True) if is_new(key, one)]
        if len(fresh) < len(batch):
            metrics.DROPPED.labels(FLOW, "duplicate").inc(len(batch) - len(fresh))
        return fresh

    return first_ones


def identity(message: object) -> tuple[object, ...] | None:
    """The key under which copies of one event from different relays are equal; None: never a duplicate."""
    if isinstance(message, Verified):
        event = message.event
        # an incomplete copy must not hide another relay's complete one
        whole = message.ops is not None and all(op.cid is None or op.cid in message.blocks for op in message.ops)
        return ("commit" if type(event) is Commit else "sync", event.did, event.rev, message.commit, whole)
    if isinstance(message, Identity):
        return ("identity", message.did, shown(message.time), message.handle)
    return None


def signature_checker(
    settings: Settings, ring: KeyRing[str | None], seen: DedupCache, deferred: Deferred[Received]
) -> Step:
    """The `signatures` step: refuse what the account's key did not sign; defer the events of an account whose key is unknown."""

    def forget(message: object) -> None:
        seen.discard(identity(message))

    return CommitSignatures(FLOW, ring, settings.verify, deferred, identity=identity, unproven=forget).check


def encode_all(batch: list[Received]) -> list[Out]:
    """The `encode` step: events → messages of the live topic; refused events and frames → dead letters."""
    micros = time.time_ns() // 1000
    now, latest = now_text(), from_unix((micros + FUTURE_MICROS) / 1e6)
    out: list[Out] = []
    for one in batch:
        made = len(out)
        try:
            _encode(one, now, latest, out)
        except Exception as err:  # a defect in our code loses this event, not the stream
            del out[made:]
            out.append(dead_frame(FLOW, one.frame, DeadReason.FAILED.value, failure(err)))
    note_event_times(
        FLOW, {one.frame.upstream: own for one in batch if (own := _own_time(one.message)) is not None}, latest
    )
    return out


def _encode(one: Received, now: str, latest: str, out: list[Out]) -> None:
    message, relay = one.message, one.frame.upstream
    if isinstance(message, Verified):
        event = message.event
        encoded = commit_message(message, relay, moment(event.time, now, latest))
        # the time of receipt: an event may have been deferred since
        out.append(Out(TOPIC, event.did, encoded.value, one.frame.received))
        if encoded.missing:
            metrics.REJECTED.labels(FLOW, "missing_block").inc(encoded.missing)
        if message.bad_paths:
            metrics.REJECTED.labels(FLOW, "bad_path").inc(message.bad_paths)
        for reason in message.counted:
            metrics.REPORTED_FAILURES.labels(FLOW, reason.value).inc()
        if encoded.problem is not None:
            out.append(dead_frame(FLOW, one.frame, encoded.problem.reason.value, encoded.problem.detail, event.did))
    elif isinstance(message, Account | Identity):
        # at most the receipt: a clock that is ahead must not make this event newer than a later one of another relay
        receipt = from_unix(one.frame.received / 1000) if one.frame.received else now
        at = moment(message.time, receipt, receipt)
        if isinstance(message, Account):
            value = account_value(message, relay, one.epoch, at)
        else:
            value = identity_value(message, relay, one.epoch, at)
        out.append(Out(TOPIC, message.did, value))
    elif isinstance(message, Refused | Rejected):
        out.append(dead_frame(FLOW, one.frame, message.reason.value, message.detail, message.did))
    else:
        metrics.DROPPED.labels(FLOW, "foreign_type").inc()  # only a retried frame: `cursor` drops these


def _own_time(message: object) -> object:
    if isinstance(message, Verified):
        return message.event.time
    return message.time if isinstance(message, Account | Identity) else None


def retry_frame(frame: Frame, settings: Settings) -> list[Out]:
    """Pass the frame of a dead letter through the current steps, without `cursor` and `dedup`. Raises Stopping."""
    ring, deferred = KeyRing(settings, Health(FLOW, exported=False), signing_key), new_deferred()
    check = signature_checker(settings, ring, DedupCache(1), deferred)
    try:
        (one,) = verifier(settings)(decode_all([frame]))
        return encode_all(run_to_end(check, one, deferred, ring))
    finally:
        ring.close()
