"""pytest plugin: `timeless` runs a coroutine in virtual time, which goes on only when everything waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock goes on only when it would wait, and then at once: what takes how long is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        selector: Any = self._selector  # type: ignore[attr-defined]  # there is no public way to the loop's waiting
        look = selector.select

        def select(timeout: float | None) -> Any:
            assert timeout is not None, "it would wait for ever"
            self.now += timeout
            return look(0)

        selector.select = select

    def time(self) -> float:
        return self.now


@pytest.fixture
def timeless() -> Iterator[asyncio.Runner]:
    """Runs coroutines in virtual time. What reads a clock there takes `timeless.get_loop().time`."""
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        yield runner
