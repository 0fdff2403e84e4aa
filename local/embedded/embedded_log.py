"""An embedded Apache Kafka (KRaft, one node) on 127.0.0.1, with its data in a folder.

It starts in seconds, survives kill -9, keeps its address over a restart, and ends with the Python process that started it. It needs a
Java 17+ runtime, and Maven for the first start (`kafka_jars`). If it cannot start, `EmbeddedLogUnavailable` is one line that names the
reason and the ways to get a log.

It listens on loopback only, without authentication: every user of this machine can read and write it.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from local.embedded.embedded_server import EmbeddedServer
from local.embedded.guarded_process import (
    LOOPBACK,
    DataFolderBusy,
    GuardedProcess,
    lock_folder,
    port_is_free,
    remembered_ports,
)
from local.embedded.kafka_jars import EmbeddedLogUnavailable, fetch_jars, find_java
from local.embedded.kafka_shortcuts import META, ClassArchive, format_storage, new_id
from schemas.topics import MAX_MESSAGE_BYTES

__all__ = ["EmbeddedLog", "EmbeddedLogUnavailable"]

LOGGING = Path(__file__).with_name("embedded_log.log4j2.properties")
WAKE_SECONDS = 5.0
START_SECONDS = 300.0  # a busy machine, or recovery after a kill, takes minutes
BUSY_SECONDS = 30.0
STOP_SECONDS = 15.0
ARCHIVE_SECONDS = 45.0  # more, once, for a broker that writes the archive of its classes at its end


@dataclass(frozen=True, slots=True)
class LogListener:
    """`advertised`: the port that its clients are told, 0: its own. `storage_options`: of Kafka's storage tool."""

    protocol: str = "PLAINTEXT"
    advertised: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    storage_options: Sequence[str] = ()


class EmbeddedLog(EmbeddedServer):
    """One broker over `data_dir`. `stop` closes its files, and kills it after `STOP_SECONDS`.

    `port`: the broker's port (default: a free one, remembered in `data_dir`). `jars`: folder with `libs/*.jar`
    (default: the cache). `heap_mb`: Java heap. `listeners`: more listeners, by name; for tests of clients.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        jars: Path | None = None,
        heap_mb: int = 512,
        listeners: Mapping[str, LogListener] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(data_dir)
        self._say = say
        self._wanted_port = port
        self._jars = jars
        self._heap_mb = heap_mb
        self._listeners = listeners or {}
        self._ports: dict[str, int] = {}
        self._archive: ClassArchive | None = None

    @property
    def bootstrap(self) -> str:
        """ "127.0.0.1:PORT". Known once it was started."""
        return f"{LOOPBACK}:{self._ports['broker']}"

    def port_of(self, listener: str) -> int:
        """The port of one of `listeners`. Known once it was started."""
        return self._ports[listener]

    def start(self) -> str:
        """Starts the broker and returns its bootstrap address once it answers. Raises EmbeddedLogUnavailable."""
        if self.running:
            return self.bootstrap
        java = find_java()
        jars = fetch_jars(self._jars, self._say)
        home = jars[0].parent.parent
        command = [java, *self._java_options(), "-cp", os.pathsep.join(str(jar) for jar in jars)]
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(self.data_dir, BUSY_SECONDS)
        except (OSError, DataFolderBusy) as err:
            raise EmbeddedLogUnavailable(str(err), remedy="choose another --data-dir or stop what uses it") from err
        try:
            self._choose_ports()
            settings = self._write_settings()
            if not (self.data_dir / "data" / META).exists():
                self._format(home, [*command, "kafka.tools.StorageTool", "format", "-c", str(settings)])
            self._archive = ClassArchive(home, java, JVM_OPTIONS)
            argv = [java, *self._archive.options(), *command[1:], "kafka.Kafka", str(settings)]
        except BaseException:
            os.close(lock)
            raise
        self._process = self._spawn(argv, lock, STOP_SECONDS + (ARCHIVE_SECONDS if self._archive.writes else 0))
        self._await_answer()
        return self.bootstrap

    def stop(self) -> None:
        """Close its files and stop it. No-op if it does not run."""
        super().stop()
        if self._archive is not None and self._process is not None:
            self._archive.collect(ended_cleanly=self._process.exit_code in CLEAN_EXITS)

    def _format(self, home: Path, tool: list[str]) -> None:
        def run_tool(cluster: str, *more: str) -> None:
            self._run_to_end([*tool, "-t", cluster, *more])

        options = [option for one in self._listeners.values() for option in one.storage_options]
        if options:
            run_tool(new_id(), *options)
        else:
            format_storage(home, self.data_dir / "data", run_tool)

    def _java_options(self) -> list[str]:
        return [
            f"-Xmx{self._heap_mb}m",
            *JVM_OPTIONS,
            f"-Dlog4j2.configurationFile={LOGGING.as_uri()}",
            f"-Dsluice.log={self.data_dir / 'kafka.log'}",
        ]

    def _choose_ports(self) -> None:
        if self._wanted_port is not None and not port_is_free(self._wanted_port):
            raise EmbeddedLogUnavailable(
                f"port {self._wanted_port} on {LOOPBACK} is occupied", remedy="free it or choose another port"
            )
        self._ports = remembered_ports(
            self.data_dir, ["broker", "controller", *self._listeners], {"broker": self._wanted_port}
        )

    def _write_settings(self) -> Path:
        more = self._listeners
        listeners = {"PLAINTEXT": self._ports["broker"]} | {name: self._ports[name] for name in more}
        advertised = listeners | {name: one.advertised for name, one in more.items() if one.advertised}
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        protocols |= {name: one.protocol for name, one in more.items()}
        listeners["CONTROLLER"] = self._ports["controller"]
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{self._ports['controller']}",
            "listeners": _spell(listeners),
            "advertised.listeners": _spell(advertised),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir / "data"),
            **BROKER_SETTINGS,
        }
        for one in more.values():
            settings |= one.settings
        path = self.data_dir / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return path

    def _spawn(self, argv: list[str], lock: int, stop_seconds: float = STOP_SECONDS) -> GuardedProcess:
        return GuardedProcess.spawn(
            argv,
            log_path=self.data_dir / "java.log",
            lock=lock,
            cwd=self.data_dir,
            env={key: value for key, value in os.environ.items() if key not in JAVA_VARIABLES},
            stop_seconds=stop_seconds,
        )

    def _run_to_end(self, argv: list[str]) -> None:
        process = self._spawn(argv, os.open(os.devnull, os.O_RDONLY))
        if not process.wait(START_SECONDS) or not (self.data_dir / "data" / META).exists():
            process.kill()
            raise EmbeddedLogUnavailable(f"its storage cannot be prepared ({process.last_words()})")

    def _await_answer(self) -> None:
        assert self._process is not None  # noqa: S101 - for the type checker
        deadline = time.monotonic() + START_SECONDS
        while port_is_free(self._ports["broker"]) and time.monotonic() < deadline and self._process.running:
            time.sleep(0.02)
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while self._process.running and time.monotonic() < deadline:
            try:
                if client.list_topics(timeout=1).brokers:
                    _wake_coordinator(client)
                    return
            except KafkaException:
                continue  # not up yet; list_topics has waited
        ended = not self._process.running
        self._process.kill()
        what = "it ended while starting" if ended else f"it did not answer within {START_SECONDS:.0f} s"
        raise EmbeddedLogUnavailable(f"{what} ({self._reason()}; see {self.data_dir / 'kafka.log'})")

    def _reason(self) -> str:
        log = self.data_dir / "kafka.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        said = [line for line in lines if " ERROR " in line or " FATAL " in line]
        return said[-1] if said else (self._process.last_words() if self._process else "no output")


def _wake_coordinator(client: AdminClient) -> None:
    """Make the broker create its offsets topic now; otherwise its first consumer group would wait 3 s for it."""
    for described in client.describe_consumer_groups(["nobody"], request_timeout=WAKE_SECONDS).values():
        with suppress(KafkaException, TimeoutError):  # the answer is that the topic is being created
            described.result(WAKE_SECONDS)


def _spell(listeners: dict[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in listeners.items())


# removed from the environment: the JVM would add their options and print a notice
JAVA_VARIABLES = frozenset({"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"})

JVM_OPTIONS = [
    "-Xms32m",
    "-XX:NewSize=16m",
    "-XX:+UseSerialGC",  # one core's worth of broker: smaller and no slower than G1 here
    "-XX:TieredStopAtLevel=1",
    # the class archive at its own address: to relocate it would write to all of its 50 MB
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:ArchiveRelocationMode=0",
    # the heap grows by little and shrinks after a backfill
    "-XX:MaxNewSize=32m",
    "-XX:MinHeapFreeRatio=10",
    "-XX:MaxHeapFreeRatio=30",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # no file under the temporary directory that a kill leaves behind
    "-Djava.awt.headless=true",
]
CLEAN_EXITS = (0, 128 + signal.SIGTERM)

BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
    # one node: no copies, and few partitions for the bookkeeping topics, each of which costs files and start time
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "2",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # a group of few members that start together gains nothing from waiting for more
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # retention works on whole, closed segments; small ones and frequent checks keep the disk bounded
    "log.segment.bytes": str(256 * 1024 * 1024),
    "log.index.size.max.bytes": str(4 * 1024 * 1024),
    "log.retention.check.interval.ms": "2000",
    "log.initial.task.delay.ms": "1000",
    "log.segment.delete.delay.ms": "10000",
    # Kafka reserves 128 MiB of heap for compacting, of which only the small offsets topic has need
    "log.cleaner.dedupe.buffer.size": str(2 * 1024 * 1024),
    # few threads: each wakes several times a second at rest, and more of them write and read no faster here
    "num.network.threads": "1",
    "num.io.threads": "2",
    "background.threads": "2",
    "group.coordinator.threads": "1",
    "metadata.max.idle.interval.ms": "0",  # no record in the metadata's log, twice a second, that only says "alive"
    "num.recovery.threads.per.data.dir": "2",
    # a broker that was killed can register again only when its former session has ended
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # answered requests leave the memory of the waiting ones soon; the default keeps a thousand
    "fetch.purgatory.purge.interval.requests": "50",
    "producer.purgatory.purge.interval.requests": "50",
    "metric.reporters": "",  # no JMX
}
