"""The cost of each kind of group membership: how long a partition is unread when members start, stop, restart or crash.

    .venv/bin/python -m bench.membership [--session 6] [--rounds 2] [--only "range, static"]

Members are processes that only consume two topics, so that only the group is measured: `range` with dynamic and with static
members, and `cooperative-sticky`. Every partition gets a message each 50 ms. Prints a line per kind with the longest stall per
event in seconds (of all rounds), and `split`: the highest number of partitions k whose two topics were read by different members
in a stable group. A repo needs both partitions k at one member, so a kind that splits is unusable.
"""

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import NewTopic

from bench.support.stack import Stack, report, stack, until
from connectors.kafka import client as broker
from connectors.kafka.log import admin
from schemas.settings import load

PARTITIONS = 8
KINDS = {
    "range, dynamic": ("range", False),
    "range, static": ("range", True),
    "cooperative": ("cooperative-sticky", False),
}
CALM_SECONDS = 0.5  # a partition read within this time counts as read
READ_SECONDS = 0.05

Place = tuple[int, int]  # (number of the topic, partition)


def main() -> None:
    """Measure the kinds; print a line per kind and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--member", nargs=4, help=argparse.SUPPRESS)  # bootstrap, group, assignor, instance
    options = parser.parse_args()
    if options.member:
        member(*options.member, session=options.session)
        return
    found = {}
    with stack(kafka_partitions=PARTITIONS) as running:
        for number, (kind, (assignor, static)) in enumerate(KINDS.items()):
            if options.only in (None, kind):
                group = Group(running, f"membership-{number}", assignor, options.session, static=static)
                found[kind] = group.measure(options.rounds)
                print(
                    f"{kind:>16}: " + ", ".join(f"{event} {value}" for event, value in found[kind].items()), flush=True
                )
    report("membership", session=options.session, rounds=options.rounds, stalls=found)


def topics(group: str) -> list[str]:
    """Two co-partitioned topics."""
    return [f"{group}-a", f"{group}-b"]


def member(bootstrap: str, group: str, assignor: str, instance: str, *, session: float) -> None:
    """One member: prints `[topic, partition, monotonic seconds]` as JSON for each read. Timeouts as in `connectors.kafka.consumer`."""
    going = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: going.set())
    own: dict[str, Any] = {
        "group.id": group,
        "partition.assignment.strategy": assignor,
        "session.timeout.ms": int(session * 1000),
        "heartbeat.interval.ms": int(session * 1000 / 6),
        "auto.offset.reset": "latest",
        "auto.commit.interval.ms": 200,
        "fetch.wait.max.ms": 50,
        "log_level": 0,
    }
    if instance:
        own["group.instance.id"] = instance
    consumer = Consumer(broker.options(load(kafka_bootstrap=bootstrap), "bench") | own)
    names = topics(group)
    consumer.subscribe(names)
    while not going.is_set():
        messages = [message for message in consumer.consume(200, READ_SECONDS) if message.error() is None]
        for topic, partition in {(message.topic(), message.partition()) for message in messages}:
            print(json.dumps([names.index(topic or ""), partition, time.monotonic()]), flush=True)
    consumer.close()


class Group:
    """Members of one group by name, and the time and reader of each partition's newest read."""

    def __init__(self, running: Stack, name: str, assignor: str, session: float, *, static: bool) -> None:
        self._running, self._name, self._assignor, self._session, self._static = (
            running,
            name,
            assignor,
            session,
            static,
        )
        self._read: dict[Place, list[tuple[float, str]]] = defaultdict(list)
        self._members: dict[str, subprocess.Popen[str]] = {}
        self._names = (f"member-{number}" for number in count(1))
        self._ended = threading.Event()
        self._split = 0

    def measure(self, rounds: int) -> dict[str, float]:
        """Event → longest stall in seconds, rounded; `split`."""
        client = admin(self._running.settings)  # keep a reference: a garbage-collected client never answers
        made = client.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics(self._name)])
        for done in made.values():
            done.result()
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        longest: dict[str, float] = defaultdict(float)
        try:
            self._start(next(self._names))
            self._start(next(self._names))
            until(self._calm, 60)
            for _ in range(rounds):
                for event, change in self._events().items():
                    longest[event] = max(longest[event], self._stall(change))
        finally:
            self._ended.set()
            for name in list(self._members):
                self._stop(name)
        writer.join()
        return {event: round(seconds, 1) for event, seconds in longest.items()} | {"split": self._split}

    def _events(self) -> dict[str, Callable[[], None]]:
        """The events, in this order; after the last there are two members again."""
        return {
            "joins": lambda: self._start(next(self._names)),
            "leaves": lambda: self._stop(self._newest()),
            "rolled": self._roll,
            "restarted": lambda: self._again(self._stop),
            "crashed, restarted": lambda: self._again(self._kill),
            "dies": lambda: self._kill(self._newest()),
            "joins again": lambda: self._start(next(self._names)),
        }

    def _roll(self) -> None:
        """Like a Deployment: the new member, under a new name, reads before the old one gets SIGTERM."""
        for old in list(self._members):
            self._start(next(self._names))
            until(self._calm, 60)
            self._stop(old)
            time.sleep(2 * CALM_SECONDS)
            until(self._calm, 60)

    def _again(self, end: Callable[[str], None]) -> None:
        """Like a container that is restarted in the same pod."""
        name = self._newest()
        end(name)
        self._start(name)

    def _newest(self) -> str:
        return list(self._members)[-1]

    def _stall(self, change: Callable[[], None]) -> float:
        """Longest time in which a partition was not read, from the event until the group is stable."""
        begin = time.monotonic()
        change()
        time.sleep(2 * CALM_SECONDS)
        until(self._calm, 60)
        time.sleep(2 * CALM_SECONDS)
        end = time.monotonic()
        holders = {place: reads[-1][1] for place, reads in self._read.items()}
        self._split = max(self._split, sum(holders[0, part] != holders[1, part] for part in range(PARTITIONS)))
        return max(
            after - before
            for reads in self._read.values()
            for before, after in pairwise([*(at for at, _ in list(reads) if at >= begin - CALM_SECONDS), end])
        )

    def _calm(self) -> bool:
        """Whether every partition is read, and every member reads."""
        since = time.monotonic() - CALM_SECONDS
        lately = {place: reads[-1][1] for place, reads in list(self._read.items()) if reads[-1][0] >= since}
        return len(lately) == 2 * PARTITIONS and set(lately.values()) == set(self._members)

    def _start(self, name: str) -> None:
        place = [self._running.settings.kafka_bootstrap, self._name, self._assignor, name if self._static else ""]
        command = [sys.executable, "-m", "bench.membership", "--session", str(self._session), "--member", *place]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._members[name] = child
        threading.Thread(target=self._listen, args=(name, child), daemon=True).start()

    def _stop(self, name: str) -> None:
        child = self._members.pop(name)
        child.terminate()
        child.wait(30)

    def _kill(self, name: str) -> None:
        child = self._members.pop(name)
        child.kill()
        child.wait()

    def _listen(self, name: str, child: "subprocess.Popen[str]") -> None:
        for line in child.stdout or ():
            topic, partition, at = json.loads(line)
            self._read[topic, partition].append((at, name))

    def _write(self) -> None:
        producer = Producer(broker.options(self._running.settings, "bench") | {"linger.ms": 0, "log_level": 0})
        while not self._ended.wait(READ_SECONDS):
            for topic in topics(self._name):
                for part in range(PARTITIONS):
                    producer.produce(topic, b"x", partition=part)
            producer.poll(0)
        producer.flush(10)


if __name__ == "__main__":
    main()
