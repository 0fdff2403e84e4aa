"""Messages of `firehose_live` as a test writes them, and a served stream over the session's broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp

from connectors.http.server import HttpServer
from connectors.kafka.producer import LogProducer, Out
from connectors.runtime.health import Health
from local.embedded.guarded_process import free_port
from schemas import wire
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE
from serve.context import ServeContext
from serve.serve_process import listen
from serve.stream.hub import Hub

TIME = "2026-11-30T08:00:00.000Z"
CID = "bafyreigq4zsipbk5w3uqkbmh2w2633c5tcpc34d3fqdh2nqgkmxqpf4sze"


def did(number: int) -> str:
    return f"did:plc:{number:a>24}".replace("0", "z").replace("1", "y").replace("8", "x").replace("9", "w")


def op(rkey: str, collection: str = "app.bsky.feed.post", action: str = "create", text: str = "hello") -> wire.Op:
    if action == "delete":
        return wire.Op(action="delete", collection=collection, rkey=rkey)
    record = json.dumps({"$type": collection, "text": text, "createdAt": TIME}).encode()
    return wire.Op(action=action, collection=collection, rkey=rkey, cid=CID, record=wire.msgspec.Raw(record))


def commit(who: str, rev: str, *ops: wire.Op) -> Out:
    value = wire.CommitEvent(
        seq=1, time=TIME, did=who, rev=rev, commit=CID, commit_block="aaaa", data=CID, ops=list(ops), relay="https://r"
    )
    return Out(FIREHOSE_LIVE, who, wire.encode(value))


def identity(who: str, handle: str | None = None) -> Out:
    return Out(FIREHOSE_LIVE, who, wire.encode(wire.IdentityEvent(seq=2, time=TIME, did=who, handle=handle)))


def account(who: str, *, active: bool = True, status: str | None = None) -> Out:
    value = wire.AccountEvent(seq=3, time=TIME, did=who, active=active, status=status)
    return Out(FIREHOSE_LIVE, who, wire.encode(value))


def sync(who: str, rev: str) -> Out:
    value = wire.SyncEvent(seq=4, time=TIME, did=who, rev=rev, data=CID, commit=CID, commit_block="oWFhAQ")
    return Out(FIREHOSE_LIVE, who, wire.encode(value))


class Served:
    """A `serve` of this process, as `serve_process.run` makes it."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self.port = port or free_port()
        self.settings = settings.replaced(serve_listen=f"127.0.0.1:{self.port}")
        self.health = Health("serve")
        self.context = ServeContext(self.settings)
        self.hub = Hub(self.settings, self.health)
        self.server: HttpServer = listen(self.settings, self.context, self.hub)
        self.log = LogProducer(self.settings)

    def write(self, *messages: Out) -> None:
        self.log.send(messages)

    def close(self) -> None:
        if not self.hub.closing:
            self.server.close()
            self.context.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


V1 = "/subscribe"
V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"


class Stream:
    """A client of a test, one connection. Frames are parsed."""

    def __init__(self, port: int, path: str, **parameters: Any) -> None:
        self._url = f"http://127.0.0.1:{port}{path}"
        self._parameters = [
            (name, str(value))
            for name, given in parameters.items()
            for value in (given if isinstance(given, list) else [given])
        ]
        self._session: aiohttp.ClientSession
        self.socket: aiohttp.ClientWebSocketResponse

    async def __aenter__(self) -> Stream:
        self._session = aiohttp.ClientSession()
        try:
            self.socket = await self._session.ws_connect(
                self._url, params=self._parameters, protocols=("xrpc.v1.json",), max_msg_size=0
            )
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ConnectionError):
            await self.socket.close()
        await self._session.close()

    async def next(self, seconds: float = 60.0) -> Any:
        return json.loads(await self.socket.receive_str(timeout=seconds))

    async def take(self, count: int) -> list[Any]:
        return [await self.next() for _ in range(count)]

    async def until(self, wanted: Callable[[Any], bool]) -> list[Any]:
        found = [await self.next()]
        while not wanted(found[-1]):
            found.append(await self.next())
        return found
