"""Every loop that asks somebody else's server, against one that always fails and one that sometimes does not.

Hours pass on a virtual clock, and the requests in each of them are counted. The table of these loops and their greatest
rates is in docs/limits.md.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.atproto.host_lists import follow_hosts
from connectors.atproto.relay import MAX_BARREN, HostList, Pager
from connectors.identity.directory_pace import DirectoryPace
from control.tasks.dead_letter_retry import AFTER_SECONDS
from flows.list_repos.crawler import Crawler
from flows.list_repos.gap_recovery import SKIP_SECONDS, fill_delay
from flows.list_repos.listing_loop import DueRange, ListedPage
from protocol.handle import HandleStatus, next_check
from schemas.settings import Settings
from steps.backoff import STEADY_SECONDS, reconnect_seconds
from steps.job_states import Target
from steps.listing.list_page import ListEntry, PageFailure, PageTrouble, RepoPage, failure_of
from steps.listing.listing_progress import RangeFilled, RangeNarrowed
from steps.listing.paginator import RangeSkipped
from tests.support.virtual_loop import VirtualLoop, run_hours

DAY = 8  # hours
RELAY, PDS = "https://relay.example", "https://pds.example"
BAD = PageFailure(PageTrouble.BAD_ANSWER, "HTTP 500")
DOWN = PageFailure(PageTrouble.UNREACHABLE, "no answer")
Answer = Callable[[int, str, int], RepoPage | PageFailure]
"""(requests so far, cursor, limit) → answer"""


class Hours:
    """Requests in each simulated hour."""

    def __init__(self) -> None:
        self.counts = [0] * DAY
        self.total = 0

    def count(self, now: float) -> None:
        self.counts[min(int(now // 3600), DAY - 1)] += 1
        self.total += 1


class Crawl:
    """One listing with the table of its skipped ranges, as the flow's thread keeps it."""

    def __init__(self, answer: Answer, *, relay: bool) -> None:
        self.hours, self.fills = Hours(), Hours()
        self.ranges: dict[int, tuple[DueRange, float]] = {}
        self.seen: set[str] = set()
        self.target = Target(RELAY, RELAY, relay=True) if relay else Target(PDS, PDS)
        self._answer = answer
        self._ids = itertools.count()

    def run(self) -> Crawl:
        run_hours(DAY, self._main)
        return self

    async def _main(self, loop: VirtualLoop) -> None:
        crawler = Crawler(Settings(relays=[RELAY]), {}, lambda: loop.now)

        async def repos(_url: str, cursor: str, limit: int, *_: Any) -> RepoPage | PageFailure:
            self.hours.count(loop.now)
            await asyncio.sleep(0.05)
            return self._answer(self.hours.total, cursor, limit)

        pager: Any = SimpleNamespace(repos=repos)
        async with asyncio.TaskGroup() as group:
            crawler._follow(group, pager, self.target)
            upstream = crawler.loops[self.target.key]
            while True:
                for item in crawler.queue.take(100):
                    self._note(item, loop.now)
                due = [one for one, at in self.ranges.values() if at <= loop.now]
                if due and upstream.state.done and not upstream.fills and upstream.fill_at <= loop.now:
                    upstream.fills[due[0].id] = due[0]
                    upstream.wake.set()
                await asyncio.sleep(5.0)

    def _note(self, item: ListedPage, now: float) -> None:
        self.seen |= {entry.did for entry in item.entries}
        for fact in item.facts:
            if isinstance(fact, RangeSkipped):
                same = [one for one, _ in self.ranges.values() if one.from_cursor == fact.from_cursor]
                if not same:
                    made = DueRange(next(self._ids), item.upstream, fact.from_cursor, fact.to_cursor, 0)
                    self.ranges[made.id] = made, now + SKIP_SECONDS
                continue
            gone, _ = self.ranges.pop(fact.id)
            if isinstance(fact, RangeNarrowed):
                for start, end in fact.left:
                    made = DueRange(next(self._ids), item.upstream, start, end, gone.retry_count + 1)
                    self.ranges[made.id] = made, now + fill_delay(gone.retry_count)
            else:
                assert isinstance(fact, RangeFilled)


def numbered(bad: range, repos: int = 150, most: int = 20) -> Answer:
    def answer(_: int, cursor: str, limit: int) -> RepoPage | PageFailure:
        ids = list(range(int(cursor or 0) + 1, repos + 1))[: min(limit, most)]
        if set(ids) & set(bad):
            return BAD
        entries = [ListEntry(f"did:plc:{number}", "", True, None) for number in ids]
        return RepoPage(entries, 0, str(ids[-1]) if ids and ids[-1] < repos else None)

    return answer


def cycle(n: int, cursor: str, _: int) -> RepoPage | PageFailure:
    return RepoPage([ListEntry(f"did:plc:{cursor}", "", True, None)], 0, {"": "a", "a": "b", "b": "a"}.get(cursor, "a"))


ANSWERS: dict[str, Answer] = {
    "errors": lambda *_: BAD,
    "silence": lambda *_: DOWN,
    "malformed pages": lambda *_: PageFailure(PageTrouble.MALFORMED, "no page"),
    "429 with Retry-After: 0": lambda *_: failure_of(429, None, 0.0),
    "429 without a time": lambda *_: failure_of(429, None, None),
    "cursors that go round": cycle,
    "empty pages with ever new cursors": lambda n, *_: RepoPage([], 0, f"c{n}"),
    "the end, or an error": lambda n, *_: RepoPage([], 0, None) if n % 2 else BAD,
    "a cycle with errors": lambda n, cursor, limit: BAD if n % 3 else cycle(n, cursor, limit),
    "a 429 and a cycle": lambda n, cursor, limit: failure_of(429, None, 0.0) if n % 2 else cycle(n, cursor, limit),
    "one page, then errors": lambda n, *_: RepoPage([], 0, "7") if n == 1 else BAD,
    "a page, then silence": lambda n, *_: RepoPage([], 0, None) if n % 5 == 0 else DOWN,
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("relay", [True, False])
def test_a_failing_server_is_listed_at_growing_intervals(name: str, relay: bool) -> None:
    """H5, G11, B2: listRepos of a relay and of a PDS, with the fills of what they skip."""
    crawl = Crawl(ANSWERS[name], relay=relay).run()
    assert crawl.hours.counts[0] <= 500
    assert max(crawl.hours.counts[3:]) <= (100 if relay else 45)


def test_a_range_that_always_fails_costs_a_few_requests_an_hour() -> None:
    """N6, H5: repos 41 to 60 of 150 fail, pages hold 20: it was eight requests a second, without end."""
    crawl = Crawl(numbered(range(41, 61)), relay=True).run()
    assert crawl.seen == {f"did:plc:{n}" for n in range(1, 151) if not 41 <= n <= 60}
    assert [(one.from_cursor, one.to_cursor) for one, _ in crawl.ranges.values()] == [("40", "60")]
    assert [one.retry_count >= 9 for one, _ in crawl.ranges.values()] == [True]
    assert crawl.hours.counts[0] <= 200
    assert max(crawl.hours.counts[2:]) <= 12 + 1 + 15  # a round, and a re-check of the end every five minutes


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("errors", lambda _: HostList([], BAD)),
        ("a list that breaks off", lambda _: HostList([PDS], PageFailure(PageTrouble.MALFORMED, "x"))),
        ("now and then a list", lambda n: HostList([PDS]) if n % 4 == 0 else HostList([], DOWN)),
    ],
)
def test_a_relay_s_list_of_hosts(name: str, answer: Callable[[int], HostList]) -> None:
    """H5: listHosts."""
    hours = Hours()

    async def main(loop: VirtualLoop) -> None:
        async def hosts(_: str) -> HostList:
            hours.count(loop.now)
            return answer(hours.total)

        pager: Any = SimpleNamespace(hosts=hosts)
        await follow_hosts(pager, [RELAY], 300.0, lambda *_: None)

    run_hours(DAY, main)
    assert hours.counts[0] <= 40, name
    assert max(hours.counts[2:]) <= (40 if "now" in name else 2), name


@pytest.mark.parametrize("new", [True, False])
def test_one_list_of_hosts_has_an_end(monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    """H5: cursors that go round, and pages without a new host."""
    pager, asked = Pager(Settings(), None), 0  # type: ignore[arg-type]  # sends no request

    async def ask(_relay: str, _method: str, cursor: str, _limit: int) -> Any:
        nonlocal asked
        asked += 1
        return {"hosts": [{"hostname": "pds.example"}], "cursor": f"c{asked}" if new else {"a": "b"}.get(cursor, "a")}

    monkeypatch.setattr(pager, "_ask", ask)
    found = asyncio.run(pager.hosts(RELAY))
    assert found.urls == [PDS]
    assert found.failure is not None
    assert asked <= MAX_BARREN + 2


@pytest.mark.parametrize("every", [0, 50])
def test_a_directory_that_fails_is_asked_once_a_second_at_most(every: int) -> None:
    """H5: the PLC directory, whatever the callers do; `every`: one request in so many is answered."""
    hours = Hours()

    async def main(loop: VirtualLoop) -> None:
        pace = DirectoryPace(10.0, loop.time)
        while True:
            await pace.wait()
            hours.count(loop.now)
            (pace.answered if every and hours.total % every == 0 else pace.failed)()

    run_hours(1, main)
    assert hours.total <= (3900 if every == 0 else 36_000)


@pytest.mark.parametrize("named", [None, 0.0, 1.0])
def test_a_directory_that_answers_only_429_gets_longer_cooldowns(named: float | None) -> None:
    """H5: also one that names no time, or none to speak of."""
    hours = Hours()

    async def main(loop: VirtualLoop) -> None:
        pace = DirectoryPace(10.0, loop.time)
        while True:
            await pace.wait()
            hours.count(loop.now)
            pace.throttled(named)

    run_hours(DAY, main)
    assert hours.counts[0] <= 70
    assert max(hours.counts[1:]) <= 61


@pytest.mark.parametrize(
    "standing",
    [HandleStatus.DNS_SILENT, HandleStatus.WEB_SILENT, HandleStatus.DIRECTORY_SILENT, HandleStatus.NOT_RESOLVED],
)
def test_a_handle_that_never_resolves(standing: HandleStatus) -> None:
    """H5: handle checks of one DID."""
    settings, now, checks = Settings(), 0.0, 0
    while now < 24 * 3600:
        now += next_check(
            standing,
            checks,
            "did:plc:a",
            recheck=settings.handle_recheck_seconds,
            retry=settings.tuning.handle_retry_seconds,
        )
        checks += 1
    assert checks <= 12


@pytest.mark.parametrize("events", [True, False])
def test_a_stream_that_is_closed_again_and_again(events: bool) -> None:
    """H5: websockets of relays and labelers; also where each connection brings an event."""
    now, failures, short, connections = 0.0, 0, 0, 0
    while now < 3600:
        connections += 1
        failures, short = (1 if events else failures + 1), short + 1
        now += reconnect_seconds(failures, short, 0.0)
    assert connections <= (1500 if events else 260)
    assert reconnect_seconds(1, 0, 1.0) <= 0.5, f"after {STEADY_SECONDS} s a connection is made again at once"


def test_a_dead_letter_without_a_key_is_retried_a_few_times() -> None:
    """H5: by itself six times within a day, and never again."""
    assert len(AFTER_SECONDS) == 6
    assert max(AFTER_SECONDS) <= 24 * 3600
