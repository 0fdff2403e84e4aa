"""A Kafka proxy that swallows the broker's answers to OffsetCommit, as a group coordinator does that stumbles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from typing_extensions import override

from tests.support.log_listeners import ProxiedLog
from tests.support.tcp_proxy import Proxy, _reset

OFFSET_COMMIT = 8
LENGTH_BYTES = 4


class Coordinator(Proxy):
    """Forwards whole requests and answers. While `swallowing`, answers to OffsetCommit are dropped and counted."""

    swallowing = False
    swallowed = 0
    seen = 0

    @override
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        commits: set[bytes] = set()  # correlation ids
        try:
            back, upstream = await asyncio.open_connection(*self.target)
            pumps = [
                self._loop.create_task(self._requests(reader, upstream, commits)),
                self._loop.create_task(self._answers(back, writer, commits)),
            ]
            await asyncio.gather(*pumps)
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side went away
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, upstream):
                if end is not None:
                    _reset(end)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commits: set[bytes]) -> None:
        while True:
            length = await reader.readexactly(LENGTH_BYTES)
            body = await reader.readexactly(int.from_bytes(length, "big"))
            if int.from_bytes(body[:2], "big") == OFFSET_COMMIT:
                commits.add(body[4:8])
            writer.write(length + body)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commits: set[bytes]) -> None:
        while True:
            length = await reader.readexactly(LENGTH_BYTES)
            body = await reader.readexactly(int.from_bytes(length, "big"))
            if body[:4] in commits:
                commits.discard(body[:4])
                self.seen += 1
                if self.swallowing:
                    self.swallowed += 1
                    continue
            writer.write(length + body)
            await writer.drain()


@pytest.fixture
def coordinator(log_server: ProxiedLog) -> Iterator[Any]:
    """Before the session's broker: clients that bootstrap at `.address` stay behind it."""
    made = Coordinator(log_server.proxied_address, log_server.advertised_port)
    made.start()
    yield made
    with suppress(TimeoutError):
        made.close()
