"""The processes of `sluice up` and their status: the file `processes.json`, health pages, and metrics.

`Registry` is the file: `sluice up` writes it; other commands and tests read it. `check_process` reads the status of one process,
and does not raise if the process does not answer.
"""

import http.client
import json
import math
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from connectors.runtime.logs import without_secrets
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE

FILE = "processes.json"
ANSWER_SECONDS = 2.0
STREAM_KINDS = ("firehose", "labels")
"""The kinds whose metrics a status shows. A page of metrics costs a process several milliseconds."""
STARTING_SECONDS = 60.0  # a process that was just started does not answer yet
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its name (`index-1`), kind (`index`), pid (0: an operator stopped it), and HTTP port (0: no health page)."""

    name: str
    kind: str
    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The status of one process. If it does not answer, `state` is "starting" in its first minute, then "down"."""

    name: str
    kind: str
    pid: int
    port: int
    state: str
    why: str = ""
    ready: bool = False
    metrics: dict[str, dict[Labels, float]] = field(default_factory=dict, repr=False)

    def total(self, metric: str, **labels: Collection[str]) -> float | None:
        """Sum of a metric's samples, or of those with one of these values of a label; None if the process does not export it."""
        samples = self.metrics.get(metric)
        if not samples:
            return None
        return sum(
            value for given, value in samples.items() if all(dict(given)[name] in one for name, one in labels.items())
        )


@dataclass(frozen=True, slots=True)
class Registry:
    """The contents of processes.json: the processes, the addresses of log and database, and the mirrored network.

    `flows`: the names of all processes that are not servers, also of those that are being restarted.
    """

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
    shards: str = ""
    serve: str = ""
    flows: list[str] = field(default_factory=list)

    def write(self, data_dir: Path) -> None:
        """Replace the file atomically. Only its owner may read it: the database URL has a password."""
        draft = data_dir / f"{FILE}.draft"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(data_dir / FILE)


def addresses(settings: Settings, processes: Iterable[Process | ProcessStatus] = ()) -> dict[str, str]:
    """How people reach the mirror: `psql`, `kcat`, and of a running `sluice up` `page`, `stream` and `metrics`. Passwords are hidden."""
    folder, usual = settings.data_dir.absolute(), Path(Settings.model_fields["data_dir"].default).absolute()
    option = "" if folder in (usual, usual / "simulated") else f" --data-dir {shlex.quote(str(folder))}"
    secured = "" if settings.kafka_protocol == "plaintext" else f" -X security.protocol={settings.kafka_protocol}"
    found = {
        "psql": f"sluice psql{option}  ({without_secrets(settings.database)})",
        "kcat": f"kcat -b {settings.kafka_bootstrap}{secured} -C -t {settings.kafka_topic_prefix}{FIREHOSE_LIVE} -o -5 -e",
    }
    served = [process for process in processes if process.port and process.pid]
    for process in served:
        if process.kind == "control":
            found["page"] = f"http://127.0.0.1:{process.port}/"
        elif process.kind == "serve":
            found["stream"] = f"ws://{settings.serve_listen}/subscribe"
    if served:
        ports = ", ".join(f"{process.port} ({process.name})" for process in served)
        found["metrics"] = f"http://127.0.0.1:PORT/metrics of {ports}"
    return found


def registered(data_dir: Path) -> Registry | None:
    """The registry of a running `sluice up`; None if there is no file, or its `up` has ended."""
    try:
        page = json.loads((data_dir / FILE).read_text())
        found = Registry(**{**page, "processes": [Process(**row) for row in page["processes"]]})
        os.kill(found.up, 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found


def running_mirror(data_dir: Path) -> tuple[Path, Registry] | None:
    """The `sluice up` that runs in a data folder or mirrors the simulated network there: its own folder, and its registry."""
    folders = (data_dir, data_dir / "simulated")
    return next(((folder, found) for folder in folders if (found := registered(folder))), None)


def check_process(process: Process, *, with_metrics: bool = False) -> ProcessStatus:
    """Read the health page of a process, and its metrics if requested."""
    known = asdict(process)
    if not process.pid:
        return ProcessStatus(**known, state="stopped")
    if not process.port:
        return ProcessStatus(**known, state="running", ready=True)
    try:
        page = json.loads(request(process.port, "/readyz")[1])
        metrics = parse(request(process.port, "/metrics")[1].decode()) if with_metrics else {}
    except (OSError, ValueError) as err:
        state = "starting" if _age(process.pid) <= STARTING_SECONDS else "down"
        return ProcessStatus(**known, state=state, why=str(err))
    return ProcessStatus(
        **known,
        state=str(page.get("state", "")),
        why=str(page.get("why", "")),
        ready=bool(page.get("ready")),
        metrics=metrics,
    )


def check_processes(processes: Iterable[Process], metrics_of: Container[str] = ()) -> list[ProcessStatus]:
    """`check_process` for all of them in parallel; results in the same order. `metrics_of`: the kinds whose metrics are read."""
    listed = list(processes)
    with ThreadPoolExecutor(max(1, len(listed))) as pool:
        return list(pool.map(lambda process: check_process(process, with_metrics=process.kind in metrics_of), listed))


def parse(text: str) -> dict[str, dict[Labels, float]]:
    """Sample name → labels → value, of a metrics page. Raises ValueError if it is not one."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _age(pid: int) -> float:
    """Seconds that a process has run; infinite if it does not run."""
    try:
        started = int(
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        )  # field 22, ticks since the boot
    except OSError:
        return math.inf
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def request(port: int, path: str, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
    """Status and body of a page of a process on this machine. Raises OSError."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=seconds) as answer:
            return answer.status, bytes(answer.read())
    except urllib.error.HTTPError as err:  # /readyz answers 503 with the same page
        return err.code, err.read()
    except http.client.HTTPException as err:
        raise OSError(f"no HTTP response: {err!r}") from err
