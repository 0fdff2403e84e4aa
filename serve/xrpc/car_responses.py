"""getRepo and sync.getRecord: CARs that a thread makes, streamed. At most AT_ONCE in a process; others wait, then get 503.

A response may take LONGEST_SECONDS, and its client has to read LEAST_RATE, with at most PATIENCE_SECONDS of delay. A CAR that
cannot be finished ends with the connection, so that no client takes it for a whole one.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Generator

import psycopg
from aiohttp import web

from connectors.http.server import ANSWER_SECONDS, BoundedConnection
from protocol.mst.tree import MstError
from serve.context import CONTEXT
from serve.guard import HEADERS, XrpcError
from serve.xrpc.parameters import collection_of, did_of, rkey_of, since_of
from serve.xrpc.repo_car import DamagedRow, record_car, repo_car

AT_ONCE = 4
WAIT_SECONDS = 20.0
LONGEST_SECONDS = 1800.0
LEAST_RATE = 32 << 10
"""Bytes per second."""
PATIENCE_SECONDS = 30.0
CAR_TYPE = "application/vnd.ipld.car"
_LATE = (psycopg.Error, DamagedRow, MstError, OSError, TimeoutError)

PERMITS = web.AppKey("car_permits", asyncio.Semaphore)

log = logging.getLogger("serve")


class CarReader:
    """The chunks of a CAR, for threads that take turns."""

    def __init__(self, chunks: Generator[bytes]) -> None:
        self._chunks = chunks
        self._turn = threading.Lock()

    def next(self) -> bytes:
        """The next chunk; empty at the end."""
        with self._turn:
            return next(self._chunks, b"")

    def close(self) -> None:
        """Release the database connection, after a running `next`."""
        with self._turn:
            self._chunks.close()


def add_permits(app: web.Application) -> None:
    """Bound the CARs of an application."""
    app[PERMITS] = asyncio.Semaphore(AT_ONCE)


async def get_repo(request: web.Request) -> web.StreamResponse:
    """The whole repo."""
    did, since = did_of(request.query), since_of(request.query)
    return await _stream(request, repo_car(request.app[CONTEXT], did, since))


async def get_record(request: web.Request) -> web.StreamResponse:
    """The proof of a record, or that there is none."""
    query = request.query
    did, collection, rkey = did_of(query), collection_of(query), rkey_of(query)
    return await _stream(request, record_car(request.app[CONTEXT], did, collection, rkey))


async def _stream(request: web.Request, chunks: Generator[bytes]) -> web.StreamResponse:
    permits = request.app[PERMITS]
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await permits.acquire()
    except TimeoutError as err:
        raise XrpcError("NotEnoughResources", f"{AT_ONCE} repos are being sent; retry in a moment", 503) from err
    reader = CarReader(chunks)
    _extend(request, LONGEST_SECONDS)
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            first = await asyncio.to_thread(reader.next)
        return await _send(request, first, reader)
    finally:
        try:
            await asyncio.shield(asyncio.to_thread(reader.close))
        finally:
            permits.release()


async def _send(request: web.Request, chunk: bytes, reader: CarReader) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": CAR_TYPE, **HEADERS})
    await response.prepare(request)
    patience = PATIENCE_SECONDS
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            while chunk:
                patience = await _in_time(response.write(chunk), len(chunk), patience)
                _extend(request)
                chunk = await asyncio.to_thread(reader.next)
            await _in_time(response.write_eof(), 0, patience)
    except _LATE as err:
        log.warning(
            "a CAR was not finished", extra={"path": request.path_qs[:300], "error": str(err)[:300] or "too slow"}
        )
        if request.transport is not None:
            request.transport.abort()
    return response


async def _in_time(write: Awaitable[None], size: int, patience: float) -> float:
    """Await a write of `size` bytes; the patience left, in seconds. Raises TimeoutError where it and LEAST_RATE are exceeded.

    Only the time of writes counts, so a slow database is not the client's fault.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience + size / LEAST_RATE
    async with asyncio.timeout_at(until):
        await write
    return min(PATIENCE_SECONDS, until - loop.time())


def _extend(request: web.Request, seconds: float = ANSWER_SECONDS) -> None:
    """Let the connection last until the next chunk. The first one needs all keys of the repo."""
    connection = request.transport and request.transport.get_protocol()
    if isinstance(connection, BoundedConnection):
        connection.extend(seconds)
