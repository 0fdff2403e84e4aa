"""Combines single calls into batches: keys requested within GATHER_SECONDS, or while a batch is running, go into the next one.

`await BatchLoader(many).one(key)`: `many(keys)` returns a mapping; a missing key gets None. An error of `many` is raised to every
caller of the batch. For one event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

GATHER_SECONDS = 0.005  # a statement for one key costs nearly as much as one for many

K = TypeVar("K")
V = TypeVar("V")


class BatchLoader(Generic[K, V]):
    """Runs one batch at a time."""

    def __init__(self, many: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._many = many
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._rounds: asyncio.Task[None] | None = None

    async def one(self, key: K) -> V | None:
        """The answer for one key. Concurrent callers with the same key share it."""
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._run())
        return await asyncio.shield(future)

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            waiting, self._waiting = self._waiting, {}
            try:
                answers = await self._many(waiting.keys())
            except BaseException as err:
                for future in waiting.values():
                    if not future.done():
                        future.set_exception(err)
                        future.exception()  # marks it as retrieved, even if the caller was cancelled
                if not isinstance(err, Exception):
                    raise
            else:
                for key, future in waiting.items():
                    if not future.done():
                        future.set_result(answers.get(key))
