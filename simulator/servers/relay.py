"""A relay: listHosts, listRepos with a numeric cursor, and a firehose of all hosts with its own sequence.

All relays carry the same events. Relays after the first reorder events of different repositories slightly; events of one
repository keep their order.
"""

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from cbrrr import CID

from simulator.accounts import SimulatedAccount
from simulator.events import Event, account_event
from simulator.faults import corrupt_cars
from simulator.faults.faults import Faults
from simulator.faults.hostile_lists import list_fault, rows
from simulator.network import Network
from simulator.repo.car import cid_text
from simulator.servers.http import page_limit, xrpc_error
from simulator.servers.stream import EventStream

_UID_STEP = 10_000  # relay k numbers its accounts from k * _UID_STEP + 1


@dataclass(slots=True)
class _Delayed:
    event: Event
    passes: int  # events of other repositories that may still be sent before it


class Relay:
    def __init__(self, network: Network, faults: Faults, index: int) -> None:
        self.network = network
        self.faults = faults
        self.index = index
        self.pds_urls: list[str] = []
        self.lost: set[str] = set()  # DIDs whose newest commit this relay did not send
        self.taken_down: set[str] = set()  # DIDs taken down at this relay only; their PDSes still serve them
        self._accounts: dict[str, Event] = {}  # DID → the last #account sent
        self.stream = EventStream(1000 + index * 5_000_000, network.config.window, faults, index)
        self._rng = random.Random(f"{network.config.seed}/relay/{index}")
        self._delayed: list[_Delayed] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        network.publish.append(self._offer)

    def application(self) -> web.Application:
        app = web.Application()
        xrpc = {
            "com.atproto.sync.listHosts": self._list_hosts,
            "com.atproto.sync.listRepos": self._list_repos,
            "com.atproto.sync.listReposByCollection": self._list_repos_by_collection,
            "com.atproto.sync.subscribeRepos": self.stream.serve,
        }
        for name, handler in xrpc.items():
            app.router.add_get(f"/xrpc/{name}", handler)
        return app

    # --- the firehose

    def _offer(self, _account: SimulatedAccount, _pds: int, event: Event) -> None:
        """Receive an event of a PDS: send, delay or lose it."""
        faults, host = self.faults, self.index
        if event.kind == "#commit":
            if faults.fire("lost_commit", host=host, did=event.did):
                self.lost.add(event.did)
                return
            if faults.fire("relay_bad_sig", host=host, did=event.did):
                self._send(_forged(event))
        if event.kind in ("#commit", "#sync"):
            self.lost.discard(event.did)
        passes = self._passes(event)
        if passes:
            self._delayed.append(_Delayed(event, passes))
            if self._flush_timer is None:
                self._flush_timer = asyncio.get_running_loop().call_later(1.0, self.flush)
            return
        self._send(event)
        self._count_pass(event.did)

    def _passes(self, event: Event) -> int:
        """How many events of other repositories to send before this one."""
        delayed = [one.passes for one in self._delayed if one.event.did == event.did]
        if delayed:
            return max(delayed)  # not before an older event of the same repository
        delay = self.faults.fire("delay", host=self.index, did=event.did)
        if delay is not None:
            return int(delay.get("hold", 20))
        return self._rng.randint(1, 4) if self.index and self._rng.random() < 0.2 else 0

    def _count_pass(self, did: str) -> None:
        """Count an event of this repository that was sent before the delayed ones; send those that are due."""
        due = []
        for one in self._delayed:
            if one.event.did != did:
                one.passes -= 1
            if one.passes <= 0:
                due.append(one)
        if due:
            self._delayed = [one for one in self._delayed if one.passes > 0]
            for one in due:
                self._send(one.event)

    def _send(self, event: Event) -> None:
        gap = self.faults.fire("seq_gap", host=self.index)
        self.stream.publish(event, gap=int(gap.get("gap", 100)) if gap else 0)
        if self.faults.fire("duplicate", host=self.index, did=event.did):
            self.stream.publish(event, repeat=True)
        if event.kind == "#account":
            before = self._accounts.get(event.did)
            self._accounts[event.did] = event
            if before is not None and self.faults.fire("relay_old_account", host=self.index, did=event.did):
                self.stream.publish(before)

    def take_down(self, account: SimulatedAccount, *, down: bool = True) -> None:
        """Take an account down at this relay only, or end that. Sends delayed events, then an #account event."""
        (self.taken_down.add if down else self.taken_down.discard)(account.did)
        self.flush()
        active = account.active and not down
        self._send(account_event(account.did, active, "takendown" if down else account.status))

    def flush(self) -> None:
        """Send all delayed events."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        delayed, self._delayed = self._delayed, []
        for one in delayed:
            self._send(one.event)

    # --- listing and status

    async def _list_hosts(self, request: web.Request) -> web.Response:
        limit, cursor = page_limit(request, 200), request.query.get("cursor", "0")
        if (odd := list_fault(self.faults, self.index, cursor, "hosts", self._host_rows)) is not None:
            return odd
        if not cursor.isdigit():
            return xrpc_error("InvalidRequest", "Malformed cursor")
        start, hosts = int(cursor), self._host_rows()
        answer: dict[str, Any] = {"hosts": hosts[start : start + limit]}
        if start + limit < len(hosts):
            answer["cursor"] = str(start + limit)
        return web.json_response(answer)

    def _host_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "hostname": url.removeprefix("http://"),
                "seq": 1,
                "accountCount": len(self.network.accounts.hosted(number)),
                "status": "active",
            }
            for number, url in enumerate(self.pds_urls)
        ]

    async def _list_repos(self, request: web.Request) -> web.Response:
        limit, cursor = page_limit(request), request.query.get("cursor", "0") or "0"
        accounts = self.network.accounts.all
        if (odd := list_fault(self.faults, self.index, cursor, "repos", lambda: rows(accounts[:limit]))) is not None:
            return odd
        if (short := self.faults.fire("list_short", host=self.index)) is not None:
            limit = min(limit, int(short.get("most", 20)))
        if not cursor.isdigit():
            return xrpc_error("InvalidRequest", "Malformed cursor")
        first_uid = self.index * _UID_STEP + 1
        start = max(0, int(cursor) + 1 - first_uid)
        page = self.network.accounts.all[start : start + limit]
        poison = self.faults.parameters("relay_list_500")
        touched = poison and start < poison.get("to", 10**9) and start + len(page) >= poison.get("from", 1)
        if touched and self.faults.fire("relay_list_500", host=self.index):
            return xrpc_error("InternalServerError", "failed to query repos", 500)
        if (throttled := self._throttled(start)) is not None:
            return throttled
        answer: dict[str, Any] = {"repos": [await self._row(account) for account in page]}
        if (slow := self.faults.fire("list_slow", host=self.index)) is not None:
            await asyncio.sleep(slow.get("seconds", 0.1))
        if start + limit < len(self.network.accounts.all):
            answer["cursor"] = str(first_uid + page[-1].index)
        return web.json_response(answer)

    async def _list_repos_by_collection(self, request: web.Request) -> web.Response:
        limit, collection = page_limit(request), request.query.get("collection", "")
        if not collection:
            return xrpc_error("InvalidRequest", "collection is missing")
        after, accounts = request.query.get("cursor", ""), sorted(self.network.accounts.by_did)
        start = next((n for n, did in enumerate(accounts) if did > after), len(accounts))
        if (throttled := self._throttled(start)) is not None:
            return throttled
        found: list[str] = []
        for did in accounts[start:]:
            if len(found) == limit:
                return web.json_response({"repos": [{"did": one} for one in found], "cursor": found[-1]})
            account = self.network.accounts.by_did[did]
            if account.active and any(path.startswith(f"{collection}/") for path in await self._paths(account)):
                found.append(did)
        return web.json_response({"repos": [{"did": one} for one in found]})

    async def _paths(self, account: SimulatedAccount) -> list[str]:
        return list((await self.network.repositories.live(account)).records)

    def _throttled(self, start: int) -> web.Response | None:
        wanted = self.faults.parameters("relay_list_429")
        if wanted is None or start < wanted.get("from", 0) or not self.faults.fire("relay_list_429", host=self.index):
            return None
        seconds = str(wanted.get("retry_after", 1))
        return xrpc_error("RateLimitExceeded", "Rate Limit Exceeded", 429, {"Retry-After": seconds})

    async def _row(self, account: SimulatedAccount) -> dict[str, Any]:
        head, rev = await self.network.repositories.head(account)
        row: dict[str, Any] = {"did": account.did, "head": cid_text(head), "rev": rev, "active": account.active}
        if account.status:
            row["status"] = account.status
        if account.did in self.taken_down:
            row["active"], row["status"] = False, "takendown"
        if self.faults.fire("relay_empty_head", host=self.index, did=account.did):
            row["head"] = row["rev"] = ""
        return row


def _forged(event: Event) -> Event:
    """A copy of the commit event with an invalid signature."""
    blocks = corrupt_cars.bad_signature(event.body["blocks"])
    root, _ = corrupt_cars.read_blocks(blocks)
    return Event(event.kind, event.did, {**event.body, "blocks": blocks, "commit": CID(root)})
