"""Records the firehose of the official PDS into `official_pds.json.xz`: run it from the repository's root,

    .venv/bin/python -m tests.protocol.recorded.record_official

It starts the servers of the acceptance tests, writes in every way that they know, and reads `subscribeRepos` from its first
event. The file is {versions, recorded_micros, keys: {did: did:key}, frames: [base64]}.
"""

from __future__ import annotations

import asyncio
import base64
import json
import lzma
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp

from protocol.event_stream import Account, Commit, Identity, Sync, decode
from tests.acceptance.test_official_network import write_in_every_way
from tests.support.official.servers import OfficialNetwork, install, start_official_network

HERE = Path(__file__).resolve().parent

FILE = HERE / "official_pds.json.xz"
QUIET_SECONDS = 3.0
MOST_BYTES = 12_000  # of a frame: a few large ones would fill the file


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = start_official_network(install(), Path(folder) / "network", None, accounts=5, posts=2)
        try:
            dids = list(network.truth())
            events_of_every_kind(network, dids)
            frames = asyncio.run(read(network.pds))
            keys = {did: key(network.plc, did) for did in {event.did for event in map(decode, frames)}}  # type: ignore[union-attr]  # `read` keeps no others
        finally:
            network.stop()
    page = {
        "versions": network.versions,
        "recorded_micros": time.time_ns() // 1000,
        "keys": keys,
        "frames": [base64.b64encode(frame).decode() for frame in frames],
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(lzma.compress(json.dumps(page).encode()))
    print(f"{len(frames)} frames, {FILE.stat().st_size} bytes, of {network.versions}")


def events_of_every_kind(network: OfficialNetwork, dids: list[str]) -> None:
    """Commits of every size and kind, handles, accounts that hide, come back and arrive."""
    write_in_every_way(network, dids[0])
    network.order("burst", dids=dids, n=320)
    network.order("handle", did=dids[1], handle="renamed.test")
    network.order("deactivate", did=dids[2])
    network.order("activate", did=dids[2])
    network.order("account", handle="arrived.test")
    network.order("takedown", did=dids[3], applied=True)


async def read(pds: str) -> list[bytes]:
    """The frames from the first on, until nothing comes any more; the largest are left out."""
    frames: list[bytes] = []
    url = f"{pds}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        while True:
            try:
                frame: Any = await asyncio.wait_for(socket.receive_bytes(), QUIET_SECONDS)
            except TimeoutError:
                return frames
            if isinstance(decode(frame), Commit | Sync | Identity | Account) and len(frame) <= MOST_BYTES:
                frames.append(frame)


def key(plc: str, did: str) -> str:
    """The account's #atproto key, as the directory has it."""
    with urllib.request.urlopen(f"{plc}/{did}/data", timeout=10) as answer:
        found: str = json.load(answer)["verificationMethods"]["atproto"]
        return found


if __name__ == "__main__":
    main()
