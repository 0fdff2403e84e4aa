"""Messages as the flows write them to the log: the load of the index's benchmarks."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice

import msgspec

from connectors.kafka.producer import LogProducer, Out
from schemas import wire
from schemas.settings import Settings
from schemas.topics import FIREHOSE_BACKFILL

REV = "3lbenchmark22"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
TIME = "2026-01-01T00:00:00.000Z"
TEXT = "The quick brown fox jumps over the lazy dog, and the relay tells everybody about it at once. "
BATCH_MESSAGES = 10_000

_LETTERS = str.maketrans("0189", "ghij")
SQL_DID = "'did:plc:' || left(translate(encode(sha256((%s || n)::bytea), 'hex'), '0189', 'ghij'), 24)"
"""`random_did(family, n)` in SQL."""

Record = tuple[str, str, bytes]  # collection, rkey, JSON body


def random_did(family: str, number: int) -> str:
    """The same DID each time; as in the network, neighbours have nothing in common."""
    return "did:plc:" + sha256(f"{family}{number}".encode()).hexdigest()[:24].translate(_LETTERS)


def snapshot(did: str, records: Iterable[Record]) -> Iterator[Out]:
    """The messages of a repo's first attempt: its records, then the outcome."""
    count = 0
    for collection, rkey, body in records:
        count += 1
        record = wire.CreateEvent(
            did=did, attempt=1, rev=REV, collection=collection, rkey=rkey, cid=CID, time=TIME, commit=CID,
            record=msgspec.Raw(body), raw=None, reason=None,
        )  # fmt: skip
        yield Out(FIREHOSE_BACKFILL, did, wire.encode(record))
    outcome = wire.RepoOutcome(
        did=did, attempt=1, status="synced", active=True, time=TIME, rev=REV, commit=CID, data=CID, count=count,
        reason=None, account_time="",
    )  # fmt: skip
    yield Out(FIREHOSE_BACKFILL, did, wire.encode(outcome))


def send_all(settings: Settings, messages: Iterable[Out]) -> int:
    """Write the messages in batches; returns their number."""
    producer, left, sent = LogProducer(settings), iter(messages), 0
    while batch := list(islice(left, BATCH_MESSAGES)):
        producer.send(batch)
        sent += len(batch)
    return sent
