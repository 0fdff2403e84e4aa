"""What befalls a mirror during a chaos run: a shuffled deck of blows, dealt again and again, each counted where it hit.

`kill` is SIGKILL of a flow process or a server (the processes are started again by `sluice up`, the servers here), `freeze` a
SIGSTOP that outlasts the consumer group's session, `cut`, `refuse`, `stall` and `slow` happen to a connection. The order, the
pauses and the durations come from the seed alone.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from tests.support.size import sized
from tests.support.tcp_proxy import Proxy
from tests.support.whole_mirror import Mirror

PROCESSES = ("control", "list-repos", "firehose", "labels", "backfill-1", "backfill-2", "index-1", "index-2")
FROZEN = ("firehose", "backfill-1", "index-1", "index-2")
FREEZE_SECONDS = sized((2.0, 9.0), (2.0, 11.0))  # the group's session ends after six
WIRE_SECONDS = sized((1.0, 5.0), (1.0, 8.0))
DOWN_SECONDS = (0.0, 4.0)
PAUSE_SECONDS = sized((0.2, 1.2), (0.5, 4.5))
SLOW_MILLISECONDS = 150


class Server(Protocol):
    """A broker or a database that can be killed and brought back."""

    def kill(self) -> None: ...
    def start(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to whom."""

    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


@dataclass(slots=True)
class Monkey:
    """Deals blows until told to stop; `log` has (seconds since the start, blow) of those that hit."""

    mirror: Mirror
    servers: dict[str, Server]
    wires: dict[str, Proxy]
    seed: int
    hits: Counter[Blow] = field(default_factory=Counter)
    log: list[tuple[float, Blow]] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    """process → when it was killed (monotonic), until somebody has seen its successor and takes it out"""
    _until: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _reviving: list[threading.Thread] = field(default_factory=list)
    _failed: list[BaseException] = field(default_factory=list)

    def deck(self) -> list[Blow]:
        """Every blow that there is, once."""
        kills = [Blow("kill", name) for name in (*PROCESSES, *self.servers)]
        wires = [Blow(kind, name) for name in self.wires for kind in ("cut", "refuse", "stall")]
        slow = [Blow("slow", name) for name in ("log", "database")]
        return [*kills, *(Blow("freeze", name) for name in FROZEN), *wires, *slow]

    def play(self, seconds: float, *, meanwhile: Callable[[], None]) -> None:
        """Deal blows for this long, and at least one whole deck; then let everything come back."""
        rng = random.Random(self.seed)
        begun = time.monotonic()
        blows = self._deal(rng)
        try:
            while time.monotonic() < begun + seconds or self.missed():
                assert time.monotonic() < begun + seconds + 240, f"no chance to: {self.missed()}"
                blow = next(blows)
                pause = rng.uniform(*PAUSE_SECONDS)
                if self._strike(blow, rng):
                    self.hits[blow] += 1
                    self.log.append((time.monotonic() - begun, blow))
                    self._rest(pause, meanwhile)
                else:
                    self._rest(0.1, meanwhile)
        finally:
            self.calm()

    def missed(self) -> list[str]:
        """Blows that never hit."""
        return [str(blow) for blow in self.deck() if not self.hits[blow]]

    def calm(self) -> None:
        """End what lasts: connections are restored, frozen processes thaw, servers run again."""
        for _, ending in self._until:
            ending()
        self._until.clear()
        for thread in self._reviving:
            thread.join(120)
            assert not thread.is_alive(), "a server does not come back"
        if self._failed:
            raise self._failed[0]

    def _deal(self, rng: random.Random) -> Iterator[Blow]:
        """Decks without end. Those that could not be struck come again before the next whole deck."""
        while True:
            deck = [blow for blow in self.deck() if not self.hits[blow]] or self.deck()
            rng.shuffle(deck)
            yield from deck

    def _strike(self, blow: Blow, rng: random.Random) -> bool:
        """Do it; False where the target is down, or suffers already."""
        if blow.target in self._busy:
            return False
        if blow.target in self.servers:
            return self._kill_server(blow.target, rng.uniform(*DOWN_SECONDS))
        if blow.target in self.wires:
            return self._harm_wire(blow, rng.uniform(*WIRE_SECONDS))
        return self._harm_process(blow, rng.uniform(*FREEZE_SECONDS))

    def _harm_process(self, blow: Blow, seconds: float) -> bool:
        process = _running(self.mirror.pid(blow.target))
        if process is None:
            return False
        if blow.kind == "kill":
            self.ended.setdefault(blow.target, time.monotonic())
            os.kill(process.pid, signal.SIGKILL)
            return True
        process.suspend()
        self._lasts(blow.target, seconds, lambda: _thaw(process))
        return True

    def _harm_wire(self, blow: Blow, seconds: float) -> bool:
        wire = self.wires[blow.target]
        if blow.kind == "cut":
            return wire.cut() > 0
        if blow.kind == "refuse":
            wire.refuse()
        elif blow.kind == "stall":
            wire.half_open()
        else:
            wire.delay(SLOW_MILLISECONDS)
        self._lasts(blow.target, seconds, wire.restore)
        return True

    def _kill_server(self, name: str, down_seconds: float) -> bool:
        self.servers[name].kill()
        self._busy.add(name)
        self.ended[name] = time.monotonic()

        def revive() -> None:
            time.sleep(down_seconds)
            try:
                self.servers[name].start()
            except BaseException as err:  # told by the main thread
                self._failed.append(err)
            finally:
                self._busy.discard(name)

        self._reviving.append(threading.Thread(target=revive, daemon=True))
        self._reviving[-1].start()
        return True

    def _lasts(self, target: str, seconds: float, ending: Callable[[], None]) -> None:
        self._busy.add(target)

        def end() -> None:
            ending()
            self._busy.discard(target)

        self._until.append((time.monotonic() + seconds, end))

    def _rest(self, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Pause, and end what is due meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            due = [ending for at, ending in self._until if at <= now]
            self._until = [(at, ending) for at, ending in self._until if at > now]
            for ending in due:
                ending()
            if self._failed:
                raise self._failed[0]
            meanwhile()
            if now >= deadline:
                return
            time.sleep(0.1)


def _running(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid) if pid else None
        return process if process and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _thaw(process: psutil.Process) -> None:
    if process.is_running():  # it may have been killed while it was frozen
        process.resume()
