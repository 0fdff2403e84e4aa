"""Name resolution of untrusted hosts, each lookup in its own thread.

An unresponsive name server blocks a thread until the system's resolver times out. In the event loop's small default pool, a few
such names would block all other lookups of the process. The number of threads is limited for untrusted names, but not for the
names in our settings.
"""

import asyncio
import socket
import threading
from collections.abc import Collection
from contextlib import suppress

from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

NAMES_AT_ONCE = 64


class HostNames(AbstractResolver):
    """Resolver for one event loop. `trusted`: host names to which the limit does not apply."""

    def __init__(self, trusted: Collection[str] = ()) -> None:
        self._trusted = frozenset(trusted)
        self._threads = asyncio.Semaphore(NAMES_AT_ONCE)

    @property
    def full(self) -> bool:
        """Whether an untrusted name has to wait for a thread."""
        return self._threads.locked()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        untrusted = host not in self._trusted
        if untrusted:
            await self._threads.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def end(found: list[ResolveResult] | OSError) -> None:
            if untrusted:
                self._threads.release()
            if answer.done():  # the caller was cancelled
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def run() -> None:
            try:
                found: list[ResolveResult] | OSError = _addresses(host, port, family)
            except (OSError, UnicodeError) as err:
                found = err if isinstance(err, OSError) else OSError(f"{host[:100]!r}: {err}")
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end, found)

        try:
            threading.Thread(target=run, name="host name", daemon=True).start()
        except RuntimeError as err:  # the system has no thread left
            end(OSError(str(err)))
        return await answer

    @override
    async def close(self) -> None:
        """Does nothing: running threads are daemons."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=str(place[0]),
            port=int(place[1]),
            family=kind,
            proto=proto,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, proto, _, place in found
    ]
