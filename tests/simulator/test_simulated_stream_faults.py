"""Every fault of a stream has the effect that its description states, and is counted when it fires."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from itertools import pairwise
from typing import Any

import aiohttp
import libipld
import pytest

from simulator.faults.faults import NAMES
from tests.simulator.read_simulated import (
    CONFIG,
    get,
    list_url,
    only,
)
from tests.support.simulation import Simulation


def test_streams_reject_connections(simulator: Any) -> None:
    simulation = simulator(**CONFIG)
    only(simulation, "stream_429", times=2, status=503, retry_after=7)
    for base, method in (
        (simulation.relays[0], "sync.subscribeRepos"),
        (simulation.labelers[0], "label.subscribeLabels"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{base}/xrpc/com.atproto.{method}")
        assert (caught.value.code, caught.value.headers["Retry-After"]) == (503, "7")
    assert simulation.fired("stream_429") == 2


QUIET_SECONDS = 0.3
READ_SECONDS = 60.0


async def raw_messages(url: str, count: int | None) -> tuple[list[bytes], bool]:
    """(messages, whether the stream closed). With a count: stop if no message follows that many."""
    found: list[bytes] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        while True:
            enough = count is not None and len(found) >= count
            try:
                message = await socket.receive(QUIET_SECONDS if enough else READ_SECONDS)
            except TimeoutError:
                assert enough, f"{len(found)} messages, and then silence"
                return found, False
            if message.type is not aiohttp.WSMsgType.BINARY:
                return found, True
            found.append(message.data)


def read_stream(simulation: Simulation, count: int | None = None) -> tuple[list[bytes], bool]:
    """`count`: the number of messages on a stream that stays open."""
    url = f"{simulation.relays[0]}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
    return asyncio.run(raw_messages(url, count))


def seq_of(message: bytes) -> int:
    return int(libipld.decode_dag_cbor_multi(message)[1]["seq"])


def test_stream_faults(simulator: Any) -> None:
    simulation = simulator(**CONFIG)
    simulation.writer(prebuild=30)

    only(simulation, "drop", every=10)
    messages, closed = read_stream(simulation)
    assert (len(messages), closed) == (9, True)
    only(simulation, "garbage", every=10)
    messages, closed = read_stream(simulation, 33)
    assert (len(messages), closed) == (33, False)
    assert sum(message[0] == 0xFF for message in messages) == 3
    only(simulation, "unknown_type", every=10)
    messages, _ = read_stream(simulation, 33)
    assert sum(libipld.decode_dag_cbor_multi(message)[0]["t"] == "#novelty" for message in messages) == 3
    only(simulation, "error_frame", every=10)
    messages, closed = read_stream(simulation)
    assert closed
    assert libipld.decode_dag_cbor_multi(messages[-1])[0] == {"op": -1}
    only(simulation, "silence", every=10)
    messages, closed = read_stream(simulation, 9)
    assert (len(messages), closed) == (9, False)
    fired = {"drop": 1, "garbage": 3, "unknown_type": 3, "error_frame": 1, "silence": 1}
    assert simulation.faults()["fired"] == fired
    only(simulation, "hostile", every=6)
    messages, _ = read_stream(simulation, 35)
    assert sum(len(message) > 1_000_000 for message in messages) == 2
    assert sum(b"\x81" * 996 in message for message in messages) == 3
    assert simulation.faults()["fired"] == fired | {"hostile": 5}


def test_relay_faults_of_the_sequence(simulator: Any) -> None:
    simulation = simulator(**CONFIG)
    only(simulation, "lost_commit", every=4)
    simulation.writer(prebuild=20)
    assert simulation.faults()["fired"] == {"lost_commit": 5}
    assert len(read_stream(simulation, 15)[0]) == 15
    simulation.set_faults(clear=True)
    healed = simulation.quiesce()["healed"]
    messages = read_stream(simulation, 15 + healed)[0]
    assert len(messages) == 15 + healed
    state = simulation.state()
    newest = {body["repo"]: body["rev"] for body in (libipld.decode_dag_cbor_multi(one)[1] for one in messages)}
    assert all(state[did].rev == rev for did, rev in newest.items())

    only(simulation, "duplicate", every=2)
    simulation.writer(prebuild=10)
    only(simulation, "seq_gap", every=5, gap=50)
    simulation.writer(prebuild=10)
    seqs = [seq_of(message) for message in read_stream(simulation, 15 + healed + 10 + 5 + 10)[0]]
    assert len(seqs) - len(set(seqs)) == 5
    assert sum(later - earlier == 51 for earlier, later in pairwise(seqs)) == 2

    before = len(seqs)
    only(simulation, "delay", every=3, hold=5)
    simulation.writer(prebuild=20)
    bodies = [libipld.decode_dag_cbor_multi(message)[1] for message in read_stream(simulation, before + 20)[0]][before:]
    revs = [body["rev"] for body in bodies]
    assert len(revs) == 20
    assert revs != sorted(revs)
    for did in {body["repo"] for body in bodies}:
        mine = [body["rev"] for body in bodies if body["repo"] == did]
        assert mine == sorted(mine)

    only(simulation, "relay_bad_sig", times=2)
    simulation.writer(prebuild=5)
    messages = read_stream(simulation, before + 20 + 7)[0][before + 20 :]
    revs = [libipld.decode_dag_cbor_multi(message)[1]["rev"] for message in messages]
    assert (len(revs), len(set(revs))) == (7, 5)
    fired = simulation.faults()["fired"]
    assert fired.keys() == {"lost_commit", "duplicate", "seq_gap", "delay", "relay_bad_sig"}


def account_events(simulation: Simulation, relay: int, count: int) -> list[tuple[int, str, bool, float]]:
    """(seq, DID, active, seconds by which its time is ahead) of the #account events among a relay's `count` messages."""
    url = f"{simulation.relays[relay]}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
    found = []
    messages, now = asyncio.run(raw_messages(url, count))[0], time.time()
    for message in messages:
        header, body = libipld.decode_dag_cbor_multi(message)
        if header["t"] == "#account":
            sent = datetime.fromisoformat(body["time"])
            found.append((body["seq"], body["did"], body["active"], sent.timestamp() - now))
    return found


def test_relay_repeats_an_old_account_event(simulator: Any) -> None:
    """One relay repeats the previous event with its original time and a new seq; the other does not."""
    simulation = simulator(**CONFIG, relays=2)
    only(simulation, "relay_old_account", host=1)
    did = next(iter(simulation.state()))
    simulation.op("takedown", did=did)
    assert simulation.fired("relay_old_account") == 0  # nothing to repeat
    simulation.op("activate", did=did)  # #account, #identity, #sync
    simulation.quiesce()
    assert simulation.fired("relay_old_account") == 1
    assert [active for _, _, active, _ in account_events(simulation, 0, 4)] == [False, True]
    taken, activated, again = account_events(simulation, 1, 5)
    assert (taken[2], activated[2], again[2]) == (False, True, False)
    assert again[0] > activated[0] > taken[0]
    assert again[3] == pytest.approx(taken[3], abs=0.05)


def test_a_pds_with_its_clock_ahead(simulator: Any) -> None:
    """Events of one PDS carry a later time, at every relay."""
    simulation = simulator(**CONFIG, relays=2, pdses=2)
    only(simulation, "pds_clock_ahead", host=1, seconds=240)
    for did in simulation.state():
        simulation.op("takedown", did=did)
    simulation.quiesce()
    ahead = {did for did, account in simulation.state().items() if account.pds == 1}
    assert simulation.fired("pds_clock_ahead") == len(ahead) > 0
    for relay in (0, 1):
        events = account_events(simulation, relay, 12)
        assert len(events) == 12
        assert {did for _, did, _, seconds in events if 200 < seconds <= 240} == ahead
        assert {did for _, did, _, seconds in events if seconds <= 0} == simulation.state().keys() - ahead


def test_a_relay_takes_an_account_down_without_its_pds(simulator: Any) -> None:
    """The relay's stream and list show it; the PDS and the other relay do not."""
    simulation = simulator(**CONFIG, relays=2)
    did = next(iter(simulation.state()))
    only(simulation, "pds_clock_ahead")
    simulation.op("deactivate", did=did)
    simulation.op("activate", did=did)
    simulation.op("relay_takedown", did=did, relay=0)

    def listed() -> list[str | None]:
        pages = [get(list_url(url, 100))["repos"] for url in simulation.relays]
        return [row.get("status") for page in pages for row in page if row["did"] == did]

    assert listed() == ["takendown", None]
    assert simulation.state()[did].active
    simulation.op("relay_restore", did=did, relay=0)
    assert listed() == [None, None]
    simulation.quiesce()
    events = account_events(simulation, 0, 6)
    assert [active for _, _, active, _ in events] == [False, True, False, True]
    assert [seconds > 200 for *_, seconds in events] == [True, True, False, False]
    assert len(account_events(simulation, 1, 4)) == 2


def test_labeler_faults(simulator: Any) -> None:
    simulation = simulator(**CONFIG, labels=5)
    url = f"{simulation.labelers[0]}/xrpc/com.atproto.label.subscribeLabels?cursor=0"
    truth = simulation.labels()

    def read(count: int | None) -> tuple[list[bytes], bool]:
        return asyncio.run(raw_messages(url, count))

    for name, count, closes in (
        ("label_drop", 2, True),
        ("label_error_frame", 3, True),
        ("label_garbage", 6, False),
        ("label_unknown_type", 6, False),
        ("label_hostile", 6, False),
        ("label_silence", 2, False),
    ):
        only(simulation, name, every=3)
        messages, closed = read(None if closes else count)
        assert (len(messages), closed) == (count, closes), name
    only(simulation, "label_bad_sig")
    simulation.op("label", uri="did:plc:x", val="a")
    only(simulation, "label_foreign_src")
    simulation.op("label", uri="did:plc:x", val="b")
    only(simulation, "label_giant")
    simulation.op("label", uri="did:plc:x", val="c")
    simulation.set_faults(clear=True)
    labels = [label for message in read(11)[0] for label in libipld.decode_dag_cbor_multi(message)[1]["labels"]]
    assert [label["val"] for label in labels][-6:] == ["forged", "a", "foreign", "b", "giant", "c"]
    assert len(labels[-2]["uri"]) > 8000
    assert len(simulation.labels()) == len(truth) + 3
    assert set(simulation.faults()["fired"]) == {name for name in NAMES if name.startswith("label_")}
