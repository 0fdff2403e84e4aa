"""Benchmark: streams of `serve`. Events per second to one client and to 100 with different filters, and the delay of a live event.

    .venv/bin/python -m bench.serve [--events 50000] [--live 1000] [--rate 20]

Clients are in this process and count frames. `floor`: the same events decoded and their frames made in a plain loop.
`relay_to_client`: milliseconds from a commit's frame of the simulated relay to its event at a client, through the firehose process,
the log and `serve`; both sockets are in this process. The first commit of each account is left out: its key is resolved meanwhile.
"""

import argparse
import asyncio
import json
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec
import psutil

from bench.support.load import CID, TEXT, TIME, random_did, send_all
from bench.support.simulated import Simulated, simulated
from bench.support.stack import Floor, Stack, floor, report, stack, until
from connectors.kafka.producer import Out
from protocol.event_stream import Commit, decode
from schemas import wire
from schemas.topics import FIREHOSE_LIVE
from serve.stream.events import events
from serve.stream.log_reader import Numbered
from serve.stream.v2 import frame

COLLECTIONS = [f"app.bsky.feed.{name}" for name in ("like", "post", "repost")] + ["app.bsky.graph.follow"]
DIDS = 997
CLIENTS = 100
BATCH = 5000
POLL_SECONDS = 0.01
V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--live", type=int, default=1000, help="live commits whose delay is measured")
    parser.add_argument("--rate", type=float, default=20.0, help="of them a second")
    options = parser.parse_args()
    filters = [different(number) for number in range(CLIENTS)]
    network: dict[str, Any] = {"repos": 50, "records_per_repo": 20, "churn": 0.0, "inactive_share": 0.0}
    with (
        simulated(**network, labelers=0, prebuild=True) as sim,
        stack(relays=sim.urls["relays"], plc=sim.urls["plc"]) as running,
        serving(running) as (port, process),
    ):
        delays = asyncio.run(live(running, sim, port, options.live, options.rate))
        one = asyncio.run(busy(running, port, process, [""], options.events))
        many = asyncio.run(busy(running, port, process, filters, options.events))
    bottom = frames_floor(options.events).figures(one["events_per_second"])
    report("serve", events=options.events, relay_to_client=delays, one_client=one, clients_100=many, **bottom)


@contextmanager
def serving(running: Stack) -> Iterator[tuple[int, psutil.Process]]:
    """`sluice run serve` that listens: its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with running.process("serve", SLUICE_SERVE_LISTEN=f"127.0.0.1:{port}") as process:
        until(lambda: _listens(port), seconds=60)
        yield port, process


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def message(number: int) -> Out:
    """A commit with one record, as most of the network's."""
    did, collection = did_of(number), COLLECTIONS[number % 4]
    record = msgspec.json.encode({"$type": collection, "text": TEXT, "createdAt": TIME})
    rkey = f"3l{number:011}"
    op = wire.Op(action="create", collection=collection, rkey=rkey, cid=CID, record=msgspec.Raw(record))
    value = wire.CommitEvent(
        seq=number, time=TIME, did=did, rev=rkey, commit=CID, commit_block="a" * 200, data=CID, ops=[op]
    )
    return Out(FIREHOSE_LIVE, did, wire.encode(value))


def did_of(number: int) -> str:
    """The account of an event."""
    return random_did("serve", number % DIDS)


def different(number: int) -> str:
    """A filter: a collection, or an account."""
    return f"?collections={COLLECTIONS[number % 4]}" if number % 2 else f"?dids={did_of(number)}"


def frames_of(filters: list[str], count: int) -> int:
    """Frames that clients with these filters get."""
    passing = Counter({"": count})
    passing.update(f"?dids={did_of(number)}" for number in range(count))
    passing.update(f"?collections={COLLECTIONS[number % 4]}" for number in range(count))
    return sum(passing[one] for one in filters)


async def busy(running: Stack, port: int, process: psutil.Process, filters: list[str], count: int) -> dict[str, Any]:
    """Events per second until every client has all of its frames, and the cost. At most two batches are under way."""
    ends = [min(count, end) for end in range(BATCH, count + BATCH, BATCH)]
    goals = [0, 0, *(frames_of(filters, end) for end in ends)]
    batches = [[message(number) for number in range(begin, end)] for begin, end in pairwise([0, *ends])]
    wanted, got = goals[-1], 0

    async def read(stream: aiohttp.ClientWebSocketResponse) -> None:
        nonlocal got
        async for _ in stream:
            got += 1
        raise ConnectionError("serve has closed a stream")

    async def reach(goal: int) -> None:
        while got < goal:
            ended, _ = await asyncio.wait(tasks, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.timeout(300):
        url = f"http://127.0.0.1:{port}{V2}"
        tasks = [asyncio.create_task(read(await session.ws_connect(url + one, max_msg_size=0))) for one in filters]
        usage, begin = running.usage(serve=process.pid), time.monotonic()
        for batch, goal in zip(batches, goals, strict=False):
            await reach(goal)
            await asyncio.to_thread(send_all, running.settings, batch)
        await reach(wanted)
        seconds = time.monotonic() - begin
        cost = usage.stop()
        for task in tasks:
            task.cancel()
    cpu = cost["cpu_seconds"]["serve"]
    return {
        "events_per_second": round(count / seconds),
        "frames_per_second": round(wanted / seconds),
        "cpu_micros_per_frame": round(1e6 * cpu / wanted, 1),
        "cpu_micros_per_event": round(1e6 * cpu / count, 1),
        **cost,
    }


def frames_floor(count: int) -> Floor:
    """Decode the messages and make each frame, without a log and clients."""
    numbered = [Numbered(256 * number, number, message(number).value or b"") for number in range(count)]
    with floor(count) as measured:
        for event in events(numbered):
            frame(event)
    return measured


async def live(running: Stack, sim: Simulated, port: int, count: int, rate: float) -> dict[str, float]:
    """Milliseconds from a commit's frame of the relay to its event at a client."""
    sent: dict[tuple[str, str], float] = {}
    delays: list[float] = []
    known: set[str] = set()

    async def read_relay(stream: aiohttp.ClientWebSocketResponse) -> None:
        async for item in stream:
            event = decode(item.data)
            if isinstance(event, Commit):
                sent[event.did, event.rev] = time.monotonic()

    async def read_serve(stream: aiohttp.ClientWebSocketResponse) -> None:
        while len(delays) < count:
            event = json.loads(await stream.receive_str())
            begin = sent.pop((event["did"], event["commit"]["rev"]), None)  # None: a further operation of the commit
            if begin is not None and event["did"] in known:
                delays.append(1000 * (time.monotonic() - begin))
            known.add(event["did"])

    with running.process("firehose"):
        async with aiohttp.ClientSession() as session, asyncio.timeout(600):
            relay = await session.ws_connect(
                f"{sim.urls['relays'][0]}/xrpc/com.atproto.sync.subscribeRepos", max_msg_size=0
            )
            client = await session.ws_connect(f"http://127.0.0.1:{port}/subscribe", max_msg_size=0)
            await asyncio.to_thread(until, lambda: sim.ask("/streams", {})[0]["readers"] > 1)
            reading = asyncio.create_task(read_relay(relay))
            await asyncio.to_thread(sim.ask, "/writer", {"rate": rate})
            await read_serve(client)
            reading.cancel()
        sim.ask("/quiesce", {})
    cuts = statistics.quantiles(delays, n=100)
    return {
        "events": count,
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "max_ms": round(max(delays), 1),
    }


if __name__ == "__main__":
    main()
