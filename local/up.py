"""`sluice up`: everything on this machine. `up(settings, options) -> exit code`.

Embeds what it is not given, applies migrations and topics, starts one process per flow (and N for backfill and index),
shows progress, and drains on Ctrl-C or SIGTERM: sources first, then backfill, index and control, at last the servers.
Raises OperatorError and its kin before anything runs that could be left behind.
"""

import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime.errors import one_line
from connectors.runtime.stop import STOP, stop_on_signals
from control.process_status import FILE, Registry, look_at_all
from control.status import Collector, Status
from local.embedded.guarded_process import free_port, port_is_free
from local.embedded_servers import Embedded
from local.preflight import check_embeddable, check_given, check_hosts
from local.progress import Progress, rated
from local.run import prepare
from local.supervisor import Command, Supervisor
from local.terminal import foreground
from local.until_synced import Synced
from schemas.errors import OperatorError
from schemas.settings import Settings, variables

TICK_SECONDS = 0.1
LOOK_SECONDS = 0.5
PROGRESS_SECONDS = 1.0
SIMULATOR_SECONDS = 60.0
FIRST_LOOK_SECONDS = 30.0
SESSION_SECONDS = 10.0
"""Session timeout of consumer groups: on one machine a member that is gone this long was killed."""
DRAIN_ORDER = (("list-repos", "firehose", "labels"), ("backfill",), ("index",), ("control",), ("simulator",))
SIMULATED = ("--repos", "300", "--records-per-repo", "30", "--writer-rate", "20", "--churn", "0.02")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beyond the settings."""

    simulate: bool = False
    until_synced: bool = False
    workers: int = 1


def up(settings: Settings, options: Options) -> int:
    """Run until told to stop, or until synced. Returns the exit code."""
    if not settings.relays and not options.simulate:
        raise OperatorError(
            "there is no relay to mirror: give --relay https://…, or --simulate for a simulated network"
        )
    if options.simulate:
        # such a network ends with its process, so its mirror begins anew each time, in a folder of its own
        home = settings.data_dir / "simulated"
        settings = settings.model_copy(update={"data_dir": home, "allow_private_hosts": True})
    check_hosts(settings)
    if settings.http_port and not port_is_free(settings.http_port):
        raise OperatorError(
            f"SLUICE_HTTP_PORT: port {settings.http_port} is taken; choose another, or 0 for a free one"
        )
    check_given(settings)
    check_embeddable(settings)
    stop_on_signals()
    with foreground(), only_one(settings.data_dir) as data_dir:
        if options.simulate:
            for name in ("log", "database"):
                shutil.rmtree(data_dir / name, ignore_errors=True)
        return _Up(settings.model_copy(update={"data_dir": data_dir}), options).run()


@contextmanager
def only_one(folder: Path) -> Iterator[Path]:
    """The data folder, made and locked. Raises OperatorError when another `up` has it or it cannot be made."""
    data_dir = folder.expanduser().absolute()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise OperatorError(f"SLUICE_DATA_DIR: {data_dir} cannot be used ({err.strerror}); choose another") from err
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(lock)
        raise OperatorError(f"SLUICE_DATA_DIR: `sluice up` runs in {data_dir} already; choose another") from err
    try:
        yield data_dir
    finally:
        (data_dir / FILE).unlink(missing_ok=True)
        os.close(lock)


class _Looks:
    """Looks at the mirror from a thread, so that a slow database never keeps the supervisor from its children."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._collector = Collector(settings)
        self._supervisor = supervisor
        self._thread = threading.Thread(target=self._run, name="looks", daemon=True)
        self._ended = threading.Event()
        self._fresh: Status | None = None
        self._died: BaseException | None = None
        self.failure = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10.0)

    def take(self) -> Status | None:
        """The newest look, once. Raises what ended the thread."""
        if self._died is not None:
            raise self._died
        fresh, self._fresh = self._fresh, None
        return fresh

    def once(self) -> Status:
        """A look now. Raises psycopg.Error and LogUnavailable."""
        processes = [process for process in self._supervisor.processes if process.port]
        return self._collector.collect(look_at_all(processes, with_metrics=True))

    def first(self) -> Status:
        """The first look that succeeds within `FIRST_LOOK_SECONDS`. Raises what the last one raised."""
        deadline = time.monotonic() + FIRST_LOOK_SECONDS
        while True:
            try:
                return self.once()
            except (psycopg.Error, LogUnavailable):
                if time.monotonic() > deadline or STOP.wait(TICK_SECONDS):
                    raise

    def exact(self) -> tuple[int, int]:
        """Exact numbers of records and labels."""
        return self._collector.exact()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._fresh, self.failure = self.once(), ""
            except (psycopg.Error, LogUnavailable) as err:
                self.failure = one_line(err)
            except BaseException as err:  # a thread must not die in silence (B8)
                self._died = err
                return


class _Up:
    """One run of `up` in its own data folder."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._settings = settings
        self._options = options
        self._progress = Progress()
        self._supervisor = Supervisor(settings.data_dir / "logs", self._progress.note)
        self._embedded = Embedded(settings, self._progress.note)
        self._simulated: dict[str, object] | None = None

    def run(self) -> int:
        with self._progress:
            try:
                self._begin()
                totals = self._watch() if not STOP.is_set() else None
            except BaseException:
                self._supervisor.kill()
                self._embedded.stop()
                raise
            self._end()
        if totals is not None:
            sys.stdout.write(json.dumps(totals | {"peak_rss_mb": self._peaks()}) + "\n")
            sys.stdout.flush()
            return 0
        return 1 if self._options.until_synced and not STOP.is_set() else 0

    def _begin(self) -> None:
        if self._options.simulate:
            self._start_simulator()
        found: dict[str, object] = {**self._embedded.start()}
        if self._options.simulate:
            found |= self._await_simulator()
        self._settings = self._settings.model_copy(update=found)
        for name in prepare(self._settings):
            self._progress.note("database", f"applied migration {name}")
        for command in commands(self._settings, self._options.workers):
            self._supervisor.add(command)
        self._register()
        self._progress.note("sluice", f"mirrors {', '.join(self._settings.relays)} into {self._settings.data_dir}")
        port = next(process.port for process in self._supervisor.processes if process.kind == "control")
        self._progress.note("sluice", f"status page: http://127.0.0.1:{port}/")

    def _start_simulator(self) -> None:
        def heed(line: str) -> None:
            if self._simulated is None and line.startswith("{"):
                self._simulated = json.loads(line)

        argv = (*sluice("simulate"), *SIMULATED)
        self._supervisor.add(Command("simulator", "simulator", argv, {}, on_line=heed))

    def _await_simulator(self) -> dict[str, object]:
        child = self._supervisor.children[0]
        deadline = time.monotonic() + SIMULATOR_SECONDS
        while self._simulated is None and child.running and time.monotonic() < deadline and not STOP.is_set():
            STOP.wait(TICK_SECONDS)
        urls = self._simulated
        if urls is None:
            raise OperatorError(f"the simulated network did not start: {child.last_words or 'see its log'}")
        return {"plc": urls["plc"], "handle_dns": urls["dns"], "relays": urls["relays"], "labelers": urls["labelers"]}

    def _register(self) -> None:
        Registry(
            up=os.getpid(),
            bootstrap=self._settings.kafka_bootstrap,
            database=self._settings.database,
            topic_prefix=self._settings.kafka_topic_prefix,
            partitions=self._settings.kafka_partitions,
            replication=self._settings.kafka_replication,
            processes=[*self._embedded.processes, *self._supervisor.processes],
            relays=self._settings.relays,
            labelers=self._settings.labelers,
            plc=self._settings.plc,
            dns=self._settings.handle_dns,
            allow_private_hosts=self._settings.allow_private_hosts,
        ).write(self._settings.data_dir)

    def _watch(self) -> dict[str, object] | None:
        """Until STOP (None) or synced (the totals)."""
        looks = _Looks(self._settings, self._supervisor)
        started = time.monotonic()
        first = looks.first()
        before = looks.exact()[0] if self._options.until_synced else 0
        shown, shown_at, told = first, started, ""
        synced = Synced(self._settings) if self._options.until_synced else None
        looks.start()
        try:
            while not STOP.wait(TICK_SECONDS):
                revived, restarted = self._embedded.tick(), self._supervisor.tick()
                if revived or restarted:
                    self._register()
                if looks.failure != told:
                    told = looks.failure
                    self._progress.note("status", told or "database and broker answer again")
                status = looks.take()
                if status is None:
                    continue
                if time.monotonic() - shown_at >= PROGRESS_SECONDS:
                    status = rated(shown, status, time.monotonic() - shown_at)
                    self._progress.show(status, self._supervisor.restarts + self._embedded.restarts)
                    shown, shown_at = status, time.monotonic()
                if synced is not None and synced.look(status):
                    seconds = time.monotonic() - started
                    return totals(status, looks.exact(), first, before, seconds)
            return None
        finally:
            looks.stop()

    def _end(self) -> None:
        self._progress.note("sluice", "stopping")
        for kinds in DRAIN_ORDER:
            self._supervisor.drain(kinds)
        self._embedded.stop()
        self._progress.note("sluice", "stopped")

    def _peaks(self) -> dict[str, float]:
        peaks = self._supervisor.peaks | self._embedded.peaks
        return {kind: round(peak / 1e6, 1) for kind, peak in sorted(peaks.items())}


def totals(status: Status, exact: tuple[int, int], first: Status, before: int, seconds: float) -> dict[str, object]:
    """The JSON line of `--until-synced`. Rates count what this run added to the `before` exactly counted records."""
    records, labels = exact
    return {
        "repos": status.repos,
        "records": records,
        "labels": labels,
        "seconds": round(seconds, 2),
        "records_per_second": round(max(0, records - before) / seconds, 1),
        "events": status.events - first.events,
        "dead_letters": sum(status.dead_letters.values()),
    }


def sluice(*arguments: str) -> tuple[str, ...]:
    """A command line of ours that ends when this process ends. -P: the working folder's modules are not ours."""
    return (sys.executable, "-P", "-m", "cli", arguments[0], "--parent", str(os.getpid()), *arguments[1:])


def commands(settings: Settings, workers: int) -> list[Command]:
    """The processes of `up`, readers before writers."""
    kinds = ["control", *["index"] * workers, *["backfill"] * workers]
    kinds += [*(["labels"] if settings.labelers else []), "firehose", "list-repos"]
    found: list[Command] = []
    ports: list[int] = [settings.http_port] if settings.http_port else []
    for kind in kinds:
        number = sum(command.kind == kind for command in found) + 1
        name = f"{kind}-{number}" if workers > 1 and kind in ("index", "backfill") else kind
        port = settings.http_port if kind == "control" and settings.http_port else free_port(ports)
        ports.append(port)
        found.append(Command(name, kind, sluice("run", kind), environment(settings, port), port))
    return found


def environment(settings: Settings, port: int) -> dict[str, str]:
    """The settings as variables, with this process's own port."""
    session = {"transport_session_seconds": SESSION_SECONDS} | settings.tuning.model_dump(exclude_unset=True)
    return variables(settings.replaced(http_port=port, **session))
