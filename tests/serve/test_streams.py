"""Both wires of Jetstream over a real broker: live, cursors, filters, errors, slow clients."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
import zstandard

from connectors.runtime import metrics
from serve.stream import client as client_module
from serve.stream import follower
from tests.serve.streams import CID, V1, V2, Served, Stream, account, commit, did, identity, op, sync
from tests.support.flow_process import wait_until

pytestmark = pytest.mark.anyio
A, B, C = did(1), did(2), did(3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def both(served: Served, **parameters: Any) -> tuple[list[Any], list[Any]]:
    """What a client of each wire gets of the same messages."""
    async with Stream(served.port, V1) as one, Stream(served.port, V2) as two:
        served.write(
            commit(A, "3aa", op("1", text="ä\n"), op("2", "app.bsky.feed.like", "update"), op("3", action="delete")),
            identity(A, "a.test"),
            account(A, active=False, status="deactivated"),
            sync(A, "3ab"),
            account(A),
        )
        return await one.take(6), await two.take(7)


async def test_every_kind_of_event_on_both_wires(served: Served) -> None:
    first, second = await both(served)
    assert [one["time_us"] for one in first] == sorted(one["time_us"] for one in first)
    record = {"$type": "app.bsky.feed.post", "text": "ä\n", "createdAt": "2026-11-30T08:00:00.000Z"}
    created = {"operation": "create", "collection": "app.bsky.feed.post", "rkey": "1", "record": record, "cid": CID}
    assert {name: first[0][name] for name in ("did", "kind", "commit")} == {
        "did": A, "kind": "commit", "commit": {"rev": "3aa"} | created,
    }  # fmt: skip
    assert [one["commit"]["operation"] for one in first[:3]] == ["create", "update", "delete"]
    assert set(first[2]["commit"]) == {"rev", "operation", "collection", "rkey"}
    upstream = {"did": A, "time": "2026-11-30T08:00:00.000Z"}
    assert first[3]["identity"] == {"seq": 2, "handle": "a.test"} | upstream
    assert first[4]["account"] == {"seq": 3, "active": False, "status": "deactivated"} | upstream
    assert first[5]["account"] == {"seq": 3, "active": True} | upstream

    payloads = [frame["payload"] for frame in second]
    assert {frame["$type"] for frame in second} == {"message"}
    kinds = ["commit"] * 3 + ["identity", "account", "sync", "account"]
    assert [one["$type"] for one in payloads] == [f"network.bsky.jetstream.subscribeEvents#{kind}" for kind in kinds]
    seqs = [one["seq"] for one in payloads]
    assert seqs == sorted(set(seqs))
    assert seqs[2] < 10**15
    assert payloads[0] | created | {"did": A, "rev": "3aa"} == payloads[0]
    assert payloads[3]["identity"] == first[3]["identity"]
    assert payloads[5]["sync"]["rev"] == "3ab"
    car = base64.b64decode(payloads[5]["sync"]["blocks"]["$bytes"] + "==")
    assert car.endswith(base64.b64decode("oWFhAQ=="))
    times = [one["time"] for one in payloads]
    assert times == sorted(times)
    assert len(times[0]) == len("2026-11-30T08:00:00.000000Z")


async def test_messages_with_pauses_between_them_are_no_lines_of_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "READ_SECONDS", 0.05)
    async with Stream(served.port, V1) as stream:
        served.write(account(A))
        await stream.take(1)
        await asyncio.to_thread(wait_until, lambda: served.health.state == "working")
        caplog.clear()  # that is a line, once; and another test may have set the level
        with caplog.at_level("INFO"):
            for _ in range(5):
                served.write(account(A))
                await stream.take(1)
                await asyncio.sleep(2 * follower.READ_SECONDS)
    assert [record.getMessage() for record in caplog.records if record.name == "serve"] == []


async def test_a_cursor_begins_in_the_ring_or_in_the_log(served: Served) -> None:
    """In the middle of a commit too; a server that was restarted has an empty ring, and the same numbers."""
    async with Stream(served.port, V2) as stream:
        for number in range(40):
            served.write(commit(did(number), "3aa", op("1"), op("2")), commit(B, f"3b{number:02}", op("3")))
        live = [frame["payload"] for frame in await stream.take(120)]
    middle = live[61]["seq"]
    async with Stream(served.port, V2, cursor=middle) as stream:
        assert [frame["payload"] for frame in await stream.take(59)] == live[61:]
    with Served(served.settings) as other:
        served.close()
        other.write(commit(C, "3zz", op("9")))
        async with Stream(other.port, V2, cursor=middle) as stream:
            assert [frame["payload"] for frame in await stream.take(59)] == live[61:]
            assert (await stream.next())["payload"]["rev"] == "3zz"
        async with Stream(other.port, V1, cursor=middle) as stream:
            assert [frame["commit"]["rkey"] for frame in await stream.take(59)] == [one["rkey"] for one in live[61:]]
        time = next(frame for frame in live if frame["seq"] == middle)["time"]
        async with Stream(other.port, V1, cursor=_micros(time)) as stream:
            events = await stream.take(20)
        assert events[0]["time_us"] >= _micros(time)
        assert events[0]["commit"]["rkey"] in ("1", "2", "3")


def _micros(time: str) -> int:
    from datetime import datetime

    moment = datetime.fromisoformat(time)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


async def test_two_replicas_have_the_same_numbers(served: Served) -> None:
    """V1: they race for every mark."""
    with Served(served.settings) as other:
        async with Stream(served.port, V2) as one, Stream(other.port, V2) as two:

            async def write() -> None:
                for number in range(60):
                    await asyncio.to_thread(served.write, commit(did(number), "3aa", op(str(number))))

            task = asyncio.create_task(write())
            first, second = await asyncio.gather(one.take(60), two.take(60))
            await task
    assert first == second


FILTERS: list[tuple[str, dict[str, Any], list[str]]] = [
    (V2, {"collections": ["app.bsky.feed.like"]}, ["like", "identity", "account", "sync"]),
    (V2, {"collections": ["app.bsky.feed.*"], "kinds": ["commit"]}, ["post", "like"]),
    (V2, {"kinds": ["identity", "sync"]}, ["identity", "sync"]),
    (V2, {"dids": [B, C], "kinds": ["commit"]}, ["follow"]),
    (V1, {"wantedCollections": ["app.bsky.graph.*"]}, ["follow", "identity", "account"]),
    (V1, {"wantedDids": [A], "wantedCollections": ["app.bsky.feed.post"]}, ["post", "account"]),
    (V1, {"wantedDids": [B]}, ["follow", "identity"]),
    (V2, {"maxMessageSizeBytes": 260, "kinds": ["commit"]}, []),
]


@pytest.mark.parametrize(("path", "parameters", "wanted"), FILTERS)
async def test_filters(served: Served, path: str, parameters: dict[str, Any], wanted: list[str]) -> None:
    async with Stream(served.port, path, **parameters) as stream, Stream(served.port, V2) as everything:
        served.write(
            commit(A, "3aa", op("1", "app.bsky.feed.post")),
            commit(A, "3ab", op("1", "app.bsky.feed.like")),
            commit(B, "3aa", op("1", "app.bsky.graph.follow")),
            identity(B),
            account(A),
            sync(C, "3aa"),
        )
        await everything.take(6)
        found = []
        while len(found) < len(wanted):
            event = await stream.next()
            event = event.get("payload", event)
            found.append(
                event.get("collection")
                or event.get("commit", {}).get("collection")
                or event.get("kind")
                or event["$type"]
            )
        with pytest.raises(TimeoutError):
            await stream.next(0.3)
    assert sorted(one.rpartition(".")[2].rpartition("#")[2] for one in found) == sorted(wanted)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (V2, {"wantedCollections": "a.b.c"}, "use collections"),
    (V2, {"wantedDids": A}, "use dids"),
    (V2, {"compress": "true"}, "use zstdDictionary"),
    (V2, {"kinds": "labels"}, "kinds: one of commit, identity, account, sync"),
    (V2, {"kinds": "sync", "collections": "a.b.c"}, "kinds excludes"),
    (V2, {"collections": "bsky"}, "collections: neither an NSID"),
    (V2, {"collections": [f"a.b.c{n}" for n in range(101)]}, "more than 100"),
    (V2, {"dids": "alice"}, "dids: not a DID"),
    (V2, {"cursor": "now"}, "cursor: not a whole number"),
    (V2, {"cursor": -1}, "cursor: not a whole number"),
    (V2, {"zstdDictionary": 7}, "the current one is"),
    (V1, {"compress": "true"}, "use v2"),
    (V1, {"wantedDids": "alice"}, "wantedDids: not a DID"),
    (V1, {"wantedCollections": "app.*.post"}, "wantedCollections: neither"),
]


@pytest.mark.parametrize(("path", "parameters", "message"), REFUSED)
async def test_a_wrong_parameter_is_refused_before_the_upgrade(
    served: Served, path: str, parameters: dict[str, Any], message: str
) -> None:
    query = [(k, str(v)) for k, given in parameters.items() for v in (given if isinstance(given, list) else [given])]
    url = f"http://127.0.0.1:{served.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as answer:
        body = await answer.json()
    assert answer.status == 400
    assert body["error"] in ("InvalidRequest", "UnknownZstdDictionary")
    assert message in body["message"]


async def test_compressed_frames_are_the_text_frames(served: Served) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{served.port}/xrpc/network.bsky.jetstream.getZstdDictionary"
        async with session.get(url) as answer:
            raw = await answer.read()
        async with session.get(url, params={"id": "12345"}) as answer:
            assert (answer.status, (await answer.json())["error"]) == (400, "DictionaryNotFound")
    found = zstandard.ZstdCompressionDict(raw)
    async with aiohttp.ClientSession() as session, session.get(url, params={"id": str(found.dict_id())}) as answer:
        assert await answer.read() == raw
    async with Stream(served.port, V2, zstdDictionary=found.dict_id()) as packed, Stream(served.port, V2) as plain:
        served.write(commit(A, "3aa", op("1"), op("2")))
        texts = [(await plain.socket.receive_str()).encode() for _ in range(2)]
        frames = [await packed.socket.receive_bytes() for _ in range(2)]
    assert [zstandard.ZstdDecompressor(dict_data=found).decompress(frame) for frame in frames] == texts
    assert sum(map(len, frames)) < sum(map(len, texts)) / 2


async def test_cursors_of_the_future_and_of_the_past(served: Served) -> None:
    served.write(commit(A, "3aa", op("1")))
    async with Stream(served.port, V2, cursor=1_000_000_000_000_000) as stream:
        info, event = [frame["payload"] for frame in await stream.take(2)]
        assert (info["$type"].rpartition("#")[2], info["name"], "seq" in info) == ("info", "OutdatedCursor", False)
        assert event["rkey"] == "1"
    async with Stream(served.port, V2, cursor=999_999_999_999_999) as stream:
        info = (await stream.next())["payload"]
        assert info["name"] == "FutureCursor"
        served.write(commit(A, "3ab", op("2")))
        assert (await stream.next())["payload"]["rkey"] == "2"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with Stream(served.port, V2, cursor=5):
            pass
    assert refused.value.status == 400
    async with Stream(served.port, V1, cursor=5) as stream:
        assert [one["commit"]["rkey"] for one in await stream.take(2)] == ["1", "2"]
    async with Stream(served.port, V1, cursor=2_999_999_999_999_999) as stream:
        served.write(commit(A, "3ac", op("3")))
        assert (await stream.next())["commit"]["rkey"] == "3"


async def test_hello_and_options_of_v1(served: Served) -> None:
    async with Stream(served.port, V1, requireHello="true") as stream:
        served.write(commit(A, "3aa", op("1")))
        with pytest.raises(TimeoutError):
            await stream.next(0.3)
        await stream.socket.send_json({"type": "options_update", "payload": {"wantedDids": [A]}})
        assert (await stream.next())["commit"]["rkey"] == "1"
        await stream.socket.send_json({"type": "options_update", "payload": {"wantedDids": [B]}})
        await first_of(served, stream, B)
        served.write(commit(A, "3ab", op("2")), commit(B, "3bb", op("3")))
        found = await stream.until(lambda event: event["commit"]["rkey"] == "3")
        assert {event["did"] for event in found} == {B}
        await stream.socket.send_json({"type": "options_update", "payload": {"wantedDids": ["nobody"]}})
        assert (await stream.socket.receive(timeout=60)).type is aiohttp.WSMsgType.CLOSE


async def first_of(served: Served, stream: Stream, who: str) -> None:
    """Write events of this repo until one comes: the client's filter has been taken."""
    for number in range(600):
        served.write(commit(who, f"3a{number:03}", op(f"before {number}")))
        with suppress(TimeoutError):
            assert (await stream.next(0.1))["did"] == who
            return
    raise AssertionError(f"no event of {who} comes")


async def test_a_client_of_v2_that_sends_anything_is_closed(served: Served) -> None:
    async with Stream(served.port, V2) as stream:
        await stream.socket.send_str("hello")
        assert (await stream.socket.receive(timeout=60)).type is aiohttp.WSMsgType.CLOSE


async def test_a_slow_client_is_closed_and_slows_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SLOW_SECONDS", 1.0)
    size, cut = 50_000, metrics.SERVE_SLOW._value.get()
    async with Stream(served.port, V2) as slow, Stream(served.port, V2, kinds="identity") as quick:
        transport = slow.socket._response.connection.transport  # type: ignore[union-attr]
        transport.pause_reading()
        for number in range(400):
            served.write(commit(A, f"3{number:03}", op("1", text="x" * size)))
        served.write(identity(B))
        assert (await quick.next())["payload"]["did"] == B
        await asyncio.to_thread(wait_until, lambda: metrics.SERVE_SLOW._value.get() == cut + 1)
        transport.resume_reading()
        frames = []
        while True:
            message = await slow.socket.receive(timeout=60)
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            frames.append(message.json())
        assert len(frames) < 400
    assert frames[-1]["$type"] in ("error", "message")
    assert await asyncio.to_thread(lambda: served.hub.ring.end) >= 401


async def test_the_ring_is_bounded_and_who_falls_behind_it_reads_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream(served.port, V2) as stream:
        for number in range(50):
            served.write(commit(A, f"3{number:02}", op(str(number))))
        live = await stream.take(49)
        monkeypatch.setattr(served.hub.ring, "_most_bytes", 20_000)
        served.write(commit(A, "399", op("99")))
        live += await stream.take(2)
    assert served.hub.ring._bytes <= 20_000
    async with Stream(served.port, V2, cursor=live[0]["payload"]["seq"]) as stream:
        assert await stream.take(51) == live


async def test_a_stream_ends_with_a_reason_when_the_process_stops(served: Served) -> None:
    async with Stream(served.port, V2) as stream:
        closing = asyncio.create_task(asyncio.to_thread(served.close))
        message = await stream.socket.receive(timeout=60)
        await closing
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.SERVICE_RESTART)
