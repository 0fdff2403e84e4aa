"""What needs an operator's attention: `attention(status) -> list[Trouble]`.

`sluice status`, `sluice up`, the page and `sluice doctor` all show this list and no other. A process that works and makes no
progress is `stalled` by its own word (`ready`); a relay is judged by its cursor, and before there is one by how long the
firehose has run.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass

from control.process_status import Sighting
from control.status import Row, Status

SILENT_SECONDS = 300.0
STARTING_SECONDS = 60.0  # a process that has just been started does not answer yet
HOSTS_SHOWN = 5
STREAMS = {"firehose": "relay"}  # a labeler may have nothing to say for days


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing to look at. `bad`: the mirror is wrong or stands still; else it works and something waits for an operator."""

    what: str
    remedy: str
    bad: bool = False


def attention(status: Status, *, now: float) -> list[Trouble]:
    """Everything, the worst first. `now`: Unix seconds, as the processes' metrics have them."""
    found = [*_processes(status), *_log(status), *_relays(status, now), *_work(status)]
    return sorted(found, key=lambda trouble: not trouble.bad)


def as_json(status: Status) -> Row:
    """The status with what needs attention, as values that JSON knows."""
    return {**status.as_json(), "attention": [asdict(trouble) for trouble in attention(status, now=time.time())]}


def _processes(status: Status) -> list[Trouble]:
    found = [Trouble(f"paused: {what}", "it goes on by itself") for what in status.paused]
    for seen in status.processes:
        if seen.state == "failing":
            found.append(Trouble(f"failing: {seen.name}: {seen.why}", "mend what it names", bad=True))
        elif seen.state == "down" and (seen.age_seconds is None or seen.age_seconds > STARTING_SECONDS):
            found.append(Trouble(f"down: {seen.name} does not answer ({seen.why})", "see its log", bad=True))
        elif seen.state == "working" and not seen.ready:
            found.append(
                Trouble(
                    f"stalled: {seen.name} works, and nothing has become durable for minutes",
                    "see its log; restart it",
                    bad=True,
                )
            )
    return found


def _log(status: Status) -> list[Trouble]:
    past = sorted({standing.topic for standing in status.standings if standing.past_end})
    remedy = "see `sluice cursors list`: the log was replaced, or has lost data"
    found = [Trouble(f"a group stands past the end of {topic}", remedy, bad=True) for topic in past]
    lost: Counter[tuple[str, str]] = Counter()
    for standing in status.standings:
        lost[standing.group, standing.topic] += standing.lost
    for (group, topic), count in lost.items():
        if count:
            what = f"lost to retention: {count} messages of {topic} were removed before {group} had read them"
            found.append(
                Trouble(what, "raise the topic's retention, or add workers; their repos are listed again", bad=True)
            )
    if status.stream_gaps:
        what = f"stretches of streams or log that were not read: {status.stream_gaps}"
        found.append(Trouble(what, "the next listing answers them; look again when it has ended"))
    return found


def _relays(status: Status, now: float) -> list[Trouble]:
    remedy = "ask another relay, or its operator; `sluice doctor` looks whether it answers"
    silent = {
        row["upstream"]: float(row["age_seconds"])
        for row in status.cursors
        if row["flow"] in STREAMS and (not status.relays or row["upstream"] in status.relays)
    }
    up = max((_up_for(seen, now) for seen in status.processes if seen.kind in STREAMS), default=0.0)
    silent |= {relay: up for relay in status.relays if relay not in silent}
    return [
        Trouble(f"silent: nothing has come from {relay} for {seconds / 60:.0f} min", remedy, bad=True)
        for relay, seconds in sorted(silent.items())
        if seconds > SILENT_SECONDS
    ]


def _up_for(seen: Sighting, now: float) -> float:
    started = seen.metrics.get("sluice_started_timestamp_seconds", {})
    return now - min(started.values()) if started else 0.0


def _work(status: Status) -> list[Trouble]:
    found = [
        Trouble(
            f"host {row['host']}: {row['consecutive_failures']} failures in a row ({row['last_error']})",
            "its repos are tried again; nothing to do unless it lasts",
        )
        for row in status.failing_hosts[:HOSTS_SHOWN]
        if row["consecutive_failures"]
    ]
    if status.repos.get("failed"):
        what = f"failed repos: {status.repos['failed']}, until somebody retries them"
        found.append(Trouble(what, "`sluice backfill retry --all`"))
    if jobs := [job["name"] for job in status.jobs if job["status"] == "failed"]:
        found.append(Trouble(f"failed jobs: {', '.join(jobs[:HOSTS_SHOWN])}", "`sluice backfill retry JOB`"))
    found += [
        Trouble(f"storm of refetches held: {repos} repos for {reason}", "`sluice storms`", bad=True)
        for reason, repos in status.storms.items()
    ]
    if letters := status.dead_letters.get("open"):
        found.append(Trouble(f"dead letters: {letters} open", "`sluice dead-letters list`"))
    if status.skipped_ranges:
        found.append(Trouble(f"skipped listing ranges: {status.skipped_ranges}", "`sluice skipped list`"))
    return found
