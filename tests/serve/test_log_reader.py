"""The reader of streams: what it reads ahead is bounded, and gaps in the log are passed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import TopicPartition

from connectors.kafka.producer import LogProducer, Out
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE, FIREHOSE_SEQUENCE
from serve.stream import log_reader
from serve.stream.log_reader import LogReader, Numbered
from serve.stream.marks import StoredMark, log_range, opened, write
from steps.sequence import LogMark, advance, restart
from tests.support.flow_process import wait_until

NOW = 1_796_000_000_000_000


def filled(settings: Settings, messages: int, size: int) -> None:
    LogProducer(settings).send([Out(FIREHOSE_LIVE, f"did:{n}", b"%06d" % n + b"x" * size) for n in range(messages)])


def marked(settings: Settings, ends: list[int]) -> tuple[StoredMark, LogMark]:
    """Marks from the start of the log to these ends, written; the first and the last one."""
    producer, after = LogProducer(settings), -1
    first = last = restart(None, [0] * len(ends), NOW)
    write(producer, after, first)
    while (following := advance(last, ends, NOW)) is not None:
        after, last = after + 1, following
        write(producer, after, last)
    return StoredMark(0, first), last


def read_all(reader: LogReader, count: int) -> list[Numbered]:
    found: list[Numbered] = []
    wait_until(lambda: found.extend(reader.read(0.5)) or len(found) >= count)  # type: ignore[func-returns-value]
    return found


def test_what_is_read_ahead_is_bounded(settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without marks a reader takes what it may hold, and stops; with marks it reads everything in order."""
    monkeypatch.setattr(log_reader, "BUFFER_BYTES", 200_000)
    monkeypatch.setattr(log_reader, "QUEUE_BYTES", 200_000)
    settings = settings_of()
    filled(settings, 3000, 1000)
    _, ends = log_range(settings)
    write(LogProducer(settings), -1, restart(None, [0, 0], NOW))
    with opened(settings) as marks:
        first = marks.newest()
    assert first is not None
    reader = LogReader(settings, first, "test")
    given: list[Numbered] = []
    wait_until(lambda: given.extend(reader.read(0.1)) or reader._held > 200_000)  # type: ignore[func-returns-value]
    for _ in range(20):
        given += reader.read(0.1)
    assert given == []
    assert 0 < reader._held < 200_000 + 1_100 * log_reader.CONSUME_MESSAGES
    last = advance(first.mark, ends, NOW)
    after = 0
    while last is not None:
        write(LogProducer(settings), after, last)
        after, last = after + 1, advance(last, ends, NOW)
    found = read_all(reader, 3000)
    reader.close()
    assert sorted(int(one.value[:6]) for one in found) == list(range(3000))
    assert [one.seq for one in found] == sorted({one.seq for one in found})
    assert [one.time for one in found] == sorted({one.time for one in found})


def test_cursors_are_found_by_bisection_and_the_floor_follows_the_log(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    filled(settings, 5000, 10)
    _, ends = log_range(settings)
    first, last = marked(settings, ends)
    with opened(settings) as marks:
        newest, floor = marks.newest(), marks.floor([0, 0])
        assert newest is not None
        assert newest.mark == last
        assert floor == first
        every = [found for offset in range(marks.end) if (found := marks.at(offset)) is not None]
        assert len(every) == 6
        for one in every:
            for seq in (one.mark.seq, one.mark.seq + 1):
                assert marks.last(lambda mark, seq=seq: mark.seq <= seq) == one  # type: ignore[misc]
        assert marks.last(lambda mark: mark.seq < first.mark.seq) is None
        assert marks.floor([every[2].mark.ends[0], 0]) == every[2]
        assert marks.floor([every[2].mark.ends[0] + 1, 0]) == every[3]
        assert marks.floor([ends[0] + 1, 0]) is None


def test_a_mark_that_lost_a_race_is_ignored_wherever_one_begins(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    filled(settings, 10, 10)
    _, ends = log_range(settings)
    producer = LogProducer(settings)
    first = restart(None, [0, 0], NOW)
    write(producer, -1, first)
    write(producer, -1, restart(None, [0, 0], NOW + 10**9))
    partly = advance(first, [ends[0], 0], NOW)
    whole = advance(first, ends, NOW)
    assert partly is not None
    assert whole is not None
    write(producer, 0, whole)  # its writer had not read the second one
    write(producer, 1, partly)
    write(producer, 2, whole)
    with opened(settings) as marks:
        assert marks.newest() == StoredMark(0, first)
        assert marks.at(1) is None
    write(producer, 4, partly)
    with opened(settings) as marks:
        assert marks.newest() == marks.at(1) == StoredMark(5, partly)


def test_a_message_that_is_delivered_again_is_not_read_again(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    filled(settings, 40, 10)
    _, ends = log_range(settings)
    producer, first = LogProducer(settings), restart(None, [0, 0], NOW)
    half, whole = advance(first, [end // 2 for end in ends], NOW), advance(first, ends, NOW)
    assert half is not None
    assert whole is not None
    write(producer, -1, first)
    write(producer, 0, half)
    reader = LogReader(settings, StoredMark(0, first), "test")
    found = read_all(reader, sum(half.ends))
    for topic, parts in ((FIREHOSE_LIVE, (0, 1)), (FIREHOSE_SEQUENCE, (0,))):
        for part in parts:
            reader._consumer.seek(TopicPartition(settings.topic(topic), part, 0))
    write(producer, 1, whole)
    found += read_all(reader, 40 - len(found))
    reader.close()
    assert sorted(int(one.value[:6]) for one in found) == list(range(40))
    assert [one.seq for one in found] == sorted({one.seq for one in found})
