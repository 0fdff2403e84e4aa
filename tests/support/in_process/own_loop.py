"""One virtual event loop for everything: the simulated network, the flow's own loop, and the flow's thread.

`OwnLoop` runs it a little whenever a test waits (`until`); between two calls of a test nothing goes on. Real are PostgreSQL,
whose clock moves along, and all code of the flow and of the simulated servers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp

from connectors.http.client import session_over
from connectors.runtime.background_loop import Background, Main
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.loop_environment import LoopEnvironment
from schemas.settings import Settings
from tests.support.in_process.database_clock import STEP_SECONDS, DatabaseClock
from tests.support.in_process.memory_http import MemoryConnector, MemoryNetwork
from tests.support.virtual_loop import VirtualLoop

X = TypeVar("X")

STEPS_SECONDS = (0.02, 1.0)  # between two checks of a condition: the first, and the longest
IDLE_SECONDS = 0.1  # the flow's thread, while it has nothing to do


class InLoop(Background):
    """The background work as a task of the test's loop."""

    def __init__(self, loop: VirtualLoop, main: Main) -> None:
        self._virtual = loop
        self._work = main
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        async def work() -> None:
            await self._work()

        self._running = self._virtual.create_task(work())

    def check(self) -> None:
        if self._running is not None and self._running.done() and not self._running.cancelled():
            self._running.result()

    @property
    def finished(self) -> bool:
        return self._running is not None and self._running.done()

    def call(self, function: Callable[[], object]) -> None:
        if not self.finished:
            function()

    def cancel(self, wait_seconds: float = 5.0) -> None:
        if self._running is not None:
            self._running.cancel()


class OwnLoop:
    """The loop of one test. `close` it after all that runs in it. `step_seconds`: how exactly the database's clock follows."""

    def __init__(self, database: str, step_seconds: float = STEP_SECONDS) -> None:
        self._clock = DatabaseClock(database, step_seconds)
        self.loop = VirtualLoop(self._clock.passed)
        self.network = MemoryNetwork()
        self.environment = LoopEnvironment(
            background=lambda _, main: InLoop(self.loop, main), clock=self.loop.time, session=self.session
        )
        self._engines: list[asyncio.Task[None]] = []

    def session(self, settings: Settings) -> aiohttp.ClientSession:
        """As the product's, over the network in memory."""
        return session_over(MemoryConnector(self.network), settings)

    def run(self, work: Coroutine[Any, Any, X]) -> X:
        """Run a coroutine, and everything else meanwhile."""
        return self.loop.run_until_complete(work)

    def until(self, condition: Callable[[], Any], seconds: float = 600.0, what: Callable[[], str] | None = None) -> Any:
        """Let time pass until the condition holds; its value. `seconds`: of the loop's time."""
        deadline, (step, longest) = self.loop.now + seconds, STEPS_SECONDS
        while not (value := condition()):
            assert self.loop.now < deadline, f"not within {seconds} s: {what() if what else condition}"
            self.pass_time(step)
            step = min(step * 1.2, longest)
        return value

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass. Raises what ended a flow."""
        self.run(asyncio.sleep(seconds))
        for engine in self._engines:
            if engine.done() and not engine.cancelled():
                engine.result()

    def begin(self, make: Callable[[], X]) -> X:
        """Call something that needs a running loop."""

        async def call() -> X:
            return make()

        return self.run(call())

    def engine(self, source: CheckpointedPartition[Any, Any], write: Callable[[list[Any]], None]) -> asyncio.Task[None]:
        """Run a source and what writes its items, as the engine does; every batch is an epoch."""

        async def turns() -> None:
            while True:
                try:
                    items = source.next_batch()
                except StopIteration:  # it has drained
                    return
                if items:
                    write(items)
                source.snapshot()
                await asyncio.sleep(0 if items or source.busy() else IDLE_SECONDS)

        self._engines.append(self.loop.create_task(turns()))
        return self._engines[-1]

    def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task, as a kill ends a process: at whatever point it is."""
        task.cancel()
        if task in self._engines:
            self._engines.remove(task)

        async def ended() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self.run(ended())

    def close(self) -> None:
        """Cancel what still runs, and close the loop."""

        async def end() -> None:
            await self.network.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(end())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self._clock.close()
