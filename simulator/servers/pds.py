"""A personal data server (PDS): listRepos with an opaque cursor, getRepo, status, handles and its own firehose."""

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from simulator.accounts import SimulatedAccount
from simulator.events import Event
from simulator.faults import corrupt_cars
from simulator.faults.faults import Faults, Parameters
from simulator.faults.hostile_lists import ESCAPES, list_fault, rows
from simulator.network import Network
from simulator.repo.car import cid_text
from simulator.repo.car_spool import Car
from simulator.servers.http import RequestBudget, budget_middleware, page_limit, xrpc_error
from simulator.servers.stream import EventStream

_ERRORS = {
    "takendown": ("RepoTakendown", "Repo has been taken down"),
    "suspended": ("RepoSuspended", "Repo has been suspended"),
    "deactivated": ("RepoDeactivated", "Repo has been deactivated"),
    "deleted": ("RepoNotFound", "Could not find repo"),
}
_CAR = "application/vnd.ipld.car"


class Pds:
    def __init__(self, network: Network, faults: Faults, index: int) -> None:
        config = network.config
        self.network = network
        self.faults = faults
        self.index = index
        self.url = ""
        self.others: list[str] = []  # URLs of all PDSes
        self.budget = RequestBudget(config.pds_limit, config.pds_limit_seconds)
        self.stream = EventStream(1, config.window, Faults(config.seed), index)
        self.fetches: Counter[str] = Counter()  # DID → number of getRepo requests
        network.publish.append(self._publish)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[budget_middleware(self.budget)])
        xrpc = {
            "com.atproto.sync.listRepos": self._list_repos,
            "com.atproto.sync.getRepo": self._get_repo,
            "com.atproto.sync.getLatestCommit": self._get_latest_commit,
            "com.atproto.sync.subscribeRepos": self.stream.serve,
            "com.atproto.identity.resolveHandle": self._resolve_handle,
        }
        for name, handler in xrpc.items():
            app.router.add_get(f"/xrpc/{name}", handler)
        app.router.add_get("/.well-known/atproto-did", self._well_known)
        app.router.add_get("/xrpc/_health", self._health)
        return app

    def _publish(self, _account: SimulatedAccount, pds: int, event: Event) -> None:
        if pds == self.index:
            self.stream.publish(event)

    def _json(self, value: Any) -> web.Response:
        return web.json_response(value, headers=self.budget.headers())

    def _account(self, did: str) -> SimulatedAccount | web.Response:
        """The account if this PDS may serve it, else the error response."""
        account = self.network.accounts.by_did.get(did)
        if account is None or account.status == "deleted":
            return xrpc_error("RepoNotFound", f"Could not find repo for DID: {did}")
        if account.pds != self.index:
            moved = account.key_version > 0  # a migrated account remains on its old PDS as deactivated
            return xrpc_error(*_ERRORS["deactivated" if moved else "deleted"])
        if account.status is not None:
            return xrpc_error(*_ERRORS[account.status])
        return account

    # --- listing and status

    async def _list_repos(self, request: web.Request) -> web.Response:
        limit, cursor = page_limit(request), request.query.get("cursor")
        hosted = self.network.accounts.hosted(self.index)
        if (
            odd := list_fault(self.faults, self.index, cursor or "", "repos", lambda: rows(hosted[:limit]))
        ) is not None:
            return odd
        after = (0, "")
        if cursor:
            millis, separator, did = cursor.partition("::")
            if not separator or not millis.isdigit():
                return xrpc_error("InvalidRequest", "Malformed cursor")
            after = (int(millis), did)
        start = next((n for n, one in enumerate(hosted) if (one.created_millis, one.did) > after), len(hosted))
        page = hosted[start : start + limit]
        poison = self.faults.parameters("pds_list_500")
        touched = poison and start < poison.get("to", 10**9) and start + len(page) >= poison.get("from", 1)
        if touched and self.faults.fire("pds_list_500", host=self.index):
            return xrpc_error("InternalServerError", "Internal Server Error", 500)
        slow = self.faults.fire("list_slow", host=self.index)
        if slow is not None:
            await asyncio.sleep(slow.get("seconds", 0.1))
        repos = []
        for account in page:
            head, rev = await self.network.repositories.head(account)
            row = {"did": account.did, "head": cid_text(head), "rev": rev, "active": account.active}
            repos.append({**row, "status": account.status} if account.status else row)
        answer: dict[str, Any] = {"repos": repos}
        if start + limit < len(hosted):
            answer["cursor"] = f"{page[-1].created_millis}::{page[-1].did}"
        return self._json(answer)

    async def _get_latest_commit(self, request: web.Request) -> web.Response:
        account = self._account(request.query.get("did", ""))
        if isinstance(account, web.Response):
            return account
        head, rev = await self.network.repositories.head(account)
        return self._json({"cid": cid_text(head), "rev": rev})

    # --- identity

    async def _resolve_handle(self, request: web.Request) -> web.Response:
        account = self.network.accounts.owner(request.query.get("handle", "").lower())
        if account is None:
            return xrpc_error("HandleNotFound", "Unable to resolve handle")
        return self._json({"did": account.did})

    async def _well_known(self, request: web.Request) -> web.Response:
        account = self.network.accounts.owner(request.host.partition(":")[0].lower())
        if account is None or account.pds != self.index:
            return web.Response(status=404, text="User not found")
        return web.Response(text=account.did)

    async def _health(self, _request: web.Request) -> web.Response:
        return self._json({"version": "simulator"})

    # --- repositories

    async def _get_repo(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request.query.get("did", ""))
        if isinstance(account, web.Response):
            return account
        self.fetches[account.did] += 1
        faulty = await self._fault_response(account)
        if faulty is not None:
            return faulty
        car = await self._car(account)
        trickle = self.faults.fire("pds_trickle", host=self.index, did=account.did)
        if trickle is not None:
            return await self._trickle(request, car, trickle)
        if car.size <= 1 << 20:
            return web.Response(body=car.read(), content_type=_CAR, headers=self.budget.headers())
        response = web.StreamResponse(headers={"Content-Type": _CAR, **self.budget.headers()})
        await response.prepare(request)
        for chunk in car.chunks():
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _fault_response(self, account: SimulatedAccount) -> web.Response | None:
        """The response of a fault that replaces the CAR; None if none fires. `pds_slow` only delays."""
        slow = self.faults.fire("pds_slow", host=self.index, did=account.did)
        if slow is not None:
            await asyncio.sleep(slow.get("seconds", 1))
        limited = self.faults.fire("pds_429", host=self.index, did=account.did)
        if limited is not None:
            retry = limited.get("retry_after", 1)
            headers = {} if retry is None else {"Retry-After": str(retry)}
            self.budget.sent_retry_after(retry or 0)
            if limited.get("html"):
                return web.Response(
                    status=429,
                    text="<html><body>429 Too Many Requests</body></html>",
                    content_type="text/html",
                    headers=headers,
                )
            return xrpc_error("RateLimitExceeded", "Rate Limit Exceeded", 429, headers)
        elsewhere = self.faults.fire("repo_redirect", host=self.index, did=account.did)
        if elsewhere is not None:
            path = f"/xrpc/com.atproto.sync.getRepo?did={account.did}"
            return web.Response(status=302, headers={"Location": self.others[int(elsewhere.get("to", 0))] + path})
        if self.faults.fire("pds_escapes", host=self.index, did=account.did):
            return xrpc_error(f"Bad{ESCAPES}", ESCAPES, 500)
        if self.faults.fire("pds_500", host=self.index, did=account.did):
            return xrpc_error("InternalServerError", "Internal Server Error", 500)
        if self.faults.fire("pds_html", host=self.index, did=account.did):
            return web.Response(
                text="<!DOCTYPE html><html><body>Down for maintenance</body></html>", content_type="text/html"
            )
        hang = self.faults.fire("pds_hang", host=self.index, did=account.did)
        if hang is not None:
            await asyncio.sleep(hang.get("seconds", 3600))
            return xrpc_error("InternalServerError", "the request hung", 503)
        return None

    async def _car(self, account: SimulatedAccount) -> Car:
        """The CAR of the head, or the wrong CAR of a fault that fires."""
        fire, host, did = self.faults.fire, self.index, account.did
        repo = account.repo
        if repo is not None and repo.earlier and fire("pds_stale", host=host, did=did):
            return Car(repo.car(repo.earlier[0]))
        if len(self.network.accounts.all) > 1 and fire("pds_wrong_did", host=host, did=did):
            other = self.network.accounts.all[(account.index + 1) % len(self.network.accounts.all)]
            return await self.network.repositories.car(other)
        car = await self.network.repositories.car(account)
        cut = fire("pds_truncate", host=host, did=did)
        if cut is not None:
            return Car(corrupt_cars.truncated(car.read(), cut.get("mode", "boundary")))
        if fire("pds_bad_sig", host=host, did=did):
            return Car(corrupt_cars.bad_signature(car.read()))
        if fire("pds_tamper", host=host, did=did):
            corrupt = corrupt_cars.tampered(car.read())
            if corrupt is not None:
                return Car(corrupt)
            self.faults.undo("pds_tamper")
        return car

    @staticmethod
    async def _trickle(request: web.Request, car: Car, trickle: Parameters) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": _CAR})
        await response.prepare(request)
        data, size = car.read(), int(trickle.get("chunk", 100))
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
            await asyncio.sleep(trickle.get("interval", 0.1))
        await response.write_eof()
        return response
