"""`sluice doctor`: looks at everything that a mirror needs → `Check`s, each with its state and a remedy. Changes nothing.

`examine(settings) -> list[Check]` never raises for what it looks at: a part that does not answer is a check that failed, and
what can only be told with that part's help is left out.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp
import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from connectors.atproto.labeler import SUBSCRIBE as SUBSCRIBE_LABELS
from connectors.atproto.relay import LIST_REPOS, SUBSCRIBE
from connectors.http.client import LIST_JSON, HostRefused, Unreachable, check_url, fetch, open_session, translated
from connectors.kafka import topics
from connectors.kafka.log import LogUnavailable, admin, cluster_id
from connectors.kafka.offsets import GROUP_TOPICS, Positions
from connectors.postgres.connection import connect
from connectors.postgres.migrate import MigrationError, missing
from connectors.runtime.errors import one_line
from control.attention import attention
from control.process_status import look_at_all, registered
from control.status import Collector
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

BROKER_SECONDS = 10.0
CLOCK_SECONDS = 5.0
CLOCK_FAILS_SECONDS = 60.0
NEAR_START = 0.25
"""A group that stands within this share of a log whose beginning is being removed is close to losing messages."""

DISK_WARNS = 0.15
DISK_FAILS = 0.05
NOBODY = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
WS_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)
SETTINGS = {"relay": "SLUICE_RELAYS", "labeler": "SLUICE_LABELERS", "plc": "SLUICE_PLC"}


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do about it ('' where nothing is to be done)."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which to mend what is wrong."""
    found = [_database(settings)]
    if found[0].state is not State.FAIL:
        found += [_guarded("migrations", lambda: _migrations(settings)), _guarded("clock", lambda: _clock(settings))]
    broker = _broker(settings)
    found.append(broker)
    if broker.state is not State.FAIL:
        found.append(_guarded("topics", lambda: _topics(settings)))
        if all(check.state is State.OK for check in found if check.name in ("topics", "migrations", "database")):
            found.append(_guarded("retention", lambda: _retention(settings)))
            found.append(_guarded("broker clock", lambda: _message_clock(settings)))
            found += _attention(settings)
    found += asyncio.run(_upstreams(settings))
    found.append(_disk(settings))
    return found


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (psycopg.Error, LogUnavailable, OperatorError, MigrationError) as err:
        return Check(name, State.FAIL, one_line(err), "mend what is above first")


def _database(settings: Settings) -> Check:
    try:
        with connect(settings.database, "sluice doctor") as db:
            return Check("database", State.OK, f"PostgreSQL {db.info.server_version // 10000}")
    except psycopg.Error as err:
        remedy = "start PostgreSQL there, or correct SLUICE_DATABASE"
        return Check("database", State.FAIL, one_line(err), remedy)


def _migrations(settings: Settings) -> Check:
    lacking = missing(settings.database)
    if lacking:
        return Check("migrations", State.FAIL, f"missing: {', '.join(lacking)}", "run `sluice migrate`")
    return Check("migrations", State.OK, "all applied")


def _clock(settings: Settings) -> Check:
    with connect(settings.database, "sluice doctor") as db:
        before = time.time()
        row = db.execute(queries("control")["now"]).fetchone()
        after = time.time()
    return clock_check("clock", float(row[0]) if row else 0.0, before, after)


def clock_check(name: str, theirs: float, before: float, after: float) -> Check:
    """Their clock, read between two looks at ours."""
    off = max(before - theirs, theirs - after, 0.0)
    state = State.FAIL if off > CLOCK_FAILS_SECONDS else State.WARN if off > CLOCK_SECONDS else State.OK
    detail = (
        f"PostgreSQL's clock differs from ours by {off:.1f} s" if off > CLOCK_SECONDS else "agrees with PostgreSQL's"
    )
    return Check(name, state, detail, "" if state is State.OK else "synchronise both with NTP")


def _broker(settings: Settings) -> Check:
    try:
        return Check("broker", State.OK, f"cluster {cluster_id(settings, BROKER_SECONDS)}")
    except LogUnavailable as err:
        return Check("broker", State.FAIL, one_line(err), "start the brokers, or correct SLUICE_KAFKA_BOOTSTRAP")


def _topics(settings: Settings) -> Check:
    differences = topics.diff(settings)
    if not differences:
        return Check("topics", State.OK, "as declared")
    counts = any(difference.what == "partitions" for difference in differences)
    remedy = "set SLUICE_KAFKA_PARTITIONS to what the topics have" if counts else "run `sluice topics apply`"
    return Check("topics", State.FAIL, "; ".join(map(str, differences[:5])), remedy)


def _retention(settings: Settings) -> Check:
    """Whether a group stands where the log is about to be, or was, removed (or where it has never been)."""
    with connect(settings.database, "sluice doctor") as db:
        standings = Positions(settings).standings(db)
    for what, state, remedy in (
        ("past_end", State.FAIL, "see `sluice cursors list`: the log was replaced, or has lost data"),
        ("lost", State.FAIL, "their repos are fetched again; raise retention in schemas/topics.yml, or add workers"),
        ("near", State.WARN, "raise the topic's retention, or add workers, before messages are lost"),
    ):
        found = [
            f"{one.group} at {one.position} of {one.topic}/{one.partition} ({one.start}–{one.end})"
            for one in standings
            if (near_start(one.start, one.position, one.end) if what == "near" else getattr(one, what))
        ]
        if found:
            said = {"past_end": "past the end", "lost": "behind the log's start", "near": "close to the log's start"}
            return Check("retention", state, f"{said[what]}: {'; '.join(found[:5])}", remedy)
    return Check("retention", State.OK, f"longer than every lag ({sum(one.lag for one in standings)} messages)")


def _attention(settings: Settings) -> list[Check]:
    """What `sluice status` and the page show too; the retention check above has what concerns positions."""
    try:
        running = registered(settings.data_dir)
        collector = Collector(settings)
        try:
            status = collector.collect(look_at_all(running.processes, with_metrics=True) if running else [])
        finally:
            collector.close()
    except (psycopg.Error, LogUnavailable) as err:
        return [Check("attention", State.FAIL, one_line(err), "mend what is above first")]
    found = attention(status, now=time.time())
    return [Check("attention", State.FAIL if one.bad else State.WARN, one.what, one.remedy) for one in found] or [
        Check("attention", State.OK, "nothing")
    ]


def near_start(start: int, position: int, end: int) -> bool:
    """A log that has begun to be removed (start > 0), and a reader with little between it and the removal."""
    return start > 0 and position < end and position - start < NEAR_START * (end - start)


def _message_clock(settings: Settings) -> Check:
    """The newest message's time against ours: a producer or broker of the future breaks replays by time and retention."""
    positions = Positions(settings)
    parts = positions.parts(topic for group in GROUP_TOPICS.values() for topic in group)
    newest = max(_newest(settings, parts), default=0.0)
    ahead = newest - time.time()
    if ahead > CLOCK_SECONDS:
        detail = f"the newest message is {ahead:.0f} s in the future"
        return Check("broker clock", State.FAIL, detail, "synchronise the clocks of brokers and pods with NTP")
    return Check("broker clock", State.OK, "no message of the future" if newest else "no message yet")


def _newest(settings: Settings, parts: list[tuple[str, int]]) -> Iterator[float]:
    asked = {TopicPartition(settings.topic(topic), part): OffsetSpec.max_timestamp() for topic, part in parts}
    client = admin(settings)  # kept until all have answered: a client that is collected answers nobody
    for place, future in client.list_offsets(asked, request_timeout=BROKER_SECONDS).items():
        try:
            yield future.result(2 * BROKER_SECONDS).timestamp / 1000
        except (KafkaException, TimeoutError) as err:
            raise LogUnavailable(f"{place.topic}: {err}") from err


async def _upstreams(settings: Settings) -> list[Check]:
    """Relays, labelers and the PLC directory: any answer of theirs that is no failure of theirs, and then their streams."""
    asked = [("relay", url, f"xrpc/{LIST_REPOS}?limit=1", SUBSCRIBE) for url in settings.relays]
    asked += [("labeler", url, "xrpc/_health", SUBSCRIBE_LABELS) for url in settings.labelers]
    asked.append(("plc", settings.plc, NOBODY, ""))
    found = [] if settings.relays else [Check("relay", State.WARN, "none is set", "set SLUICE_RELAYS=https://RELAY")]
    async with open_session(settings) as session:
        for name, url, question, stream in asked:
            found.append(await _answers(session, settings, name, url, question))
            if stream and found[-1].state is State.OK:
                found.append(await _streams(session, settings, name, f"{url}/xrpc/{stream}"))
    return found


async def _answers(session: aiohttp.ClientSession, settings: Settings, name: str, url: str, question: str) -> Check:
    remedy = f"correct {SETTINGS[name]}, or wait until it answers"
    try:
        private = settings.allow_private_hosts
        answer = await fetch(session, f"{url}/{question}", allow_private=private, limit=LIST_JSON.size)
    except HostRefused as err:
        remedy = f"correct {SETTINGS[name]}, or set SLUICE_ALLOW_PRIVATE_HOSTS=true for an own network"
        return Check(name, State.FAIL, f"{url}: {err}", remedy)
    except Unreachable as err:
        return Check(name, State.FAIL, f"{url}: {err}", remedy)
    failing = answer.status >= 500 or (name == "relay" and answer.status != 200)
    return Check(name, State.FAIL if failing else State.OK, f"{url} answers {answer.status}", remedy if failing else "")


async def _streams(session: aiohttp.ClientSession, settings: Settings, name: str, url: str) -> Check:
    """Whether it lets us subscribe: a proxy that passes requests on need not pass websockets on."""
    check_url(url, allow_private=settings.allow_private_hosts)
    try:
        async with asyncio.timeout(settings.tuning.fetch_connect_seconds), session.ws_connect(url, timeout=WS_CLOSE):
            return Check(f"{name} stream", State.OK, f"{url} streams")
    except (aiohttp.ClientError, TimeoutError, OSError) as err:
        remedy = f"{SETTINGS[name]} must name a host that streams; let proxies before it pass websockets on"
        return Check(f"{name} stream", State.FAIL, one_line(translated(err, url)), remedy)


def _disk(settings: Settings) -> Check:
    """Space where `sluice up` keeps its data, or where large repos are spooled."""
    folder = settings.data_dir if settings.data_dir.exists() else Path.cwd()
    usage = shutil.disk_usage(folder)
    return disk_check(str(folder), usage.free, usage.total)


def disk_check(folder: str, free: int, total: int) -> Check:
    """Bytes that are free, of so many."""
    share = free / max(total, 1)
    state = State.FAIL if share < DISK_FAILS else State.WARN if share < DISK_WARNS else State.OK
    detail = f"{folder}: {free / 1e9:.1f} GB free ({share:.0%})"
    return Check("disk", state, detail, "" if state is State.OK else "free space, or move the data to a larger disk")


def as_text(checks: list[Check]) -> str:
    """For people."""
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name:<13} {check.detail}")
        if check.remedy:
            lines.append(f"{'':<19} → {check.remedy}")
    return "\n".join(lines)
