"""Benchmark (c): frames → log. Events per second of the firehose flow, from the first message in the log to the last.

    .venv/bin/python -m bench.firehose [--events 100000] [--shares 3]

Floor, measured in the same run on the same frames: bench/support/firehose_floor.py. The simulated relay has the encoded frames in
its window; the flow reads from the oldest event on.
"""

import argparse
import asyncio
import json
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack

import aiohttp

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Ends, Floor, Stack, report, stack, watch
from protocol import PURE
from protocol.event_stream import MAX_SOCKET_BYTES
from schemas.topics import DEAD_LETTER, FIREHOSE_LIVE


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repos", type=int, default=1000)
    parser.add_argument("--shares", type=int, default=1, help="firehose processes")
    options = parser.parse_args()
    network = {"repos": options.repos, "records_per_repo": 50, "window": options.events * 2, "labelers": 0}
    with simulated(**network, prebuilt_commits=options.events) as sim:
        relay = sim.urls["relays"][0]
        frames = asyncio.run(read(relay, options.events))
        bottom = floor_of(frames)
        size = sum(map(len, frames))
        del frames
        with stack(relays=[relay], plc=sim.urls["plc"], firehose_start="oldest") as running:
            rate, figures = firehose(running, sim, options.events, options.shares)
    report(
        "firehose",
        events=options.events,
        frame_bytes=size // options.events,
        events_per_second=round(rate),
        **bottom.figures(rate),
        **figures,
    )


async def read(relay: str, count: int) -> list[bytes]:
    """The first frames of the relay's window, as input of the floor. Makes the simulator encode them."""
    frames: list[bytes] = []
    url = f"{relay}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=MAX_SOCKET_BYTES) as socket:
        while len(frames) < count:
            frames.append(await socket.receive_bytes())
    return frames


def floor_of(frames: list[bytes]) -> Floor:
    """The cost of the unavoidable work, in a process of its own."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps(frames))
        file.flush()
        command = [sys.executable, "-m", "bench.support.firehose_floor", file.name]
        done = subprocess.run(command, env=os.environ | {PURE: "1"}, stdout=subprocess.PIPE, check=True)
    return Floor(len(frames), *json.loads(done.stdout))


def per_thousand(cpu_seconds: dict[str, float], events: int) -> dict[str, float]:
    """CPU seconds per thousand events, by process; `system`: all but the simulated network and this process."""
    found = {kind: seconds / max(1, events) * 1000 for kind, seconds in cpu_seconds.items()}
    found["system"] = sum(cost for kind, cost in found.items() if kind not in ("simulator", "bench"))
    return {kind: round(cost, 3) for kind, cost in found.items()}


def firehose(running: Stack, sim: Simulated, events: int, shares: int) -> tuple[float, dict[str, object]]:
    """Events per second (without start-up), and the cost."""
    ends = Ends(running.settings, FIREHOSE_LIVE)
    with ExitStack() as started:
        processes = {"simulator": sim.pid}
        for share in range(shares):
            command = ("firehose", "--share", str(share))
            process = started.enter_context(running.process(*command, SLUICE_FIREHOSE_SHARES=str(shares)))
            processes[f"firehose_{share}" if shares > 1 else "firehose"] = process.pid
        seen = watch(running, ends.messages, events, **processes)
    assert not Ends(running.settings, DEAD_LETTER).messages()
    cost = per_thousand(seen.figures["cpu_seconds"], events - seen.first)
    return (events - seen.first) / seen.seconds, seen.figures | {"cpu_seconds_per_thousand": cost}


if __name__ == "__main__":
    main()
