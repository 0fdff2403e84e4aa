"""Places to fetch at once: a number for everybody, and some more that only urgent work may take, which also goes first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Places:
    """Used in one event loop."""

    def __init__(self, everybody: int, urgent: int) -> None:
        self._limits = {True: everybody + urgent, False: everybody}
        self._queues: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        self.taken = 0

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not future.done() for queue in self._queues.values() for future in queue)

    def limit(self, *, urgent: bool) -> int:
        """Places that such work can have."""
        return self._limits[urgent]

    @asynccontextmanager
    async def place(self, *, urgent: bool) -> AsyncIterator[None]:
        """Hold a place; who comes first gets it first, the urgent before the others."""
        if self.taken < self._limits[urgent]:
            self.taken += 1
        else:
            await self._wait(urgent=urgent)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, *, urgent: bool) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues[urgent].append(future)
        try:
            await future  # whoever hands a place over counts it as taken
        except asyncio.CancelledError:
            if not future.cancelled():  # it was handed over in the same moment
                self._leave()
            raise

    def _leave(self) -> None:
        self.taken -= 1
        for urgent in (True, False):
            queue = self._queues[urgent]
            while queue and self.taken < self._limits[urgent]:
                future = queue.popleft()
                if not future.done():
                    self.taken += 1
                    future.set_result(None)
