"""A resolver before a PLC directory of a test's own with one DID."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from connectors.http.client import open_session
from connectors.identity.resolver import Resolver
from schemas.settings import Settings

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
MANY = ["did:plc:" + "abcdefghijklmnop"[n // 16] * 12 + "bcdefghijklmnopq"[n % 16] * 12 for n in range(200)]


class Directory:
    """A PLC directory with one DID, a switch and a count."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.body: str | None = None
        self.pds = "https://one.example"
        self.plain: str | None = None  # its answer for DIDs that it does not have
        self.plain_status = 404
        self.wait = 0.0
        self.retry_after: str | None = "9"
        self.limited: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        did = request.path[1:]
        self.asked.append(did)
        await asyncio.sleep(self.wait)
        if self.body is not None:
            return web.Response(status=self.status, text=self.body)
        status = 429 if did in self.limited else self.status
        if status != 200:
            named = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            return web.Response(status=status, headers=named)
        if did != DID and self.plain is not None:
            return web.Response(status=self.plain_status, text=self.plain)
        if did != DID:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": self.pds}
        return web.json_response({"id": did, "alsoKnownAs": ["at://A.example"], "service": [service]})


def run(database: str, body: Callable[[Directory, Callable[..., Resolver]], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        directory = Directory()
        app = web.Application()
        app.router.add_get("/{did}", directory.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        plc = f"http://127.0.0.1:{runner.addresses[0][1]}"
        made: list[Resolver] = []
        base = Settings(database=database, plc=plc, allow_private_hosts=True, **settings)
        async with open_session(base) as session:

            def resolver(**changes: Any) -> Resolver:
                made.append(Resolver(base.replaced(**changes), session))
                return made[-1]

            try:
                await body(directory, resolver)
            finally:
                for one in made:
                    await one.close()
                await runner.cleanup()

    asyncio.run(main())
