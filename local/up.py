"""`sluice up`: the whole mirror on one machine. `up(settings, options) -> exit code`.

It embeds the servers that are not given, applies migrations and topics, starts one process per flow (several for backfill and
index), shows progress, and drains on Ctrl-C or SIGTERM: sources first, then backfill, index and control, at last the servers.
The processes are forks of one interpreter (`local.forks.fork_server`). Operator errors are raised before anything starts that could
be left behind.
"""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from connectors.runtime.stop import STOP, stop_on_signals
from control.process_status import Process, Registry, addresses
from control.status import MirrorStatus
from local.children.liveness import Liveness
from local.children.stop_requests import StopRequests
from local.children.supervisor import Command, Supervisor
from local.commands import SIMULATOR, commands, listening, preloaded, sluice
from local.data_folder import locked_data_folder
from local.embedded.guarded_process import port_is_free
from local.embedded_servers import START_SECONDS, EmbeddedServers
from local.forks.forked_process import AVAILABLE, ForkServer
from local.preflight import check_embeddable, check_given, check_hosts
from local.prepare import prepare
from local.progress_view import ProgressView
from local.status_poller import StatusPoller
from local.terminal import foreground
from local.until_synced import SyncCheck
from local.view.live_view import Part
from schemas.errors import OperatorError
from schemas.flows import PROCESSES
from schemas.settings import Settings

TICK_SECONDS = 0.5
STARTING_SECONDS = 0.02  # between looks at a simulator that starts
PROGRESS_SECONDS = 1.0
SIMULATOR_SECONDS = 60.0
DRAIN_ORDER = (("list-repos", "firehose", "labels"), ("backfill",), ("index",), ("control", "serve"), ("simulator",))
SIMULATED = ("--repos", "300", "--records-per-repo", "30", "--writer-rate", "20", "--churn", "0.02")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of the command that are not settings."""

    simulate: bool = False
    until_synced: bool = False
    workers: int = 1


def up(settings: Settings, options: UpOptions) -> int:
    """Run until stopped, or until synced. Returns the exit code. Raises OperatorError, LogUnavailable."""
    if not settings.relays and not options.simulate:
        raise OperatorError(
            "there is no relay to mirror: give --relay https://…, or --simulate for a simulated network"
        )
    if options.simulate:
        # the simulated network ends with its process, so its mirror starts over each time, in a folder of its own
        home = settings.data_dir / "simulated"
        settings = settings.model_copy(update={"data_dir": home, "allow_private_hosts": True})
    check_hosts(settings)
    if settings.http_port and not port_is_free(settings.http_port):
        raise OperatorError(
            f"SLUICE_HTTP_PORT: port {settings.http_port} is taken; choose another, or 0 for a free one"
        )
    check_embeddable(settings)
    forks = ForkServer(preloaded(simulate=options.simulate)) if AVAILABLE else None
    if forks is not None:
        forks.start(fork=True)  # first: this process has no threads yet
    check_given(settings)
    stop_on_signals()
    with foreground(), locked_data_folder(settings.data_dir) as data_dir:
        if options.simulate:
            for name in ("log", "database"):
                shutil.rmtree(data_dir / name, ignore_errors=True)
        return _Up(settings.model_copy(update={"data_dir": data_dir}), options, forks).run()


class _Up:
    """One run of `up` in its own data folder."""

    def __init__(self, settings: Settings, options: UpOptions, forks: ForkServer | None) -> None:
        self._settings = settings
        self._options = options
        self._progress = ProgressView()
        stopped = StopRequests(settings.data_dir)
        stopped.clear()
        self._liveness = Liveness(lambda: self._supervisor.processes)
        self._supervisor = Supervisor(
            settings.data_dir / "logs",
            self._progress.note,
            forks,
            stopped=stopped.names,
            failed=self._liveness.failed,
        )
        self._embedded = EmbeddedServers(settings, self._progress.note)
        self._simulated: dict[str, object] | None = None
        self._registered: list[Process] = []

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
        found: dict[str, object] = {}
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            servers = pool.submit(self._embedded.start)
            if self._options.simulate:
                self._start_simulator()
                found |= self._await_simulator()
            found |= servers.result(START_SECONDS)
        self._settings = self._settings.model_copy(update=found)
        applied = prepare(self._settings)  # a wrong setting is one line, and the first
        self._progress.address("data", str(self._settings.data_dir))
        if applied:
            self._progress.note("database", f"applied {len(applied)} migrations, the last is {applied[-1]}")
        self._settings = self._settings.replaced(serve_listen=listening(self._settings.serve_listen))
        for command in commands(self._settings, self._options.workers):
            self._supervisor.add(command)
        self._register()
        self._progress.note(
            "sluice", f"mirrors {', '.join(self._settings.relays)}; all started in {time.monotonic() - began:.1f} s"
        )
        for name, what in addresses(self._settings, self._supervisor.processes).items():
            self._progress.address(name, what)

    def _start_simulator(self) -> None:
        def read_urls(line: str) -> None:
            if self._simulated is None and line.startswith("{"):
                self._simulated = json.loads(line)

        argv = (*sluice("simulate"), *SIMULATED)
        self._supervisor.add(Command("simulator", "simulator", argv, {}, on_line=read_urls, module=SIMULATOR))

    def _await_simulator(self) -> dict[str, object]:
        child = self._supervisor.children[0]
        deadline = time.monotonic() + SIMULATOR_SECONDS
        while self._simulated is None and child.running and time.monotonic() < deadline and not STOP.is_set():
            STOP.wait(STARTING_SECONDS)
        urls = self._simulated
        if urls is None:
            raise OperatorError(f"the simulated network did not start: {child.last_words or 'see its log'}")
        return {"plc": urls["plc"], "handle_dns": urls["dns"], "relays": urls["relays"], "labelers": urls["labelers"]}

    def _register(self) -> None:
        """Write the registry, if a process has started, ended or been stopped."""
        processes = [*self._embedded.processes, *self._supervisor.processes]
        if processes == self._registered:
            return
        self._registered = processes
        Registry(
            up=os.getpid(),
            bootstrap=self._settings.kafka_bootstrap,
            database=self._settings.database,
            topic_prefix=self._settings.kafka_topic_prefix,
            partitions=self._settings.kafka_partitions,
            replication=self._settings.kafka_replication,
            processes=processes,
            relays=self._settings.relays,
            labelers=self._settings.labelers,
            plc=self._settings.plc,
            dns=self._settings.handle_dns,
            allow_private_hosts=self._settings.allow_private_hosts,
            shards=self._settings.shards,
            serve=self._settings.serve_listen,
            flows=[child.command.name for child in self._supervisor.children if child.command.kind in PROCESSES],
        ).write(self._settings.data_dir)

    def _watch(self) -> dict[str, object] | None:
        """Run until STOP, then return None; or until synced, then return the totals."""
        poller = StatusPoller(self._settings, self._supervisor, adaptive=not self._options.until_synced)
        started = time.monotonic()
        first = poller.first()
        before = poller.exact()[0] if self._options.until_synced else 0
        shown_at, failure = started, ""
        self._progress.show(first, self._parts())
        synced = SyncCheck(self._settings) if self._options.until_synced else None
        poller.start()
        self._liveness.start()
        try:
            while not STOP.wait(TICK_SECONDS):
                self._embedded.tick()
                self._supervisor.tick()
                self._register()
                if poller.failure != failure:
                    failure = poller.failure
                    self._progress.note("status", failure or "database and broker answer again")
                status = poller.take()
                if status is None:
                    continue
                if time.monotonic() - shown_at >= PROGRESS_SECONDS:
                    self._progress.show(status, self._parts())
                    shown_at = time.monotonic()
                if synced is not None and synced.check(status):
                    seconds = time.monotonic() - started
                    return totals(status, poller.exact(), first, before, seconds)
            return None
        finally:
            self._liveness.stop()
            poller.stop()

    def _parts(self) -> list[Part]:
        return [*self._supervisor.parts, *self._embedded.parts]

    def _end(self) -> None:
        self._progress.note("sluice", "stopping")
        for kinds in DRAIN_ORDER:
            self._supervisor.drain(kinds)
        self._embedded.stop()
        self._progress.note("sluice", "stopped")

    def _peaks(self) -> dict[str, float]:
        peaks = self._supervisor.peaks | self._embedded.peaks
        return {kind: round(peak / 1e6, 1) for kind, peak in sorted(peaks.items())}


def totals(
    status: MirrorStatus, exact: tuple[int, int], first: MirrorStatus, before: int, seconds: float
) -> dict[str, object]:
    """The JSON line of `--until-synced`. The rate covers the records that this run added to the `before` that existed."""
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
