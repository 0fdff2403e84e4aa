"""`sluice up --until-synced`: when is the mirror complete? `SyncCheck(settings).check(status)`.

It is complete once these have held in this order: (1) the listing of every relay has reached its end, every repo is in an end phase, and every
queued repo was read; (2) each stream is connected, and has delivered an event younger than (1), or nothing new for
`QUIET_SECONDS` with an empty queue; (3) the index has stored every message that the topics had at (2), and (1) still holds.
So a network that keeps writing is mirrored up to a moment after its listing was complete.
"""

import time
from collections.abc import Callable

from control.process_status import ProcessStatus
from control.status import END_PHASES, MirrorStatus, Row
from schemas.settings import Settings

QUIET_SECONDS = 3.0
STREAMS = (("firehose", "relays"), ("labels", "labelers"))


class SyncCheck:
    """Keeps the state of earlier checks."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._settled_at: float | None = None
        self._ends: dict[tuple[str, int], int] | None = None
        self._moved: dict[str, tuple[object, float]] = {}
        self.waits_for = "the first check"

    def check(self, status: MirrorStatus) -> bool:
        """True when the mirror is complete. Otherwise `waits_for` names what is missing."""
        now = self._clock()
        missing = self._unsettled(status)
        quiet = {flow: self._unchanged_for(flow, status, now) for flow, _ in STREAMS}
        if missing is not None:
            self.waits_for = missing
            return False
        if self._settled_at is None:
            self._settled_at = now
        if self._ends is None:
            for flow, setting in STREAMS:
                upstreams = len(getattr(self._settings, setting))
                if upstreams and not self._caught_up(status, flow, upstreams, quiet[flow]):
                    self.waits_for = f"{flow} to catch up"
                    return False
            self._ends = {(s.topic, s.partition): s.end for s in status.partition_lags if s.group == "index"}
        behind = [
            one
            for one in status.partition_lags
            if one.group == "index" and one.position < self._ends[one.topic, one.partition]
        ]
        self.waits_for = f"the index in {behind[0].topic}" if behind else ""
        return not behind

    def _unsettled(self, status: MirrorStatus) -> str | None:
        listed = {job["relay"] for job in status.jobs if job["kind"] == "relay" and _listed(job) and not _cut(job)}
        for relay in self._settings.relays:
            if relay not in listed:
                return f"the listing of {relay}"
        if status.shards_down:
            return f"the database of shard {status.shards_down[0]}"
        if any(job["status"] in ("pending", "running", "retry") and not _listed(job) for job in status.jobs):
            return "a listing"
        moving = sum(count for phase, count in status.repos.items() if phase not in END_PHASES)
        if moving:
            return f"{moving} repos"
        queued = sum(lag for (group, _), lag in status.lag.items() if group == "backfill")
        return f"{queued} queued repos" if queued else None

    def _unchanged_for(self, flow: str, status: MirrorStatus, now: float) -> float:
        processes = [one for one in status.processes if one.kind == flow]
        mark = [(one.total("sluice_upstream_seq"), one.total("sluice_websocket_connections")) for one in processes]
        if self._moved.get(flow, (None, 0.0))[0] != mark:
            self._moved[flow] = (mark, now)
        return now - self._moved[flow][1]

    def _caught_up(self, status: MirrorStatus, flow: str, upstreams: int, quiet_seconds: float) -> bool:
        readers = [seen for seen in status.processes if seen.kind == flow]
        return bool(readers) and all(self._reads_new(seen, upstreams, quiet_seconds) for seen in readers)

    def _reads_new(self, seen: ProcessStatus, upstreams: int, quiet_seconds: float) -> bool:
        if (seen.total("sluice_websocket_connections") or 0) < upstreams:
            return False
        newest = seen.metrics.get("sluice_last_event_timestamp_seconds", {})
        if len(newest) >= upstreams and min(newest.values()) >= (self._settled_at or 0):
            return True
        return quiet_seconds >= QUIET_SECONDS and not seen.total("sluice_stream_queue_frames")


def _listed(job: Row) -> bool:
    """Whether its listing reached the end. The job is completed later, when control has counted its repos."""
    return job["status"] == "completed" or job["checkpoint"].get("done") is True


def _cut(job: Row) -> bool:
    """Whether its newest pass ended before the end of the list."""
    return bool((job["checkpoint"] or {}).get("cut"))
