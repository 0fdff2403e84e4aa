"""What the event loop of a flow takes from outside: its thread, its clock and its HTTP session. Tests replace them.

With a `Background` in the caller's own loop, a session without sockets and that loop's clock, a flow runs in one thread, and
hours pass in milliseconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from connectors.http.client import open_session
from connectors.runtime.background_loop import Background, Main
from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class LoopEnvironment:
    """By default: a thread of its own, seconds of time.monotonic, and guarded connections to the network."""

    background: Callable[[str, Main], Background] = Background
    clock: Callable[[], float] = time.monotonic
    session: Callable[[Settings], aiohttp.ClientSession] = open_session
