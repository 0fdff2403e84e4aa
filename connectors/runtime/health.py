"""State of the process and its health pages.

`Health` holds the state that the flow reports. `serve_health` serves /healthz, /readyz and /metrics from its own thread
(connectors/http/server.py).
"""

import logging
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from connectors.runtime import metrics
from protocol.encoding.safe_text import printable

WHY_CHARACTERS = 1000


@dataclass(slots=True)
class Health:
    """State of this process (starting, idle, working, paused or failing), its reason, and the time of the last progress.

    `exported`: export the state as metrics; False in a process that does only part of a flow's work.
    """

    flow: str
    stalled_seconds: float = 300.0
    state: str = "starting"
    why: str = ""
    connected: bool = False
    progress_at: float = field(default_factory=time.monotonic)
    exported: bool = True
    hung: str = ""  # the watchdog's finding, set just before it ends the process

    def report(self, state: str, why: str = "") -> None:
        """Set the state; a change is logged."""
        why = printable(why, WHY_CHARACTERS)
        if (state, why) != (self.state, self.why):
            logging.getLogger(self.flow).info("state", extra={"state": state, "why": why})
            self.state, self.why = state, why
            if self.exported:
                self._export()
        self.connected = True

    def _export(self) -> None:
        for name in ("idle", "working", "paused", "failing"):
            metrics.STATE.labels(self.flow, name).set(1.0 if name == self.state else 0.0)
        metrics.PAUSED.labels(self.flow).set(1.0 if self.state == "paused" else 0.0)

    def progressed(self) -> None:
        """Record that a position has become durable."""
        self.progress_at = time.monotonic()
        metrics.LAST_CHECKPOINT.labels(self.flow).set_to_current_time()

    @property
    def ready(self) -> bool:
        """Whether the process is connected, not hung, and not stalled while there is work."""
        stalled = self.state == "working" and time.monotonic() - self.progress_at > self.stalled_seconds
        return self.connected and not stalled and not self.hung

    def page(self) -> dict[str, object]:
        """The body of /healthz and /readyz."""
        state, why = ("hung", self.hung) if self.hung else (self.state, self.why)
        return {"flow": self.flow, "state": state, "why": why, "ready": self.ready}


def serve_health(health: Health, host: str, port: int, names: Collection[str] = ()) -> int:
    """Serve the health pages from a daemon thread; returns the port. Raises OSError if the port is in use.

    `names`: accepted Host names besides IP addresses and local or cluster names.
    """
    from connectors.http.server import HttpServer, health_app  # noqa: PLC0415 - commands serve nothing: aiohttp is 0.1 s

    port = HttpServer(health_app(health, names), host, port, "health").start()
    metrics.STARTED.labels(health.flow).set_to_current_time()
    return port


def watch_disk(flow: str, folder: str, path: Path) -> None:
    """Export size and free space of the disk of a path, or of its nearest existing parent; read at each scrape."""

    def usage(figure: str) -> float:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        return float(getattr(shutil.disk_usage(there), figure))

    metrics.DISK_FREE.labels(flow, folder).set_function(lambda: usage("free"))
    metrics.DISK_SIZE.labels(flow, folder).set_function(lambda: usage("total"))
