"""When an event came is a time of ours: the log keeps it, and the gates of the AppView decide by it (N10)."""

from __future__ import annotations

import pytest
from cbrrr import encode_dag_cbor

from connectors.atproto.stream_sockets import Frame
from flows.firehose import flow as firehose
from flows.index.decode import Batch, decode
from schemas.settings import Settings
from tests.flows.firehose.hostile_frames import many_names
from tests.support.tiny_repo import Key

CAME = 1_700_000_000_123


def test_a_commit_is_written_with_the_time_when_its_frame_came() -> None:
    """However long it waits for its account's key. What its author and its PDS say of the time is no part of it."""
    _, frame = many_names(3, "hello", Key())
    received = firehose.decode_all([Frame("wss://relay", frame, received=CAME)])
    (out,) = firehose.encode_all(firehose.verifier(Settings())(received))
    assert (out.topic, out.time) == ("firehose_live", CAME)

    class Logged:
        """What `decode` reads of a message."""

        def __init__(self, stamp: tuple[int, int]) -> None:
            self.timestamp = lambda: stamp
            self.topic, self.value = lambda: "firehose_live", lambda: out.value
            self.partition, self.offset = lambda: 0, lambda: 7

    for stamp, came in (((1, CAME), CAME), ((0, 0), None)):  # the log's time, and none
        decoded = decode(Batch([Logged(stamp)], {}))  # type: ignore[list-item]
        assert [[one.received for one in queue] for queue in decoded.queues.values()] == [[came]]


@pytest.mark.parametrize("kind", ["account", "identity"])
@pytest.mark.parametrize(
    ("time", "written"),
    [
        ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.000Z"),
        ("2024-01-01T00:00:00.000Z", "2023-11-14T22:13:20.123Z"),
    ],
    ids=["earlier than the receipt", "later than the receipt"],
)
def test_the_time_of_an_account_event_is_at_most_its_receipt(kind: str, time: str, written: str) -> None:
    """H6: a deferred event is encoded later than it was received; a PDS whose clock is ahead must gain nothing by that."""
    body = {"seq": 5, "did": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "time": time, "active": True}
    frame = encode_dag_cbor({"op": 1, "t": f"#{kind}"}) + encode_dag_cbor(body)
    (out,) = firehose.encode_all(firehose.decode_all([Frame("wss://relay", frame, received=CAME)]))
    assert f'"time":"{written}"' in out.value.decode()
