"""Benchmark (c): frames → log. Events per second of the firehose flow, from the first message in the log to the last.

    .venv/bin/python -m bench.firehose [--events 100000] [--shares 3]

Floor, measured in the same run on the same frames: decoding, inverting and encoding the same JSON in a plain loop,
without signatures. The simulated relay has the encoded frames in its window; the flow reads from the oldest event on.
"""

import argparse
import asyncio
import time
from contextlib import ExitStack

import aiohttp

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Ends, Floor, Stack, floor, report, stack, watch
from flows.firehose.encode import account_value, commit_message, identity_value
from protocol.event_stream import MAX_SOCKET_BYTES, Account, Commit, Identity, Sync, decode
from protocol.verify_commit import Verified, verify
from schemas.topics import DEAD_LETTER, FIREHOSE_LIVE

TIME = "2026-01-01T00:00:00.000Z"


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
        bottom = floor_of(frames, relay)
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


def floor_of(frames: list[bytes], relay: str) -> Floor:
    """The cost of the unavoidable work."""
    now_micros, size = time.time_ns() // 1000, 0
    with floor(len(frames)) as measured:
        for frame in frames:
            event = decode(frame)
            if isinstance(event, Commit | Sync):
                verified = verify(event, now_micros)
                assert isinstance(verified, Verified), verified
                size += len(commit_message(verified, relay, TIME).value)
            elif isinstance(event, Account):
                size += len(account_value(event, relay, 0, TIME))
            else:
                assert isinstance(event, Identity), event
                size += len(identity_value(event, relay, 0, TIME))
    assert size > len(frames)
    return measured


def firehose(running: Stack, sim: Simulated, events: int, shares: int) -> tuple[float, dict[str, object]]:
    """Events per second (without start-up), and the cost."""
    ends = Ends(running.settings, FIREHOSE_LIVE)
    with ExitStack() as started:
        processes = {"simulator": sim.pid}
        for share in range(shares):
            numbers = {"SLUICE_FIREHOSE_SHARE": str(share), "SLUICE_FIREHOSE_SHARES": str(shares)}
            process = started.enter_context(running.process("firehose", **numbers))
            processes[f"firehose_{share}" if shares > 1 else "firehose"] = process.pid
        seen = watch(running, ends.messages, events, **processes)
    assert not Ends(running.settings, DEAD_LETTER).messages()
    return (events - seen.first) / seen.seconds, seen.figures


if __name__ == "__main__":
    main()
