"""Trains the zstd dictionary of Jetstream v2's frames on the newest messages of the log in the settings.

    SLUICE_KAFKA_BOOTSTRAP=HOST:PORT python -m tools.train_dictionary

It writes serve/stream/frames.zstd-dictionary. The id is a hash of the dictionary, so another dictionary has another id; clients that
ask for the former one are told the new one and fetch it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import zstandard

from connectors.kafka.log import watermarks
from schemas.settings import Settings, load
from schemas.topics import FIREHOSE_LIVE
from serve.stream.events import events, v2_text
from serve.stream.log_reader import Numbered
from steps.sequence import SEQ_END, SEQS

FILE = Path(__file__).resolve().parent.parent / "serve" / "stream" / "frames.zstd-dictionary"
SIZE = 32 * 1024
MESSAGES = 20_000
READ_SECONDS = 10.0
LOWEST_ID, HIGHEST_ID = 32_768, 2**31  # RFC 8878 reserves the others


def train(texts: Sequence[bytes]) -> bytes:
    """A dictionary for such texts."""
    untitled = zstandard.train_dictionary(SIZE, list(texts), dict_id=LOWEST_ID).as_bytes()
    digest = int.from_bytes(hashlib.sha256(untitled).digest()[:8], "big")
    number = LOWEST_ID + digest % (HIGHEST_ID - LOWEST_ID)
    return untitled[:4] + number.to_bytes(4, "little") + untitled[8:]


def texts_of(values: Sequence[bytes]) -> list[bytes]:
    """The frames of messages, with numbers and times as they have."""
    numbered = [
        Numbered(SEQ_END // 3 + SEQS * at, 1_700_000_000_000_000 + 1009 * at, one) for at, one in enumerate(values)
    ]
    return [v2_text(event) for event in events(numbered)]


def newest(settings: Settings) -> list[bytes]:
    """The newest values of `firehose_live`."""
    from confluent_kafka import TopicPartition  # noqa: PLC0415 - only for this

    from connectors.kafka import client as broker  # noqa: PLC0415 - as above

    ranges = watermarks(settings, [FIREHOSE_LIVE])
    consumer = broker.reader(settings, "train-dictionary", auto_offset_reset="earliest")
    share = MESSAGES // len(ranges)
    starts = {part: max(low, high - share) for part, (low, high) in ranges.items()}
    consumer.assign([TopicPartition(*part, start) for part, start in starts.items()])
    wanted = sum(high - starts[part] for part, (_, high) in ranges.items())
    found = consumer.consume(wanted, READ_SECONDS) if wanted else []
    broker.close(consumer)
    return [message.value() or b"" for message in found if message.error() is None]


if __name__ == "__main__":
    FILE.write_bytes(train(texts_of(newest(load()))))
