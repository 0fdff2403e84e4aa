"""An event loop whose clock jumps to the next timer: hours of waiting take milliseconds.

While a statement of the database or a call in a thread is under way, the clock stands still and the loop really waits for it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

OUTSIDE_SECONDS = 60.0


class _Selector(selectors.SelectSelector):
    """Moves the loop's clock instead of waiting, unless something outside the loop is under way."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            return super().select(0)
        if self.loop.calls or len(self.get_map()) > 1:  # 1: the loop's own socket, which wakes it
            ready = super().select(OUTSIDE_SECONDS)
            assert ready, f"no answer from outside for {OUTSIDE_SECONDS} s, while the clock stands still"
            return ready
        assert timeout is not None, "everything waits for something that no timer brings"
        self.loop.advance(max(timeout, 0.0))
        return super().select(0)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now`: seconds since the start; `calls`: how many threads work for the loop; `passed`: is given each jump of the clock."""

    def __init__(self, passed: Callable[[float], None] | None = None) -> None:
        self.now = 0.0
        self.calls = 0
        self._passed = passed
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        if self._passed is not None:
            self._passed(seconds)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.calls += 1
        future.add_done_callback(self._returned)
        return future

    async def shutdown_default_executor(self, *args: Any, **given: Any) -> None:
        self.calls += 1
        try:
            await super().shutdown_default_executor(*args, **given)
        finally:
            self.calls -= 1

    def _returned(self, _: object) -> None:
        self.calls -= 1


def run_hours(hours: float, main: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run `main` for so many hours of the loop's clock; it need not end."""
    loop = VirtualLoop()

    async def limited() -> None:
        try:
            async with asyncio.timeout(hours * 3600):
                await main(loop)
        except TimeoutError:
            pass

    try:
        loop.run_until_complete(limited())
    finally:
        loop.close()
