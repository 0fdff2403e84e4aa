"""Clients of a stream that replay the log: their places, outages of the log, and breaks of the live stream."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import ANY

import aiohttp
import pytest

from connectors.kafka.log import LogUnavailable
from serve.stream import client as client_module
from serve.stream import hub as hub_module
from serve.stream.log_reader import LogReader, OutOfRange
from serve.stream.marks import log_range, opened, write
from steps.sequence import advance
from tests.serve.streams import V2, Served, Stream, commit, did, op

pytestmark = pytest.mark.anyio
A = did(1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def passed(served: Served, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of an event that the stream has brought, and that only the log still has."""
    for number in range(10):
        served.write(commit(A, f"3{number:02}", op(str(number))))
    events = await stream.take(10)
    monkeypatch.setattr(served.hub.ring, "_most_bytes", 5_000)
    served.write(commit(A, "398", op("98")))
    await stream.take(1)
    return int(events[0]["payload"]["seq"])


async def test_replays_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.hub, "_places", asyncio.Semaphore(0))
    async with Stream(served.port, V2) as stream:
        cursor = await passed(served, stream, monkeypatch)
        monkeypatch.setattr(hub_module, "PLACE_SECONDS", 0.3)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with Stream(served.port, V2, cursor=cursor):
                pass
        assert refused.value.status == 503
        served.write(commit(A, "399", op("99")))
        assert (await stream.next())["payload"]["rkey"] == "99"


async def reconnected(served: Served, monkeypatch: pytest.MonkeyPatch) -> int:
    """As `passed`, of a client that has gone."""
    async with Stream(served.port, V2) as stream:
        return await passed(served, stream, monkeypatch)


async def test_a_client_that_has_met_the_live_stream_gives_its_place_to_the_next(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seq = await reconnected(served, monkeypatch)
    monkeypatch.setattr(served.hub, "_places", asyncio.Semaphore(1))
    monkeypatch.setattr(hub_module, "PLACE_SECONDS", 30.0)
    async with Stream(served.port, V2, cursor=seq) as first:
        assert (await first.take(11))[-1]["payload"]["rkey"] == "98"
        async with Stream(served.port, V2, cursor=seq) as second:
            await second.take(11)
            served.write(commit(A, "399", op("99")))
            assert [(await one.next())["payload"]["rkey"] for one in (first, second)] == ["99", "99"]


async def test_a_replay_that_is_ahead_of_the_live_stream_sends_no_event_twice(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V1: under load the process's own reader of the log may be later than the replay's."""
    ring = served.hub.ring
    async with Stream(served.port, V2) as stream:
        served.write(commit(A, "301", op("1")))
        seq = (await stream.next())["payload"]["seq"]
    held: list[Any] = []
    extend = ring.extend
    monkeypatch.setattr(ring, "extend", lambda *given: held.append(given))
    assert ring.newest is not None
    monkeypatch.setattr(ring, "start_seq", ring.newest.seq + 1)  # as if event 1 had left it
    served.write(commit(A, "302", op("2")))
    async with Stream(served.port, V2, cursor=seq) as stream:
        assert [one["payload"]["rkey"] for one in await stream.take(2)] == ["1", "2"]
        assert held, "the ring lacks event 2"
        monkeypatch.setattr(ring, "extend", extend)
        for given in held:
            served.server._loop.call_soon_threadsafe(extend, *given)
        served.write(commit(A, "303", op("3")))
        assert (await stream.next())["payload"]["rkey"] == "3"


async def test_a_replay_whose_log_does_not_answer_is_closed_to_be_tried_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seq = await reconnected(served, monkeypatch)

    def silent(*_: object) -> None:
        raise LogUnavailable("no answer")

    monkeypatch.setattr(client_module.LogReader, "read", silent)
    async with Stream(served.port, V2, cursor=seq) as stream:
        assert (await stream.next())["error"] == "UpstreamFailure"
        message = await stream.socket.receive(timeout=60)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.TRY_AGAIN_LATER)


async def test_no_client_is_led_over_a_break_of_the_live_stream(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V1: the process starts again at a later mark, which another replica wrote; what is between is in the log only."""
    async with Stream(served.port, V2) as stream:
        served.write(commit(A, "301", op("1")))
        seq = (await stream.next())["payload"]["seq"]
        started, read = [], LogReader.read

        def lost(reader: LogReader, seconds: float) -> Any:
            if not started:
                started.append(served.write(commit(A, "302", op("2"))))
                monkeypatch.setattr(LogReader, "read", read)
                _mark_all(served)
                raise OutOfRange("removed")
            return read(reader, seconds)

        monkeypatch.setattr(LogReader, "read", lost)
        closing = [await stream.next(), (await stream.socket.receive(timeout=60)).type]
        assert closing == [{"$type": "error", "error": "ConsumerTooSlow", "message": ANY}, aiohttp.WSMsgType.CLOSE]
    async with Stream(served.port, V2, cursor=seq) as stream:
        served.write(commit(A, "303", op("3")))
        assert [one["payload"]["rkey"] for one in await stream.take(3)] == ["1", "2", "3"]


def _mark_all(served: Served) -> None:
    """The mark up to the end of the log, as another replica writes it."""
    with opened(served.settings) as marks:
        newest, last = marks.newest(), marks.end - 1
    assert newest is not None
    mark = advance(newest.mark, log_range(served.settings)[1], newest.mark.time)
    assert mark is not None
    write(served.log, last, mark)
