"""What every process has: a stop flag set by signals, a health page, a name, structured logs.

`STOP` is set by SIGTERM and SIGINT; sources drain and end when they see it. `Health` is what the flow reports about
itself; `serve_health` answers /healthz, /readyz and /metrics from a thread of its own (connectors/http/server.py).
"""

import gc
import json
import logging
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from connectors.http.server import HttpServer, health_app
from connectors.runtime import metrics
from protocol.encoding.safe_text import printable

STOP = threading.Event()
WHY_CHARACTERS = 1000
FIELD_CHARACTERS = 2000


class Stopping(Exception):
    """The process was told to stop while a step waited; nothing of its batch is done, and no position covers it."""


def stop_on_signals() -> None:
    """SIGTERM and SIGINT set `STOP`; a second one ends the process at once."""
    heard: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        heard.append(number)
        if len(heard) > 1:  # not STOP: the watchdog, which also hears of signals, may have set it already
            raise SystemExit(128 + number)
        STOP.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


@dataclass(slots=True)
class Health:
    """State of this process: idle, working, paused (why) or failing (why), and when it last made progress.

    `exported`: as metrics; work of a flow that another process does must not speak for the flow.
    """

    flow: str
    stalled_seconds: float = 300.0
    state: str = "starting"
    why: str = ""
    connected: bool = False
    progress_at: float = field(default_factory=time.monotonic)
    exported: bool = True
    hung: str = ""  # what the watchdog found, just before it ends the process

    def report(self, state: str, why: str = "") -> None:
        """Enter a state; a change is logged once."""
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
        """A position became durable just now."""
        self.progress_at = time.monotonic()
        metrics.LAST_CHECKPOINT.labels(self.flow).set_to_current_time()

    @property
    def ready(self) -> bool:
        """Connected, and not stalled while there is work."""
        stalled = self.state == "working" and time.monotonic() - self.progress_at > self.stalled_seconds
        return self.connected and not stalled and not self.hung

    def page(self) -> dict[str, object]:
        """The body of /healthz and /readyz."""
        state, why = ("hung", self.hung) if self.hung else (self.state, self.why)
        return {"flow": self.flow, "state": state, "why": why, "ready": self.ready}


def serve_health(health: Health, host: str, port: int, names: Collection[str] = ()) -> int:
    """Serve the health pages from a daemon thread; the port it got. Raises OSError when the port is taken.

    `names`: host names of this process besides IP addresses and names of this machine or cluster.
    """
    port = HttpServer(health_app(health, names), host, port, "health").start()
    metrics.STARTED.labels(health.flow).set_to_current_time()
    return port


def watch_disk(flow: str, folder: str, path: Path) -> None:
    """Export size and room of the disk that holds a path, or its nearest parent that is there; read when it is scraped."""

    def usage(figure: str) -> float:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        return float(getattr(shutil.disk_usage(there), figure))

    metrics.DISK_FREE.labels(flow, folder).set_function(lambda: usage("free"))
    metrics.DISK_SIZE.labels(flow, folder).set_function(lambda: usage("total"))


_PASSWORD = re.compile(r"(://[^\s:/@]*:)\S+@")
_hidden: set[str] = set()


def hide(*secrets: str) -> None:
    """These never appear in a log line of this process."""
    _hidden.update(form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1]))


def without_secrets(text: str) -> str:
    """The text with passwords of URLs, and what was hidden, blanked."""
    for secret in _hidden:
        text = text.replace(secret, "***")
    return _PASSWORD.sub(r"\1***@", text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(_fields(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, default=str))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={printable(str(value), FIELD_CHARACTERS)}" for key, value in _fields(record).items())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {record.name}: {record.getMessage()} {fields}".rstrip()
        return without_secrets(line + ("\n" + self.formatException(record.exc_info) if record.exc_info else ""))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def collect_rarely() -> None:
    """Tune the cycle collector for batches of thousands of small objects. Call when everything is imported.

    With its defaults such a batch triggers collections of everything that lives, for the few cycles that there are: a
    third of a producer's time (bench/).
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def log_to_stderr(style: str = "auto") -> None:
    """Structured logs on standard error: JSON in pods, readable on a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(_Text() if text else _Json())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
