"""Streams of `serve`: events a second to one client and to 100 with different filters, CPU of each delivered event, latency.

    python -m bench.serve [--events 50000]

It runs a broker of its own and `sluice run serve` without a database in a process of its own; clients are raw sockets in this one,
which count frames. Latency is from the write to the log until the frame is here, on a quiet stream.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec
import psutil

from connectors.kafka import topics
from connectors.kafka.producer import LogProducer, Out
from connectors.runtime.health import Health
from local.embedded.embedded_log import EmbeddedLog
from schemas import wire
from schemas.settings import load
from schemas.topics import FIREHOSE_LIVE
from serve import serve_process

COLLECTIONS = [f"app.bsky.feed.{name}" for name in ("like", "post", "repost")] + ["app.bsky.graph.follow"]
V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
QUIET_EVENTS = 200
QUIET_SECONDS = 0.1
CID = "bafyreigq4zsipbk5w3uqkbmh2w2633c5tcpc34d3fqdh2nqgkmxqpf4sze"


def message(number: int) -> Out:
    """A commit with one record, as most of the network's."""
    did = f"did:plc:{number % 997:a>24}".translate(str.maketrans("0189", "zyxw"))
    collection = COLLECTIONS[number % 4]
    record = {"$type": collection, "text": "a few words " * 8, "createdAt": "2026-11-30T08:00:00.000Z"}
    op = wire.Op(
        action="create",
        collection=collection,
        rkey=f"3l{number:011}",
        cid=CID,
        record=msgspec.Raw(json.dumps(record).encode()),
    )
    time_text = "2026-11-30T08:00:00.000Z"
    value = wire.CommitEvent(
        seq=number,
        time=time_text,
        did=did,
        rev=f"3l{number:011}",
        commit=CID,
        commit_block="a" * 200,
        data=CID,
        ops=[op],
    )
    return Out(FIREHOSE_LIVE, did, wire.encode(value))


class Clients:
    """Clients that read and count."""

    def __init__(self, port: int, queries: list[str]) -> None:
        self._port = port
        self._queries = queries
        self.frames = [0] * len(queries)
        self.arrivals: dict[str, float] = {}

    async def run(self, ready: asyncio.Event) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            urls = [f"http://127.0.0.1:{self._port}{V2}{query}" for query in self._queries]
            sockets = [await session.ws_connect(url, max_msg_size=0) for url in urls]
            ready.set()
            await asyncio.gather(*(self._count(at, one) for at, one in enumerate(sockets)))

    async def _count(self, at: int, stream: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in stream:
            self.frames[at] += 1
            if len(self.frames) == 1:
                self.arrivals[frame.data[-200:]] = time.perf_counter()


async def busy(log: LogProducer, process: psutil.Process, clients: Clients, events: int, wanted: int) -> None:
    """`wanted`: frames that all clients together must get."""
    ready = asyncio.Event()
    task = asyncio.create_task(clients.run(ready))
    await ready.wait()
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    batch = [message(number) for number in range(events)]
    sent = asyncio.create_task(asyncio.to_thread(log.send, batch))
    while sum(clients.frames) < wanted:  # noqa: ASYNC110 - the clients' tasks count
        await asyncio.sleep(0.02)
    seconds, cpu = time.perf_counter() - began, sum(process.cpu_times()[:2]) - before
    await sent
    task.cancel()
    print(
        f"{len(clients.frames)} clients: {events / seconds:,.0f} events/s, {wanted / seconds:,.0f} frames/s,"
        f" {1e6 * cpu / wanted:.1f} µs CPU a frame, {1e6 * cpu / events:.1f} µs an event"
    )


async def quiet(log: LogProducer, port: int) -> None:
    clients, ready = Clients(port, [""]), asyncio.Event()
    task = asyncio.create_task(clients.run(ready))
    await ready.wait()
    delays = []
    for number in range(QUIET_EVENTS):
        began = time.perf_counter()
        await asyncio.to_thread(log.send, [message(number)])
        while clients.frames[0] <= number:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
        delays.append(1000 * (next(reversed(clients.arrivals.values())) - began))
        await asyncio.sleep(QUIET_SECONDS)
    task.cancel()
    cuts = statistics.quantiles(delays, n=100)
    print(f"quiet stream: p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms from the write to the client")


def queries(count: int) -> list[str]:
    """Filters that differ: a collection each, and every second one some DIDs."""
    found = []
    for number in range(count):
        did = f"did:plc:{number % 997:a>24}".translate(str.maketrans("0189", "zyxw"))
        found.append(f"?collections={COLLECTIONS[number % 4]}" if number % 2 else f"?dids={did}")
    return found


def expected(filters: list[str], events: int) -> int:
    """Frames that these filters let through."""
    dids: dict[str, int] = {}
    collections: dict[str, int] = {}
    for number in range(events):
        dids[message(number).key] = dids.get(message(number).key, 0) + 1
        collections[COLLECTIONS[number % 4]] = collections.get(COLLECTIONS[number % 4], 0) + 1
    both = {f"?dids={one}": count for one, count in dids.items()}
    both |= {f"?collections={one}": count for one, count in collections.items()}
    return sum(both.get(one, 0) for one in filters)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--events", type=int, default=50_000)
    events = parser.parse_args().events
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder, EmbeddedLog(Path(folder)) as broker:
        settings = load(
            kafka_bootstrap=broker.bootstrap, kafka_partitions=8, kafka_replication=1, serve_listen=f"127.0.0.1:{port}"
        )
        topics.apply(settings)
        child = multiprocessing.get_context("fork").Process(
            target=serve_process.run, args=(settings, Health("serve")), daemon=True
        )
        child.start()
        process, log = psutil.Process(child.pid), LogProducer(settings)
        try:
            _await_port(port)
            asyncio.run(quiet(log, port))
            asyncio.run(busy(log, process, Clients(port, [""]), events, events))
            filters = queries(100)
            asyncio.run(busy(log, process, Clients(port, filters), events, expected(filters, events)))
        finally:
            os.kill(process.pid, 15)
            child.join(10)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
