"""Frames of a hostile upstream through the steps of the flows, without a broker: each costs itself, and little."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from typing import Any

import pytest

from connectors.atproto.deferred_events import new_deferred
from connectors.atproto.stream import POLL_BYTES
from connectors.atproto.stream_sockets import Frame
from connectors.identity.label_signatures import CheckedFrame
from connectors.kafka.producer import Out
from flows.firehose import flow as firehose
from flows.firehose.encode import BODY_LEAST, BODY_TIMES, commit_message
from flows.labels import flow as labels
from flows.streams import cursor_step
from protocol import car as car_step
from protocol import event_stream as frames_step
from protocol import labels as labels_step
from protocol import verify_commit
from protocol.event_stream import MAX_FRAME_BYTES, Labels, Rejected, decode, position, sequence
from protocol.verify_commit import Verified, VerifyReason
from schemas import wire
from schemas.settings import Settings
from steps.cursor import Cursors, Gap
from steps.dedup import DedupCache
from tests.flows.firehose.hostile_frames import framed, item_bomb, many_names, nested_field, nested_header
from tests.support import ROOT
from tests.support.tiny_repo import DID, Key

SETTINGS = Settings()
TIME = "2026-01-01T00:00:00.000Z"
LABEL = {"ver": 1, "src": DID, "uri": f"at://{DID}/a.b.c/x", "val": "spam", "cts": TIME, "exp": TIME, "neg": False}
ACCOUNT = {"seq": 7, "did": DID, "time": TIME, "active": True, "status": "active"}
GOOD = framed("#identity", {"seq": 8, "did": DID, "time": TIME, "handle": "bob.test"})
KEY = Key()


def through_firehose(*data: bytes) -> list[Out]:
    batch = firehose.decode_all([Frame("wss://relay", one) for one in data])
    batch = firehose.follower(Cursors())(batch)
    batch = firehose.deduplicator(DedupCache(1000), new_deferred())(firehose.verifier(SETTINGS)(batch))
    return firehose.encode_all(batch)


def through_labels(*data: bytes) -> list[Out]:
    batch = cursor_step("labels", Cursors(), (Labels,))(
        labels.decode_all([Frame("wss://labeler", one) for one in data])
    )
    return labels.encode_all([CheckedFrame(one, {}) for one in batch])


def letters(out: list[Out]) -> list[Any]:
    return [wire.decode_dead_letter(one.value) for one in out if one.topic == "dead_letter"]


def live(out: list[Out]) -> list[Any]:
    return [wire.decode_live(one.value) for one in out if one.topic == "firehose_live"]


DEEP = {
    **{f"header {field}": nested_header(field) for field in ("op", "t")},
    **{f"identity {field}": nested_field("#identity", ACCOUNT, field) for field in ("seq", "did", "time", "handle")},
    **{f"account {field}": nested_field("#account", ACCOUNT, field) for field in ("time", "active", "status", "new")},
    "labels": nested_field("#labels", {"seq": 7}, "labels"),
    "unknown": nested_field("#novelty", {"seq": 7}, "seq"),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_frame_nested_996_deep_is_one_dead_letter_and_the_next_event_passes(name: str) -> None:
    """H3, G7."""
    out = through_firehose(DEEP[name], GOOD)
    assert [event.seq for event in live(out)] == [8]
    (letter,) = letters(out)
    assert letter.reason == "undecodable"
    assert "nested" in letter.error
    assert len(letter.error) < 300


@pytest.mark.parametrize("field", LABEL)
def test_a_label_with_a_field_nested_100_deep_is_refused_and_not_rendered(field: str) -> None:
    """G7: 100 levels pass the limit of nesting, and no text of ours shows them."""
    deep: Any = "leaf"
    for _ in range(100):
        deep = [deep]
    frame = framed("#labels", {"seq": 7, "labels": [LABEL | {field: deep}, LABEL | {"val": "good"}]})
    out = through_labels(frame)
    assert [wire.decode_label(one.value).val for one in out if one.topic == "label_live"] == ["good"]
    (letter,) = letters(out)
    assert "[[" not in letter.error
    assert "leaf" not in letter.error


@pytest.mark.parametrize(
    ("module", "name", "frame"),
    [
        # compiled modules call what they import of others by its name, and each other directly
        (frames_step, "_decode", GOOD),
        (car_step, "sha256", many_names(1, "x", KEY)[1]),
        (firehose, "identity_value", GOOD),
    ],
)
def test_any_exception_of_a_frame_is_its_dead_letter_with_the_exceptions_name(
    module: Any, name: str, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: decoding, verification and encoding alike."""
    healthy = getattr(module, name)
    failed = []

    def fails(*args: Any, **named: Any) -> Any:
        if not failed:
            failed.append(1)
            raise ZeroDivisionError("a text that quotes the frame")
        return healthy(*args, **named)

    monkeypatch.setattr(module, name, fails)
    other = framed("#account", ACCOUNT | {"seq": 9})
    out = through_firehose(frame, other)
    (letter,) = letters(out)
    assert failed
    assert letter.reason == "failed"
    assert letter.error.startswith("ZeroDivisionError at ")
    assert [event.seq for event in live(out)] == [9]


def test_an_exception_of_one_label_costs_this_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """H3."""
    healthy = labels_step._uri

    def fails(text: str) -> Any:
        if text == "poison":
            raise ZeroDivisionError
        return healthy(text)

    monkeypatch.setattr(labels_step, "_uri", fails)
    out = through_labels(framed("#labels", {"seq": 7, "labels": [LABEL | {"uri": "poison"}, LABEL]}))
    assert [one.topic for one in out] == ["label_live", "dead_letter"]
    (letter,) = letters(out)
    assert (letter.reason, letter.error.split(" at ")[0]) == ("failed", "ZeroDivisionError")


def test_an_exception_outside_of_a_frame_still_ends_the_process() -> None:
    """H3."""

    class Broken(Cursors):
        def advance(self, upstream: str, seq: int) -> Gap | None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        firehose.follower(Broken())(firehose.decode_all([Frame("wss://relay", GOOD)]))


BOMBS = {
    "labels": item_bomb(4_900_000),
    "ops": item_bomb(4_900_000, "#commit", "ops"),
    "above the frame limit": item_bomb(16_000_000, "#commit", "ops"),
    "no frame at all": b"\x80" * 16_000_000,
    "no frame, within the limit": b"\x80" * 4_900_000,
    "one level of a million maps": b"\xa0" + b"\xa1\x61a\x9a\x00\x40\x00\x00" + b"\xa0" * 0x400000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_millions_of_items_in_a_frame_cost_neither_time_nor_memory(name: str) -> None:
    """H2: before, 36 s and 1 GB. Also in what the socket's loop calls."""
    bomb = BOMBS[name]
    tracemalloc.start()
    before = time.process_time()
    message = decode(bomb)
    position(bomb)
    sequence(bomb)
    seconds = time.process_time() - before
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(message, Rejected)
    assert peak < 2_000_000
    assert seconds < 5  # 0.1 s on a quiet machine without tracemalloc
    assert message.seq == (7 if name == "labels" else None)


def test_a_frame_within_the_limits_is_decoded_though_it_is_scanned() -> None:
    """H2: 1,000 labels are more than any labeler sends at once."""
    frame = framed("#labels", {"seq": 7, "labels": [LABEL | {"val": f"v{at}"} for at in range(1000)]})
    assert len(frame) > frames_step.SCAN_BYTES
    assert len(through_labels(frame)) == 1000
    assert position(frame) == sequence(frame) == 7


def test_a_frame_above_the_limit_still_has_its_seq() -> None:
    """G6: it is read without decoding the frame."""
    large = framed("#novelty", {"seq": 7, "padding": bytes(MAX_FRAME_BYTES)})
    message = decode(large)
    assert isinstance(message, Rejected)
    assert message.seq == sequence(large) == 7


def test_more_labels_than_a_frame_may_have_are_refused() -> None:
    """H2."""
    message = decode(framed("#labels", {"seq": 7, "labels": [0] * (frames_step.MAX_LABELS + 1)}))
    assert isinstance(message, Rejected)
    assert (message.reason, message.seq) == ("too_large", 7)


def test_a_dids_size_fits_the_index_of_the_tables() -> None:
    """H3: DID and path together are a key."""
    longest = "did:web:" + "a" * (frames_step.MAX_DID_BYTES - 8)
    for did, kept in ((longest, 1), (longest + "a", 0)):
        out = through_firehose(framed("#identity", {"seq": 8, "did": did, "time": TIME}))
        assert (len(live(out)), len(letters(out))) == (kept, 1 - kept)


def verified(frame: bytes) -> Verified:
    event = decode(frame)
    assert isinstance(event, frames_step.Commit)
    result = verify_commit.verify(event, 1 << 53)
    assert isinstance(result, Verified)
    assert result.ops is not None
    return result


@pytest.mark.parametrize("text", ["plain text " * 7000, "\x01" * 70_000], ids=["plain", "control characters"])
def test_one_record_named_by_200_operations_becomes_a_sync_without_encoding(text: str) -> None:
    """H2: its multiplied size is known before a body is made."""
    _, frame = many_names(200, text, KEY)
    result = verified(frame)
    tracemalloc.start()
    encoded = commit_message(result, "relay", TIME)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.problem is not None
    assert encoded.problem.reason is VerifyReason.MESSAGE_TOO_LARGE
    assert isinstance(wire.decode_live(encoded.value), wire.SyncEvent)
    assert peak < 100_000


def test_a_record_whose_json_is_what_grows_is_encoded_once_at_most() -> None:
    """H2: control characters grow sixfold, which the size of the block does not show."""
    _, frame = many_names(20, "\x01" * 20_000, KEY)
    result = verified(frame)
    tracemalloc.start()
    encoded = commit_message(result, "relay", TIME)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.problem is not None
    assert peak < 1_000_000


def test_equal_records_of_ordinary_size_pass() -> None:
    """H2: 200 likes of one post at one moment."""
    _, frame = many_names(200, "hello", KEY)
    encoded = commit_message(verified(frame), "relay", TIME)
    assert encoded.problem is None
    event = wire.decode_live(encoded.value)
    assert isinstance(event, wire.CommitEvent)
    assert len({bytes(op.record) for op in event.ops}) == 1


def test_what_a_commits_message_may_hold_is_in_proportion_to_its_blocks() -> None:
    """H2: so a batch of frames bounds the batch of its messages."""
    for times, size in ((2, 40_000), (5, 3000), (50, 2000), (200, 10_000)):
        _, frame = many_names(times, "x" * size, KEY)
        assert len(commit_message(verified(frame), "relay", TIME).value) < max(
            BODY_LEAST + 200 * 300, (BODY_TIMES + 4) * len(frame)
        )


MEMORY = """
import resource, sys
sys.path[:0] = [{root!r}]
from tests.flows.firehose.hostile_frames import many_names
from tests.flows.firehose.test_hostile_frames import KEY, Frame, firehose, SETTINGS, item_bomb, through_labels, letters
frame = many_names(200, "\\x01" * 62_000, KEY)[1]
frames = [Frame("wss://relay", bytes(bytearray(frame))) for _ in range(60)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = firehose.encode_all(firehose.verifier(SETTINGS)(firehose.decode_all(frames)))
assert len(letters(out)) == 60, out
for _ in range(3):
    assert letters(through_labels(item_bomb(4_900_000)))
print(len(frame), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_60_commits_of_98_kb_and_item_bombs_take_little_memory() -> None:
    """H2: a process of its own, its resident memory. Before: 962 MB of messages."""
    script = MEMORY.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    frame_bytes, grown_mb = map(int, run.stdout.split())
    assert frame_bytes > 98_000
    assert grown_mb < 60
    assert 60 * frame_bytes <= POLL_BYTES, "one poll takes them all"
