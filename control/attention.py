"""What needs an operator's attention: `attention(status) -> list[Problem]`.

`sluice status`, `sluice up`, the status page and `sluice doctor` all show this list. A process that works without making progress
reports itself as not `ready`. A relay is silent for the age of its cursor; without a cursor, for the uptime of the firehose.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass

from control.process_status import ProcessStatus
from control.status import MirrorStatus, Row

SILENT_SECONDS = 300.0
HOSTS_SHOWN = 5
STREAMS = {"firehose": "relay"}  # not labels: a labeler may be quiet for days


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `bad`: the mirror is wrong or makes no progress; otherwise it works, but an operator should act."""

    what: str
    remedy: str
    bad: bool = False
    runbook: str = ""  # section of docs/runbook.md


def attention(status: MirrorStatus, *, now: float) -> list[Problem]:
    """All problems, the worst first. `now`: Unix seconds."""
    found = [*_processes(status), *_log(status), *_relays(status, now), *_work(status)]
    return sorted(found, key=lambda trouble: not trouble.bad)


def as_json(status: MirrorStatus) -> Row:
    """The status with its problems, as JSON values."""
    return {**status.as_json(), "attention": [asdict(trouble) for trouble in attention(status, now=time.time())]}


def _processes(status: MirrorStatus) -> list[Problem]:
    found = [Problem(f"paused: {what}", "it resumes automatically", runbook="SluicePaused") for what in status.paused]
    for seen in status.processes:
        if seen.state == "failing":
            found.append(
                Problem(f"failing: {seen.name}: {seen.why}", "correct what the error names", True, "SluiceFailing")
            )
        elif seen.state == "down":
            found.append(
                Problem(f"down: {seen.name} does not answer ({seen.why})", "see its log", True, "SluiceProcessDown")
            )
        elif seen.state == "stopped":
            found.append(
                Problem(
                    f"stopped: {seen.name}, by an operator", f"`sluice start {seen.name}`", runbook="SluiceProcessDown"
                )
            )
        elif seen.state == "working" and not seen.ready:
            found.append(
                Problem(
                    f"stalled: {seen.name} has made no progress for minutes although it has work",
                    "see its log; restart it",
                    bad=True,
                    runbook="SluiceStalled",
                )
            )
    return found


def _log(status: MirrorStatus) -> list[Problem]:
    past = sorted({one.topic for one in status.partition_lags if one.past_end})
    remedy = "see `sluice cursors list`: the log was replaced, or has lost data"
    found = [Problem(f"a group is past the end of {topic}", remedy, True, "SluiceGroupPastEnd") for topic in past]
    lost: Counter[tuple[str, str]] = Counter()
    for one in status.partition_lags:
        lost[one.group, one.topic] += one.lost
    for (group, topic), count in lost.items():
        if count:
            what = f"lost to retention: {count} messages of {topic} were removed before {group} read them"
            remedy = "raise the topic's retention, or add workers; their repos are listed again"
            found.append(Problem(what, remedy, True, "SluiceMessagesLost"))
    for name in status.shards_down:
        what = f"down: the database of shard {name} does not answer; its repos stand still, and are missing in these figures"
        found.append(Problem(what, "start it, or correct SLUICE_SHARDS", True, "SluiceShardDown"))
    if status.stream_gaps:
        what = f"gaps in streams or the log: {status.stream_gaps} (usual after a first start)"
        remedy = "needs no action: the next complete listing finds what was missed"
        found.append(Problem(what, remedy, runbook="SluiceSequenceGap"))
    return found


def _relays(status: MirrorStatus, now: float) -> list[Problem]:
    remedy = "use another relay, or ask its operator; `sluice doctor` checks whether it answers"
    silent: dict[str, float] = {}
    for row in status.cursors:
        if row["flow"] in STREAMS and row["in_use"] and (not status.relays or row["upstream"] in status.relays):
            silent[row["upstream"]] = max(silent.get(row["upstream"], 0.0), float(row["age_seconds"]))
    up = max((_up_for(seen, now) for seen in status.processes if seen.kind in STREAMS), default=0.0)
    silent |= {relay: up for relay in status.relays if relay not in silent}
    found = [
        Problem(f"silent: no event from {relay} for {seconds / 60:.0f} min", remedy, True, "SluiceUpstreamSilent")
        for relay, seconds in sorted(silent.items())
        if seconds > SILENT_SECONDS
    ]
    return found + _missing_shares(status)


def _missing_shares(status: MirrorStatus) -> list[Problem]:
    """Shares that have never run, or have stored nothing yet."""
    stored: dict[tuple[str, int], set[str]] = {}
    for row in status.cursors:
        if row["in_use"] and row["share"] and (not status.relays or row["upstream"] in status.relays):
            count = int(row["share"].partition(" of ")[2])
            stored.setdefault((row["upstream"], count), set()).add(row["share"])
    remedy = "start the firehose process of this share, or its repos stand still"
    return [
        Problem(f"share {name} of {relay} has no position", remedy, True, "SluiceFlowMissing")
        for (relay, count), names in sorted(stored.items())
        for number in range(count)
        if (name := f"{number} of {count}") not in names
    ]


def _up_for(seen: ProcessStatus, now: float) -> float:
    started = seen.metrics.get("sluice_started_timestamp_seconds", {})
    return now - min(started.values()) if started else 0.0


def _work(status: MirrorStatus) -> list[Problem]:
    found = [
        Problem(
            f"host {row['host']}: {row['consecutive_failures']} failures in a row ({row['last_error']})",
            "its repos are retried; act only if this lasts",
            runbook="SluiceFetchesFail",
        )
        for row in status.failing_hosts[:HOSTS_SHOWN]
        if row["consecutive_failures"]
    ]
    if status.repos.get("failed"):
        what = f"failed repos: {status.repos['failed']}, until you retry them"
        found.append(Problem(what, "`sluice backfill retry --all`", runbook="SluiceReposFail"))
    if jobs := [job["name"] for job in status.jobs if job["status"] == "failed"]:
        what = f"failed jobs: {', '.join(jobs[:HOSTS_SHOWN])}"
        found.append(Problem(what, "`sluice backfill retry JOB`", runbook="SluiceJobFailed"))
    found += [
        Problem(f"storm of refetches held: {repos} repos for {reason}", "`sluice storms`", True, "SluiceRefetchStorm")
        for reason, repos in status.storms.items()
    ]
    if letters := status.dead_letters.get("open"):
        what = f"dead letters: {letters} open"
        found.append(Problem(what, "`sluice dead-letters list`", runbook="SluiceDeadLettersOpen"))
    if status.skipped_ranges:
        what = f"skipped listing ranges: {status.skipped_ranges}"
        found.append(Problem(what, "`sluice skipped list`", runbook="SluiceSkippedOpen"))
    return found
