"""Addresses of hosts that others named, looked up in threads of their own.

A name server that does not answer holds its thread for as long as the machine's resolver has patience. The event loop's own
pool has very few threads: two such names would hold up every other name of the process. So untrusted names have a limited
number of threads, and the names of our own settings need none of these.
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
    """For one event loop. `trusted`: host names that are always looked up."""

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
            if answer.done():  # the caller has gone
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
        except RuntimeError as err:  # the machine gives no more threads
            end(OSError(str(err)))
        return await answer

    @override
    async def close(self) -> None:
        """Threads that still run end with the process."""


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
