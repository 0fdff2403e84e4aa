"""A flow in a process of its own, as in a pod: started, watched over its health page, killed, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from connectors.kafka.client import transient
from schemas.settings import Settings, variables
from tests.support import zygote

PER_REPO = ("repo_backfill", "repo_resync", "firehose_live", "firehose_backfill", "label_live", "dead_letter")
WAIT_SECONDS = 120.0
TAIL = 3000  # characters of a log in a failure's message

_RUN = """
import sys
from datetime import timedelta
from bytewax.run import cli_main
from connectors.runtime.health import Health, serve_health
from connectors.runtime.logs import log_to_stderr
from connectors.runtime.stop import stop_on_signals
from local.dataflows import dataflow
from schemas.settings import load
settings, name = load(), sys.argv[1]
log_to_stderr("json")
stop_on_signals()
health = Health(name)
print(serve_health(health, "127.0.0.1", 0), flush=True)
flow = dataflow(name.replace("_", "-"), settings, health)
cli_main(flow, epoch_interval=timedelta(seconds=settings.tuning.epoch_seconds))
"""


class FlowProcess:
    """A process around `flows.<name>.flow`, with settings from the environment."""

    def __init__(self, name: str, settings: Settings, log_file: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
        environment |= variables(settings)
        self.log_file = log_file
        with log_file.open("ab") as errors:
            self.process = zygote.spawn(
                ["code", _RUN, name], stdout=subprocess.PIPE, stderr=errors.fileno(), env=environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{name} did not start: {_tail(log_file)}"
        self.page = f"http://127.0.0.1:{line.strip()}"

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.page + "/readyz", timeout=WAIT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        with urllib.request.urlopen(self.page + "/metrics", timeout=WAIT_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        hits = [line for line in lines if line.split("{")[0].split(" ")[0] == name and all(w in line for w in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in hits)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._reap(WAIT_SECONDS)

    def terminate(self, seconds: float = WAIT_SECONDS) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._reap(seconds)

    def _reap(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def story(self) -> str:
        """Whether it runs, or its exit code, and the end of its log."""
        code = self.process.poll()
        return f"{self.log_file.name}: {'runs' if code is None else f'exit code {code}'}\n{_tail(self.log_file)}"


def is_running(pid: int) -> bool:
    """False too for a process that nobody has waited for yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running(Protocol):
    """A flow, in a process of its own or not."""

    @property
    def running(self) -> bool: ...

    def story(self) -> str:
        """What explains that it does not do what it should."""
        ...


def wait_until(
    condition: Callable[[], Any],
    seconds: float = WAIT_SECONDS,
    what: str | Callable[[], str] = "",
    of: Sequence[Running] = (),
) -> Any:
    """Poll until the condition holds; its value. Fails after `seconds`, and at once when one of `of` has ended."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        ended = not all(process.running for process in of)
        if ended or time.monotonic() >= deadline:
            why = "a flow ended" if ended else f"not within {seconds} s"
            stories = (process.story() for process in of)
            raise AssertionError("\n".join([f"{why}: {(what() if callable(what) else what) or condition}", *stories]))
        time.sleep(0.05)


def _tail(path: Path) -> str:
    return path.read_text()[-TAIL:]


def suspend(pid: int) -> None:
    """SIGSTOP; returns when every thread of the process has stopped or ended. Before, it still answers."""
    os.kill(pid, signal.SIGSTOP)
    threads = [Path(f"/proc/{pid}/task/{one}/stat") for one in os.listdir(f"/proc/{pid}/task")]
    wait_until(lambda: all(_state(one) in ("T", "Z", "") for one in threads))


def _state(stat: Path) -> str:
    """The letter of a thread's state; empty if it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def create_topics(bootstrap: str, prefix: str, partitions: int = 4, **config: Any) -> list[str]:
    """All topics of the pipeline under a prefix; their full names."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    settings = {"max.message.bytes": str(16 * 1024 * 1024)} | {k.replace("_", "."): str(v) for k, v in config.items()}
    names = [prefix + name for name in PER_REPO]
    topics = [NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings) for name in names]
    for made in admin.create_topics(topics, operation_timeout=WAIT_SECONDS).values():
        made.result(WAIT_SECONDS)
    return names


def read_topic(bootstrap: str, topic: str, seconds: float = WAIT_SECONDS) -> list[Any]:
    """All messages of a topic, now, per partition in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "test-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        parts = list(consumer.list_topics(topic, timeout=WAIT_SECONDS).topics[topic].partitions)
        ends = {part: watermarks(consumer, TopicPartition(topic, part)) for part in parts}
        left = {part: high for part, (low, high) in ends.items() if high > low}
        consumer.assign([TopicPartition(topic, part, ends[part][0]) for part in left])
        found = []
        deadline = time.monotonic() + seconds
        while left:
            assert time.monotonic() < deadline, f"{topic}: {left} not reached"
            for message in consumer.consume(5000, 0.2):
                if message.error() is None:
                    found.append(message)
                    if message.offset() + 1 >= left.get(message.partition(), 1 << 62):
                        del left[message.partition()]
        return found
    finally:
        consumer.close()


def watermarks(consumer: Consumer, part: TopicPartition) -> tuple[int, int]:
    """First and next offset of a partition; waits for its leader, which a new topic on a busy broker does not have yet."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            found: tuple[int, int] = consumer.get_watermark_offsets(part, timeout=WAIT_SECONDS)
        except KafkaException as err:
            if time.monotonic() >= deadline or not transient(err.args[0]):
                raise
            time.sleep(0.1)
        else:
            return found


def group_positions(bootstrap: str, group: str, topic: str) -> dict[int, int]:
    """Partition → position of a group in a topic, where it has one. (The admin client's call for this can crash.)"""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    try:
        parts = consumer.list_topics(topic, timeout=WAIT_SECONDS).topics[topic].partitions
        found = consumer.committed([TopicPartition(topic, part) for part in parts], timeout=WAIT_SECONDS)
        return {part.partition: part.offset for part in found if part.offset >= 0}
    finally:
        consumer.close()
