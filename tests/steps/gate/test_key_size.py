"""Keys too large for an index of PostgreSQL are found before a row is written."""

import pytest

from protocol.labels import MAX_KEY_BYTES
from schemas import wire
from schemas.topics import FIREHOSE_LIVE, LABEL_LIVE
from steps.gate.key_size import KeyTooLarge, check_size
from tests.steps.gate.gate_events import DID, account, commit, op

LARGE = "k" * (MAX_KEY_BYTES - len(DID) - len("c.o.l") + 1)


def label(**parts: str) -> wire.LabelEvent:
    return wire.LabelEvent(**({"seq": 1, "src": DID, "uri": DID, "val": "spam", "cts": "t", "relay": "r"} | parts))


def test_keys_up_to_the_limit_pass() -> None:
    for event in (commit("1", None, "root", op("create", LARGE[1:])), account("t")):
        check_size(FIREHOSE_LIVE, event)
    check_size(LABEL_LIVE, label(val="v" * (MAX_KEY_BYTES - 2 * len(DID))))


@pytest.mark.parametrize(
    ("topic", "event"),
    [
        (FIREHOSE_LIVE, commit("1", None, "root", op("create", "short"), op("create", LARGE))),
        (FIREHOSE_LIVE, wire.AccountEvent(seq=1, time="t", did="did:plc:" + 2 * LARGE, active=True)),
        (LABEL_LIVE, label(val="v" * MAX_KEY_BYTES)),
        (LABEL_LIVE, label(uri="é" * (MAX_KEY_BYTES // 2))),
    ],
)
def test_a_larger_key_is_refused(topic: str, event: object) -> None:
    """In bytes of UTF-8, not in characters; of every operation of a commit."""
    with pytest.raises(KeyTooLarge):
        check_size(topic, event)
