"""The simulator's own HTTP API: expected state, faults, limits, writer and single operations. For tests and benchmarks only."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

from aiohttp import web

from simulator.accounts import OperationError
from simulator.faults.faults import UnknownFaultError
from simulator.network import Network
from simulator.operations import Operations
from simulator.servers.labeler import Labeler
from simulator.servers.pds import Pds
from simulator.servers.relay import Relay
from simulator.writer import Writer


class ControlApi:
    """Routes over the running network. `urls` are the addresses of its servers, set when they listen."""

    def __init__(
        self,
        *,
        network: Network,
        pdses: list[Pds],
        relays: list[Relay],
        labelers: list[Labeler],
        writer: Writer,
    ) -> None:
        self.network = network
        self.pdses = pdses
        self.relays = relays
        self.labelers = labelers
        self.writer = writer
        self.operations = Operations(network, relays, labelers)
        self.urls: dict[str, Any] = {}

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_reject_bad_input])
        app.add_routes(
            [
                web.get("/", self._urls),
                web.get("/state", self._state),
                web.get("/state/summary", self._summary),
                web.get("/labels", self._labels),
                web.get("/faults", self._get_faults),
                web.get("/fetches", self._get_fetches),
                web.post("/faults", self._set_faults),
                web.post("/limits", self._set_limits),
                web.post("/streams", self._set_streams),
                web.post("/writer", self._set_writer),
                web.post("/quiesce", self._quiesce),
                web.post("/op", self._op),
            ]
        )
        return app

    async def _urls(self, _request: web.Request) -> web.Response:
        return web.json_response(self.urls)

    # --- expected state

    async def _state(self, request: web.Request) -> web.StreamResponse:
        """NDJSON: one line per account, as `Network.truth` returns it."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines: list[bytes] = []
        size = 0
        for account in list(self.network.accounts.all):
            line = json.dumps(await self.network.truth(account)).encode() + b"\n"
            lines.append(line)
            size += len(line)
            if size > 1 << 18:
                await response.write(b"".join(lines))
                lines, size = [], 0
                await asyncio.sleep(0)
        await response.write(b"".join(lines))
        await response.write_eof()
        return response

    async def _summary(self, _request: web.Request) -> web.Response:
        accounts, repositories = self.network.accounts.all, self.network.repositories
        records = sum([await repositories.record_count(one) for one in accounts if one.status != "deleted"])
        return web.json_response(
            {
                "accounts": len(accounts),
                "statuses": Counter(account.status or "active" for account in accounts),
                "records": records,
                "commits": self.network.commits,
                "steps": self.writer.steps,
                "seqs": [relay.stream.last_seq for relay in self.relays],
                "labels": sum(len(labeler.final) for labeler in self.labelers),
            }
        )

    async def _labels(self, _request: web.Request) -> web.Response:
        return web.json_response([label for labeler in self.labelers for label in labeler.state()])

    # --- faults and limits

    async def _get_faults(self, _request: web.Request) -> web.Response:
        faults = self.network.faults
        return web.json_response(
            {
                "fired": dict(faults.counts),
                "active": faults.active(),
                "hosts": {pds.url: pds.budget.snapshot() for pds in self.pdses},
            }
        )

    async def _get_fetches(self, _request: web.Request) -> web.Response:
        """DID → number of getRepo requests, over all PDSes."""
        return web.json_response(sum((pds.fetches for pds in self.pdses), Counter()))

    async def _set_faults(self, request: web.Request) -> web.Response:
        """{name: parameters, probability or null (off), …}. {"clear": true} first switches every fault off."""
        wanted = await request.json()
        if wanted.pop("clear", False):
            self.network.faults.clear()
        self.network.faults.switch(wanted)
        return web.json_response(self.network.faults.active())

    async def _set_limits(self, request: web.Request) -> web.Response:
        """{limit?, seconds?, pds?: index, reset?: true}: the rate limit of one PDS, by default of all. reset: set counts to zero."""
        wanted = await request.json()
        for pds in self.pdses:
            if wanted.get("pds", pds.index) == pds.index:
                pds.budget.limit = int(wanted.get("limit", pds.budget.limit))
                pds.budget.seconds = float(wanted.get("seconds", pds.budget.seconds))
                if wanted.get("reset"):
                    pds.budget.reset()
        return web.json_response({pds.url: pds.budget.snapshot() for pds in self.pdses})

    async def _set_streams(self, request: web.Request) -> web.Response:
        """{relay?: index, window?, outdated?, future?, held?}: the stream of one relay, by default of all.

        window: events kept. outdated: send #info OutdatedCursor. future: reject a cursor past the newest event.
        held: buffer new events until held is false.
        """
        wanted = await request.json()
        for relay in self.relays:
            stream = relay.stream
            if wanted.get("relay", relay.index) != relay.index:
                continue
            stream.announce_outdated = bool(wanted.get("outdated", stream.announce_outdated))
            stream.refuse_future = bool(wanted.get("future", stream.refuse_future))
            stream.window = int(wanted.get("window", stream.window))
            if "held" in wanted and not wanted["held"]:
                stream.release()
            else:
                stream.held = bool(wanted.get("held", stream.held))
        return web.json_response([_describe(relay) for relay in self.relays])

    # --- writing

    async def _set_writer(self, request: web.Request) -> web.Response:
        """{rate?, stop?: true, steps?, prebuild?}.

        rate: steps per second. stop: rate 0. steps: perform so many now. prebuild: make so many commits now and encode
        their frames.
        """
        wanted = await request.json()
        if wanted.get("stop"):
            self.writer.set_rate(0)
            await self.writer.settle()
        if "rate" in wanted:
            self.writer.set_rate(float(wanted["rate"]))
        for _ in range(int(wanted.get("steps", 0))):
            await self.writer.step()
        size = 0
        if "prebuild" in wanted:
            size = await self.prebuild(int(wanted["prebuild"]))
        return web.json_response({"rate": self.writer.rate, "steps": self.writer.steps, "bytes": size})

    async def prebuild(self, commits: int) -> int:
        """Make commits without delay and encode the frames of every relay. Returns the bytes of all frames."""
        started = time.monotonic()
        for _ in range(commits):
            await self.writer.commit_somewhere()
            if time.monotonic() - started > 0.05:
                await asyncio.sleep(0)
                started = time.monotonic()
        for relay in self.relays:
            relay.flush()
        return sum(relay.stream.encode_all() for relay in self.relays)

    async def _quiesce(self, request: web.Request) -> web.Response:
        """{heal?, timeout?}: stop the writer, send delayed events, wait until all connected readers have received everything.

        heal (default true): make lost commits detectable, see `_heal`. timeout: maximum wait in seconds (default 30).
        """
        wanted = await request.json() if request.can_read_body else {}
        self.writer.set_rate(0)
        await self.writer.settle()
        healed = await self._heal() if wanted.get("heal", True) else 0
        streams = [relay.stream for relay in self.relays] + [labeler.stream for labeler in self.labelers]
        for relay in self.relays:
            relay.flush()
        now = asyncio.get_running_loop().time
        deadline = now() + float(wanted.get("timeout", 30))
        while now() < deadline:
            if all(reader.position >= stream.end for stream in streams for reader in stream.readers):
                break
            await asyncio.sleep(0.02)
        behind = sum(reader.position < stream.end for stream in streams for reader in stream.readers)
        return web.json_response(
            {"healed": healed, "readers_behind": behind, "relays": [_describe(one) for one in self.relays]}
        )

    async def _heal(self) -> int:
        """Add an empty commit to each repository whose newest commit was lost: a reader detects the loss by the next event only."""
        lost_commit = self.network.faults.parameters("lost_commit")
        if lost_commit is not None:
            self.network.faults.switch({"lost_commit": None})
        lost = {did for relay in self.relays for did in relay.lost}
        for did in sorted(lost):
            account = self.network.accounts.by_did[did]
            if account.active:
                await self.network.commit(account, [])
        if lost_commit is not None:
            self.network.faults.switch({"lost_commit": lost_commit})
        return len(lost)

    async def _op(self, request: web.Request) -> web.Response:
        """{op: name, did?, …}: one operation; see `Operations`."""
        wanted = await request.json()
        return web.json_response(await self.operations.perform(wanted.pop("op"), wanted))


def _describe(relay: Relay) -> dict[str, Any]:
    stream = relay.stream
    return {
        "last_seq": stream.last_seq,
        "window": stream.window,
        "kept": stream.end - stream.first,
        "readers": len(stream.readers),
    }


@web.middleware
async def _reject_bad_input(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except (OperationError, UnknownFaultError) as error:
        return web.json_response({"error": type(error).__name__, "message": str(error)}, status=400)
    return answer
