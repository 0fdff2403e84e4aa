"""Hosts of did:web accounts: each has its own port and serves the account's DID document at /.well-known/did.json."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from simulator.faults.faults import Faults
from simulator.servers.loopback import bound


class WebHosts:
    """Binds its ports at once, so that `dids` (`did:web:localhost%3APORT`) exist before the network is generated.

    `first_port` is the first of consecutive ports; 0 means any free ports.
    """

    def __init__(self, count: int, faults: Faults, first_port: int) -> None:
        self.faults = faults
        self._listeners = [bound(first_port + index if first_port else 0) for index in range(count)]
        self.dids = [f"did:web:localhost%3A{one.getsockname()[1]}" for one in self._listeners]
        self._document: Callable[[str], dict[str, Any] | None] = lambda _: None

    async def start(self, document: Callable[[str], dict[str, Any] | None]) -> web.AppRunner:
        """Serve the documents that `document` returns for a DID."""
        self._document = document
        app = web.Application()
        app.router.add_get("/.well-known/did.json", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        for listener in self._listeners:
            await web.SockSite(runner, listener, backlog=64).start()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        did = f"did:web:localhost%3A{port}"
        if (hang := self.faults.fire("did_web_hang", did=did)) is not None:
            await asyncio.sleep(hang.get("seconds", 3600))
        if (limit := self.faults.fire("did_web_429", did=did)) is not None:
            headers = {"Retry-After": str(limit.get("retry_after", 1))}
            return web.json_response({"error": "RateLimitExceeded"}, status=429, headers=headers)
        document = self._document(did)
        return web.json_response(document, status=404 if document is None else 200)
