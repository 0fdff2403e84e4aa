"""Relays: the firehose stream, and pages of listHosts and listRepos."""

import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from connectors.atproto.deferred_events import DeferralStatus
from connectors.atproto.stream import StreamPartition
from connectors.atproto.stream_sockets import Frame
from connectors.http.client import LIST_JSON, BodyTooLarge, HostRefused, Unreachable, check_url, fetch, retry_after
from connectors.kafka.back_pressure import HighWater
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.health import Health
from protocol.did_document import is_host
from protocol.encoding.bounded_json import BadJson, TooMuchJson
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE
from steps.cursor import Cursors
from steps.listing.list_page import PageFailure, PageTrouble, RepoPage, failure_of, page_cursor, read_page
from steps.listing.paginator import MAX_BARREN
from steps.shares import Share

SUBSCRIBE = "com.atproto.sync.subscribeRepos"
LIST_REPOS = "com.atproto.sync.listRepos"
LIST_BY_COLLECTION = "com.atproto.sync.listReposByCollection"
LIST_HOSTS = "com.atproto.sync.listHosts"
HOSTS_PAGE = 200
MAX_HOSTS = 20_000


def firehose_source(
    settings: Settings, health: Health, cursors: Cursors, deferral: DeferralStatus, share: Share
) -> CheckpointedSource[Frame]:
    """Frames of all relays of the settings, of all shares. Paused while the index lags by half of the live topic's retention."""
    return CheckpointedSource(
        lambda: StreamPartition(
            settings,
            health,
            cursors,
            method=SUBSCRIBE,
            upstreams=settings.relays,
            start=0 if settings.firehose_start == "oldest" else None,
            pressure=HighWater(settings, FIREHOSE_LIVE, "index"),
            fillable=True,
            deferral=deferral,
            share=share,
        )
    )


@dataclass(frozen=True, slots=True)
class HostList:
    """The hosts that a relay listed. `failure`: why the list was not read to the end."""

    urls: list[str]
    failure: PageFailure | None = None


class Pager:
    """Requests list pages from relays and PDSes."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session

    async def repos(
        self, upstream: str, cursor: str, limit: int, collection: str | None = None
    ) -> RepoPage | PageFailure:
        """One page of listRepos, or with `collection` of listReposByCollection, which returns only DIDs."""
        if collection is None:
            answer = await self._ask(upstream, LIST_REPOS, cursor, limit)
        else:
            answer = await self._ask(upstream, LIST_BY_COLLECTION, cursor, limit, collection=collection)
        return answer if isinstance(answer, PageFailure) else read_page(answer, time.time_ns() // 1000)

    async def hosts(self, relay: str) -> HostList:
        """URLs of the PDSes that a relay lists as active. Stops after more than MAX_BARREN pages in a row without new hosts."""
        found: dict[str, None] = {}
        cursor, cursors, barren = "", {""}, 0
        while len(found) < MAX_HOSTS:
            body = await self._ask(relay, LIST_HOSTS, cursor, HOSTS_PAGE)
            if isinstance(body, PageFailure):
                return HostList(list(found), body)
            rows = body.get("hosts", ()) if isinstance(body, dict) else ()
            following = page_cursor(body) if isinstance(rows, list | None) else None
            if not isinstance(rows, list | None) or isinstance(following, PageFailure):
                wrong = (
                    following
                    if isinstance(following, PageFailure)
                    else PageFailure(PageTrouble.MALFORMED, "not a list of hosts")
                )
                return HostList(list(found), wrong)
            before = len(found)
            found.update((url, None) for url in map(self._host_url, rows or ()) if url is not None)
            if following is None or following == cursor:
                return HostList(list(found))
            barren = barren + 1 if len(found) == before else 0
            if following in cursors or barren > MAX_BARREN:
                return HostList(list(found), PageFailure(PageTrouble.MALFORMED, "pages without new hosts"))
            cursors.add(following)
            cursor = following
        return HostList(list(found), PageFailure(PageTrouble.MALFORMED, f"more than {MAX_HOSTS} hosts"))

    async def _ask(self, upstream: str, method: str, cursor: str, limit: int, **more: str) -> Any:
        """The decoded JSON of the response, or a PageFailure."""
        params = more | {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        private = self._settings.allow_private_hosts
        try:
            url = f"{upstream}/xrpc/{method}"
            answer = await fetch(self._session, url, params, allow_private=private, limit=LIST_JSON.size)
        except BodyTooLarge as err:
            return PageFailure(PageTrouble.BAD_ANSWER, str(err))
        except (HostRefused, Unreachable) as err:
            return PageFailure(PageTrouble.UNREACHABLE, str(err))
        if answer.status != 200:
            return failure_of(answer.status, answer.error, retry_after(answer.headers, time.time()))
        try:
            return answer.json(LIST_JSON)
        except TooMuchJson as err:
            return PageFailure(PageTrouble.BAD_ANSWER, str(err))
        except BadJson as err:
            return PageFailure(PageTrouble.MALFORMED, str(err))

    def _host_url(self, row: object) -> str | None:
        """The URL of a row of listHosts; None if the host is inactive or refused. http for loopback hosts."""
        name = row.get("hostname") if isinstance(row, dict) else None
        if not isinstance(name, str) or row.get("status") in ("banned", "offline"):  # type: ignore[attr-defined]  # a dict
            return None
        if not is_host(name):
            return None
        scheme = "http" if name.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
        url = f"{scheme}://{name.lower()}"
        try:
            check_url(url, allow_private=self._settings.allow_private_hosts)
        except HostRefused:
            return None
        return url
