"""What the processes say of themselves: `processes.json` of `sluice up`, their health pages and their metrics.

`Registry` is the file (who writes it: `up`; who reads it: `status`, tests). `look` asks one process; it never raises for
one that does not answer.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

FILE = "processes.json"
ANSWER_SECONDS = 2.0
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Process:
    """One running process: its name (`index-1`), kind (`index`), pid, and HTTP port (0: it has no health page)."""

    name: str
    kind: str
    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one process said of itself. `state` is "down" where it did not answer; then `age_seconds`: of its process, if any."""

    name: str
    kind: str
    pid: int
    port: int
    state: str
    why: str = ""
    ready: bool = False
    metrics: dict[str, dict[Labels, float]] = field(default_factory=dict, repr=False)
    age_seconds: float | None = None

    def total(self, metric: str) -> float | None:
        """Sum of a metric over its labels; None where the process does not have it."""
        samples = self.metrics.get(metric)
        return sum(samples.values()) if samples else None


@dataclass(frozen=True, slots=True)
class Registry:
    """The contents of processes.json: who runs, where log and database are, and what network it is."""

    up: int
    bootstrap: str
    database: str
    topic_prefix: str
    partitions: int
    replication: int
    processes: list[Process]
    relays: list[str] = field(default_factory=list)
    labelers: list[str] = field(default_factory=list)
    plc: str = ""
    dns: str = ""
    allow_private_hosts: bool = False

    def write(self, data_dir: Path) -> None:
        """Replace the file at once. Only its owner may read it: the database URL carries a password."""
        draft = data_dir / f"{FILE}.draft"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(data_dir / FILE)


def registered(data_dir: Path) -> Registry | None:
    """The file of a running `sluice up`; None where there is none, or its `up` has ended."""
    try:
        page = json.loads((data_dir / FILE).read_text())
        found = Registry(**{**page, "processes": [Process(**row) for row in page["processes"]]})
        os.kill(found.up, 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found


def look(process: Process, *, with_metrics: bool = False) -> Sighting:
    """Ask a process for its state, and its metrics if wanted."""
    told = asdict(process)
    if not process.port:
        return Sighting(**told, state="running", ready=True)
    try:
        page = json.loads(_get(process.port, "/readyz"))
        metrics = parse(_get(process.port, "/metrics").decode()) if with_metrics else {}
    except (OSError, ValueError, http.client.HTTPException) as err:
        return Sighting(**told, state="down", why=str(err), age_seconds=_age(process.pid))
    return Sighting(
        **told,
        state=str(page.get("state", "")),
        why=str(page.get("why", "")),
        ready=bool(page.get("ready")),
        metrics=metrics,
    )


def look_at_all(processes: Iterable[Process], *, with_metrics: bool = False) -> list[Sighting]:
    """Ask all processes at once, in their order."""
    listed = list(processes)
    with ThreadPoolExecutor(max(1, len(listed))) as pool:
        return list(pool.map(lambda process: look(process, with_metrics=with_metrics), listed))


def parse(text: str) -> dict[str, dict[Labels, float]]:
    """Sample name → labels → value, of a metrics page. Raises ValueError on anything else."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _age(pid: int) -> float | None:
    """How long a process has run; None where there is none."""
    try:
        return max(0.0, time.time() - Path(f"/proc/{pid}").stat().st_mtime)
    except OSError:
        return None


def _get(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as err:  # 503 of /readyz carries the page as well
        if err.code != 503:
            raise
        return err.read()
