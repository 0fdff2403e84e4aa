"""The simulator's own HTTP API: the truth, the faults, the writer and single operations. For tests and benchmarks only."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode
from collections import Counter
from typing import Any

from aiohttp import web
from cbrrr import CID

from simulator.faults.faults import UnknownFaultError
from simulator.network import Network, OperationError, SimulatedAccount
from simulator.repo.odd_leaves import odd_ops
from simulator.repo.records import fresh
from simulator.repo.repository import RecordWrite
from simulator.servers.labeler import Labeler
from simulator.servers.pds import Pds
from simulator.servers.plc import PlcDirectory
from simulator.servers.relay import Relay
from simulator.writer import Writer

_STATUS = {"deactivate": "deactivated", "takedown": "takendown", "suspend": "suspended", "delete_account": "deleted"}


class ControlApi:
    """Routes over the running network."""

    def __init__(
        self,
        *,
        network: Network,
        plc: PlcDirectory,
        pdses: list[Pds],
        relays: list[Relay],
        labelers: list[Labeler],
        writer: Writer,
    ) -> None:
        self.network = network
        self.plc = plc
        self.pdses = pdses
        self.relays = relays
        self.labelers = labelers
        self.writer = writer
        self.urls: dict[str, Any] = {}

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[_refusals])
        app.router.add_get("/", self._urls)
        app.router.add_get("/state", self._state)
        app.router.add_get("/state/summary", self._summary)
        app.router.add_get("/labels", self._labels)
        app.router.add_get("/faults", self._get_faults)
        app.router.add_get("/fetches", self._get_fetches)
        app.router.add_post("/faults", self._set_faults)
        app.router.add_post("/limits", self._set_limits)
        app.router.add_post("/streams", self._set_streams)
        app.router.add_post("/writer", self._set_writer)
        app.router.add_post("/quiesce", self._quiesce)
        app.router.add_post("/op", self._op)
        return app

    async def _urls(self, _request: web.Request) -> web.Response:
        return web.json_response(self.urls)

    # --- truth

    async def _state(self, request: web.Request) -> web.StreamResponse:
        """NDJSON, one account a line."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines: list[bytes] = []
        size = 0
        for account in list(self.network.accounts):
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
        statuses: dict[str, int] = {}
        records = 0
        for account in self.network.accounts:
            status = account.status or "active"
            statuses[status] = statuses.get(status, 0) + 1
            if account.status == "deleted":
                continue
            records += len(account.repo.records) if account.repo else (await self.network.image(account)).count
        return web.json_response(
            {
                "accounts": len(self.network.accounts),
                "statuses": statuses,
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
                "plc_requests": self.plc.requests,
                "relay_requests": {
                    url: relay.requests for url, relay in zip(self.urls["relays"], self.relays, strict=True)
                },
            }
        )

    async def _get_fetches(self, _request: web.Request) -> web.Response:
        """DID → how often its repo was asked for, at all PDSes together."""
        return web.json_response(sum((pds.fetches for pds in self.pdses), Counter()))

    async def _set_faults(self, request: web.Request) -> web.Response:
        """{name: parameters | probability | null, …}; {"clear": true} switches all off first."""
        wanted = await request.json()
        if wanted.pop("clear", False):
            self.network.faults.clear()
        self.network.faults.switch(wanted)
        return web.json_response(self.network.faults.active())

    async def _set_limits(self, request: web.Request) -> web.Response:
        """{limit, seconds?, pds?: index, reset?: true}: the rate limit of one PDS or all."""
        wanted = await request.json()
        for pds in self.pdses:
            if wanted.get("pds", pds.index) == pds.index:
                pds.budget.limit = int(wanted.get("limit", pds.budget.limit))
                pds.budget.seconds = float(wanted.get("seconds", pds.budget.seconds))
                if wanted.get("reset"):
                    pds.budget.reset()
        return web.json_response({pds.url: pds.budget.snapshot() for pds in self.pdses})

    async def _set_streams(self, request: web.Request) -> web.Response:
        """{relay?: index, window?, outdated?, future?, held?}: the relays' windows and manners."""
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
        """{rate} steps a second or {stop: true}; at once: {steps: n}, or {prebuild: n} commits, their frames encoded ahead."""
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
        """Make commits at once and encode them for every relay. Returns the bytes of the frames."""
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
        """Stop the writer, send what is held back, follow up lost commits, wait for connected readers to be served.

        {heal: false} leaves lost commits as they are; {timeout: seconds} (default 30) bounds the wait.
        """
        wanted = await request.json() if request.can_read_body else {}
        self.writer.set_rate(0)
        await self.writer.settle()
        healed = await self._heal() if wanted.get("heal", True) else 0
        streams = [relay.stream for relay in self.relays] + [labeler.stream for labeler in self.labelers]
        for relay in self.relays:
            relay.flush()
        deadline = time.monotonic() + float(wanted.get("timeout", 30))
        while time.monotonic() < deadline:
            if all(reader.position >= stream.end for stream in streams for reader in stream.readers):
                break
            await asyncio.sleep(0.02)
        behind = sum(reader.position < stream.end for stream in streams for reader in stream.readers)
        return web.json_response(
            {"healed": healed, "readers_behind": behind, "relays": [_describe(one) for one in self.relays]}
        )

    async def _heal(self) -> int:
        """After a lost commit only a later event can tell a reader; where none came, an empty commit follows."""
        lost_commit = self.network.faults.parameters("lost_commit")
        if lost_commit is not None:
            self.network.faults.switch({"lost_commit": None})
        lost = {did for relay in self.relays for did in relay.lost}
        for did in sorted(lost):
            account = self.network.by_did[did]
            if account.active:
                await self.network.commit(account, [])
        if lost_commit is not None:
            self.network.faults.switch({"lost_commit": lost_commit})
        return len(lost)

    # --- single operations

    async def _op(self, request: web.Request) -> web.Response:
        """{op: name, did?, …}: see `perform`."""
        wanted = await request.json()
        name = wanted.pop("op")
        return web.json_response(await self.perform(name, wanted))

    async def perform(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """create, update, delete (did, collection/rkey or path, record), commit (did, ops: [{action, path or paths, record?}], by default none), handle (handle, announce, domain), deactivate, takedown,
        suspend, delete_account, activate, relay_takedown and relay_restore (relay: index), new_account, migrate (pds, noisy), rotate_key, sync, label (uri, val, neg, cid, exp, labeler)."""
        network = self.network
        if name == "new_account":
            account = await network.new_account()
            return {"did": account.did, "handle": account.handle, "pds": account.pds}
        if name == "label":
            labeler = self.labelers[int(arguments.pop("labeler", 0))]
            return {"seq": labeler.publish([labeler.make(**arguments)])}
        account = network.find(arguments["did"])
        if name in ("create", "update", "delete"):
            return await self._write(account, name, arguments)
        if name == "commit":
            ops = [
                RecordWrite(op["action"], path, _from_json(op.get("record")))
                for op in arguments.get("ops", [])
                for path in op.get("paths") or [op["path"]]
            ]
            await network.commit(account, ops)
        elif name == "odd_leaf":
            ops = odd_ops(arguments["kind"], network.clock.tick, network.rng, arguments)
            await network.commit(account, ops)
            return {"paths": [op.path for op in ops]}
        elif name == "handle":
            return {
                "handle": await network.change_handle(
                    account,
                    arguments.get("handle"),
                    announce=arguments.get("announce", True),
                    domain=arguments.get("domain", True),
                )
            }
        elif name in _STATUS or name == "activate":
            await network.set_status(account, _STATUS.get(name))  # type: ignore[arg-type]  # the values are Status
        elif name == "migrate":
            return {"pds": await network.migrate(account, arguments.get("pds"), noisy=arguments.get("noisy", False))}
        elif name in ("relay_takedown", "relay_restore"):
            relay = self.relays[int(arguments.get("relay", 0))]
            relay.take_down(account, down=name == "relay_takedown")
        elif name == "rotate_key":
            await network.rotate_key(account)
        elif name == "sync":
            await network.repo(account)
            network.emit_sync(account)
        else:
            raise OperationError(f"unknown operation {name!r}")
        return {"did": account.did, "rev": (await network.head(account))[1]}

    async def _write(self, account: SimulatedAccount, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        path, value = arguments.get("path"), _from_json(arguments.get("record"))
        if path is None and "collection" in arguments:
            path = f"{arguments['collection']}/{arguments.get('rkey') or self.network.clock.next_tid()}"
        if path is None or (value is None and name != "delete"):
            drawn = fresh(self.network.rng, self.network.clock.tick(), self.network.subjects)
            path, value = path or drawn[0], value or drawn[1]
        op = (
            RecordWrite("delete", path)
            if name == "delete"
            else RecordWrite("create" if name == "create" else "update", path, value)
        )
        await self.network.commit(account, [op])
        return {"did": account.did, "path": path, "rev": (await self.network.head(account))[1]}


def _from_json(value: Any) -> Any:
    """A record given as JSON: {"$link"} and {"$bytes"} become CIDs and bytes."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$link"}:
        return CID.decode(value["$link"])
    if value.keys() == {"$bytes"}:
        return b64decode(value["$bytes"] + "==")
    return {key: _from_json(item) for key, item in value.items()}


def _describe(relay: Relay) -> dict[str, Any]:
    stream = relay.stream
    return {
        "last_seq": stream.last_seq,
        "window": stream.window,
        "kept": stream.end - stream.first,
        "readers": len(stream.readers),
    }


@web.middleware
async def _refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except (OperationError, UnknownFaultError) as refused:
        return web.json_response({"error": type(refused).__name__, "message": str(refused)}, status=400)
    return answer
