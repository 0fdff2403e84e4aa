"""A relay and a PLC directory of a test's own: it sends exactly the frames that it was given, whatever they say."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import cbrrr
from aiohttp import web

from tests.support.tiny_repo import Key


class HostileRelay:
    """`url` is both. `frames` is a list of (seq, frame); the stream stays open behind the last one."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.documents: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.plc_status = 200
        self.url = ""
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)

    def account(self, did: str, key: Key, **services: Any) -> None:
        """A DID document."""
        method = {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": key.multibase}
        self.documents[did] = {"id": did, "verificationMethod": [method], **services}

    def send(self, kind: str, body: dict[str, Any]) -> int:
        """The next event; its seq."""
        seq = len(self.frames) + 1
        head, whole = {"op": 1, "t": kind}, {**body, "seq": seq}
        self.frames.append((seq, cbrrr.encode_dag_cbor(head) + cbrrr.encode_dag_cbor(whole)))
        return seq

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/xrpc/com.atproto.sync.subscribeRepos", self._stream)
        app.router.add_get("/_health", self._health)
        app.router.add_get("/{did}", self._document)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)  # a stream does not end by itself
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sent = int(request.query.get("cursor", "0"))
        while not socket.closed:
            for seq, frame in self.frames[sent:]:
                await socket.send_bytes(frame)
                sent = seq
            await asyncio.sleep(0.05)
        return socket

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=self.plc_status)

    async def _document(self, request: web.Request) -> web.Response:
        did = request.match_info["did"]
        self.asked.append(did)
        if self.plc_status != 200:
            return web.Response(status=self.plc_status)
        document = self.documents.get(did)
        if document is None:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        return web.json_response(document)
