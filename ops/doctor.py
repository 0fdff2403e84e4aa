"""`sluice doctor`: checks everything that a mirror needs. It changes nothing.

`examine(settings) -> list[Check]` does not raise for a part that is broken: such a part is a failed check with a remedy, and the
checks that depend on it are left out.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp
import psycopg

from connectors.atproto.labeler import SUBSCRIBE as SUBSCRIBE_LABELS
from connectors.atproto.relay import LIST_REPOS, SUBSCRIBE
from connectors.http.client import LIST_JSON, HostRefused, Unreachable, check_url, fetch, open_session, to_http_error
from connectors.kafka import topics
from connectors.kafka.log import LogUnavailable, cluster_id
from connectors.kafka.offsets import GROUP_TOPICS, Offsets
from connectors.postgres.connection import connect
from connectors.postgres.migrate import MigrationError, missing
from connectors.runtime.errors import one_line
from control.attention import attention
from control.process_status import STREAM_KINDS, check_processes, registered
from control.status import Collector
from ops import shards
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

BROKER_SECONDS = 10.0
CLOCK_SECONDS = 5.0
CLOCK_FAILS_SECONDS = 60.0
NEAR_START = 0.25
"""Share of a log that retention has shortened: a group nearer to its start is about to lose messages."""

DISK_WARNS = 0.15
DISK_FAILS = 0.05
UNKNOWN_DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
WS_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)
SETTINGS = {"relay": "SLUICE_RELAYS", "labeler": "SLUICE_LABELERS", "plc": "SLUICE_PLC"}


class CheckState(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was checked, the result, and what to do ('' if nothing)."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which to fix problems."""
    found = [_database(settings)]
    if found[0].state is not CheckState.FAIL:
        found += [_guarded("migrations", lambda: _migrations(settings)), _guarded("clock", lambda: _clock(settings))]
        if settings.shards:
            found.append(_guarded("shards", lambda: _shards(settings)))
    broker = _broker(settings)
    found.append(broker)
    if broker.state is not CheckState.FAIL:
        found.append(_guarded("topics", lambda: _topics(settings)))
        if all(check.state is CheckState.OK for check in found if check.name in ("topics", "migrations", "database")):
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
        return Check(name, CheckState.FAIL, one_line(err), "fix the problems above first")


def _database(settings: Settings) -> Check:
    try:
        with connect(settings.database, "sluice doctor") as db:
            return Check("database", CheckState.OK, f"PostgreSQL {db.info.server_version // 10000}")
    except psycopg.Error as err:
        remedy = "start PostgreSQL there, or correct SLUICE_DATABASE"
        return Check("database", CheckState.FAIL, one_line(err), remedy)


def _migrations(settings: Settings) -> Check:
    lacking = missing(settings.database)
    if lacking:
        return Check("migrations", CheckState.FAIL, f"missing: {', '.join(lacking)}", "run `sluice migrate`")
    return Check("migrations", CheckState.OK, "all applied")


def _shards(settings: Settings) -> Check:
    wrong = [f"{one.partitions}: {one.problem}" for one in shards.check(settings) if one.problem]
    if wrong:
        return Check("shards", CheckState.FAIL, "; ".join(wrong), "start their PostgreSQL, or correct SLUICE_SHARDS")
    return Check("shards", CheckState.OK, "all answer")


def _clock(settings: Settings) -> Check:
    with connect(settings.database, "sluice doctor") as db:
        before = time.time()
        row = db.execute(queries("control")["now"]).fetchone()
        after = time.time()
    return clock_check("clock", float(row[0]) if row else 0.0, before, after)


def clock_check(name: str, theirs: float, before: float, after: float) -> Check:
    """Compare their clock (Unix seconds) with ours, read `before` and `after` theirs."""
    off = max(before - theirs, theirs - after, 0.0)
    state = CheckState.FAIL if off > CLOCK_FAILS_SECONDS else CheckState.WARN if off > CLOCK_SECONDS else CheckState.OK
    detail = (
        f"PostgreSQL's clock differs from ours by {off:.1f} s" if off > CLOCK_SECONDS else "agrees with PostgreSQL's"
    )
    return Check(name, state, detail, "" if state is CheckState.OK else "synchronise both with NTP")


def _broker(settings: Settings) -> Check:
    try:
        return Check("broker", CheckState.OK, f"cluster {cluster_id(settings, BROKER_SECONDS)}")
    except LogUnavailable as err:
        return Check("broker", CheckState.FAIL, one_line(err), "start the brokers, or correct SLUICE_KAFKA_BOOTSTRAP")


def _topics(settings: Settings) -> Check:
    differences = topics.diff(settings)
    if not differences:
        return Check("topics", CheckState.OK, "as declared")
    counts = any(difference.what == "partitions" for difference in differences)
    remedy = "set SLUICE_KAFKA_PARTITIONS to what the topics have" if counts else "run `sluice topics apply`"
    return Check("topics", CheckState.FAIL, "; ".join(map(str, differences[:5])), remedy)


def _retention(settings: Settings) -> Check:
    """Whether a group is past the end, behind the start, or close to the start of its log."""
    with connect(settings.database, "sluice doctor") as db:
        lags = Offsets(settings).lags(db)
    for what, state, remedy in (
        ("past_end", CheckState.FAIL, "see `sluice cursors list`: the log was replaced, or has lost data"),
        (
            "lost",
            CheckState.FAIL,
            "their repos are fetched again; raise retention in schemas/topics.yml, or add workers",
        ),
        ("near", CheckState.WARN, "raise the topic's retention, or add workers, before messages are lost"),
    ):
        found = [
            f"{one.group} at {one.position} of {one.topic}/{one.partition} ({one.start}–{one.end})"
            for one in lags
            if (near_start(one.start, one.position, one.end) if what == "near" else getattr(one, what))
        ]
        if found:
            words = {"past_end": "past the end", "lost": "behind the log's start", "near": "close to the log's start"}
            return Check("retention", state, f"{words[what]}: {'; '.join(found[:5])}", remedy)
    return Check("retention", CheckState.OK, f"longer than every lag ({sum(one.lag for one in lags)} messages)")


def _attention(settings: Settings) -> list[Check]:
    """The same problems that `sluice status` and the status page show."""
    try:
        running = registered(settings.data_dir)
        collector = Collector(settings)
        try:
            status = collector.collect(check_processes(running.processes, STREAM_KINDS) if running else [])
        finally:
            collector.close()
    except (psycopg.Error, LogUnavailable) as err:
        return [Check("attention", CheckState.FAIL, one_line(err), "fix the problems above first")]
    found = attention(status, now=time.time())
    return [
        Check("attention", CheckState.FAIL if one.bad else CheckState.WARN, one.what, one.remedy) for one in found
    ] or [Check("attention", CheckState.OK, "nothing")]


def near_start(start: int, position: int, end: int) -> bool:
    """Whether retention has begun to shorten the log (start > 0), and the reader is close to its start."""
    return start > 0 and position < end and position - start < NEAR_START * (end - start)


def _message_clock(settings: Settings) -> Check:
    """Compare the newest message's time with our clock: a clock that is ahead breaks replays by time, and retention."""
    offsets = Offsets(settings)
    newest = offsets.newest_time(offsets.parts(topic for group in GROUP_TOPICS.values() for topic in group))
    ahead = newest - time.time()
    if ahead > CLOCK_SECONDS:
        detail = f"the newest message is {ahead:.0f} s in the future"
        return Check("broker clock", CheckState.FAIL, detail, "synchronise the clocks of brokers and pods with NTP")
    return Check("broker clock", CheckState.OK, "no message from the future" if newest else "no message yet")


async def _upstreams(settings: Settings) -> list[Check]:
    """Relays, labelers and the PLC directory: whether they answer, and whether their streams can be opened."""
    targets = [("relay", url, f"xrpc/{LIST_REPOS}?limit=1", SUBSCRIBE) for url in settings.relays]
    targets += [("labeler", url, "xrpc/_health", SUBSCRIBE_LABELS) for url in settings.labelers]
    targets.append(("plc", settings.plc, UNKNOWN_DID, ""))
    found = (
        [] if settings.relays else [Check("relay", CheckState.WARN, "none is set", "set SLUICE_RELAYS=https://RELAY")]
    )
    async with open_session(settings, websockets=True) as session:
        for name, url, path, stream in targets:
            found.append(await _answers(session, settings, name, url, path))
            if stream and found[-1].state is CheckState.OK:
                found.append(await _streams(session, settings, name, f"{url}/xrpc/{stream}"))
    return found


async def _answers(session: aiohttp.ClientSession, settings: Settings, name: str, url: str, path: str) -> Check:
    remedy = f"correct {SETTINGS[name]}, or wait until it answers"
    try:
        private = settings.allow_private_hosts
        answer = await fetch(session, f"{url}/{path}", allow_private=private, limit=LIST_JSON.size)
    except HostRefused as err:
        remedy = f"correct {SETTINGS[name]}, or set SLUICE_ALLOW_PRIVATE_HOSTS=true for a private network"
        return Check(name, CheckState.FAIL, f"{url}: {err}", remedy)
    except Unreachable as err:
        return Check(name, CheckState.FAIL, f"{url}: {err}", remedy)
    failing = answer.status >= 500 or (name == "relay" and answer.status != 200)
    return Check(
        name, CheckState.FAIL if failing else CheckState.OK, f"{url} answers {answer.status}", remedy if failing else ""
    )


async def _streams(session: aiohttp.ClientSession, settings: Settings, name: str, url: str) -> Check:
    """Whether a subscription can be opened: a proxy may pass requests but no websockets."""
    check_url(url, allow_private=settings.allow_private_hosts)
    try:
        async with asyncio.timeout(settings.tuning.fetch_connect_seconds), session.ws_connect(url, timeout=WS_CLOSE):
            return Check(f"{name} stream", CheckState.OK, f"{url} streams")
    except (aiohttp.ClientError, TimeoutError, OSError) as err:
        remedy = f"{SETTINGS[name]} must name a host that streams; make proxies in front of it pass websockets"
        return Check(f"{name} stream", CheckState.FAIL, one_line(to_http_error(err, url)), remedy)


def _disk(settings: Settings) -> Check:
    """Free space in the data folder of `sluice up`, or in the working directory."""
    folder = settings.data_dir if settings.data_dir.exists() else Path.cwd()
    usage = shutil.disk_usage(folder)
    return disk_check(str(folder), usage.free, usage.total)


def disk_check(folder: str, free: int, total: int) -> Check:
    """`free` and `total` in bytes."""
    share = free / max(total, 1)
    state = CheckState.FAIL if share < DISK_FAILS else CheckState.WARN if share < DISK_WARNS else CheckState.OK
    detail = f"{folder}: {free / 1e9:.1f} GB free ({share:.0%})"
    return Check(
        "disk", state, detail, "" if state is CheckState.OK else "free space, or move the data to a larger disk"
    )


def as_text(checks: list[Check]) -> str:
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name:<13} {check.detail}")
        if check.remedy:
            lines.append(f"{'':<19} → {check.remedy}")
    return "\n".join(lines)
