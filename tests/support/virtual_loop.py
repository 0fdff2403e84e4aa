"""An event loop whose clock jumps to the next timer: hours of waiting take milliseconds. For code without sockets."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any


class _Selector(selectors.SelectSelector):
    """Never waits: it moves the loop's clock instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that no timer brings"
        self.loop.now += max(timeout, 0.0)
        return super().select(0)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now`: seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


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
