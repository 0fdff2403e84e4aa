"""An audit against a PDS that limits its requests."""

from __future__ import annotations

import asyncio

import psycopg
from aiohttp import web

from connectors.atproto.repo_lookup import AT_ONCE, AuditNetwork
from schemas.settings import Settings
from steps.repo_audit import StoredHead

REPOS = 3 * AT_ONCE


def test_a_pds_that_limits_an_audit_is_paused_for_the_time_it_named(database: str) -> None:
    """R3: the audit went on asking."""
    asked = 0

    async def main() -> tuple[int, int]:
        app = web.Application()

        async def document(request: web.Request) -> web.Response:
            did = request.match_info["did"]
            service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": url}
            return web.json_response({"id": did, "service": [service]})

        async def latest(_: web.Request) -> web.Response:
            nonlocal asked
            asked += 1
            return web.Response(status=429, headers={"Retry-After": "300"})

        app.router.add_get("/xrpc/com.atproto.sync.getLatestCommit", latest)
        app.router.add_get("/{did}", document)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        network = AuditNetwork(Settings(database=database, plc=url, allow_private_hosts=True), lambda _: None)
        names = ("".join("abcdefghij"[int(digit)] for digit in f"{number:024}") for number in range(REPOS))
        found = await network.commits([StoredHead(f"did:plc:{name}", "", "", "", b"", None) for name in names])
        await network.close()
        await runner.cleanup()
        return found.unanswered, found.compared

    assert asyncio.run(main()) == (REPOS, 0)
    assert 1 <= asked <= AT_ONCE  # those that were under way
    with psycopg.connect(database) as db:
        row = db.execute("select paused_until - now() > interval '250 seconds' from sluice.host").fetchone()
    assert row == (True,)
