"""The flows as processes, on a relay and a labeler that send what hurts: nobody else waits, nothing grows, nothing restarts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from protocol.syntax import tid_from_micros
from tests.flows.firehose.hostile_frames import item_bomb, many_names, nested_field, nested_header
from tests.flows.firehose.hostile_relay import HostileRelay
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import FlowProcess, wait_until
from tests.support.simulation import Simulation
from tests.support.tiny_repo import Key, car, sample

Start = Callable[..., Simulation]
SIZE: dict[str, Any] = {"repos": 30, "records_per_repo": 2, "pdses": 1}
ATTACKER, NEIGHBOUR = f"did:plc:{'a' * 24}", f"did:plc:{'b' * 24}"
MOST_MB = 400


def megabytes(flow: FlowProcess) -> int:
    return int(psutil.Process(flow.process.pid).memory_info().rss) >> 20


@pytest.fixture
def relay() -> Iterator[HostileRelay]:
    one = HostileRelay()
    yield one
    one.close()


def test_a_hostile_relay_costs_the_firehose_neither_memory_nor_its_other_events(
    relay: HostileRelay, flow_bed: FlowBed
) -> None:
    """H2, H3: 60 validly signed commits of 98 KB that name one record 200 times, nested headers and
    bombs of items, and events of a neighbour among them."""
    key = Key()
    for did in (ATTACKER, NEIGHBOUR):
        relay.account(did, key)
    begin = time.time_ns() // 1000 - 3_600_000_000

    def send(data: bytes) -> None:
        relay.frames.append((len(relay.frames) + 1, data))

    def neighbour(number: int) -> None:
        repo = sample(number + 1, key=key, did=NEIGHBOUR, rev=tid_from_micros(begin + number))
        relay.send("#sync", sync_of(repo))

    for number in range(60):
        rev = tid_from_micros(begin + number)
        send(many_names(200, "\x01" * 62_000, key, ATTACKER, seq=len(relay.frames) + 1, rev=rev)[1])
        if number % 6 == 0:
            neighbour(number // 6)
    for bad in (nested_header("op"), nested_header("t"), nested_field("#identity", {"seq": 1}, "did")):
        send(bad)
    for size in (4_900_000, 8_000_000):
        send(item_bomb(size, "#commit", "ops"))
        send(item_bomb(size))
    sent_at = time.monotonic()
    flow = flow_bed.start("firehose", plc=relay.url, relays=[relay.url], firehose_start="oldest")
    peak = 0

    def arrived(count: int) -> bool:
        nonlocal peak
        assert flow.running, flow.log_file.read_text()[-3000:]
        peak = max(peak, megabytes(flow))
        return sum(key == NEIGHBOUR for key, _ in flow_bed.messages("firehose_live")) >= count

    wait_until(lambda: arrived(10))
    begun = time.monotonic()
    neighbour(11)
    wait_until(lambda: arrived(11))
    assert time.monotonic() - begun < 15  # behind four bombs, each of which took 36 s
    letters = wait_until(lambda: got if len(got := flow_bed.messages("dead_letter")) >= 67 else None)
    reasons = Counter(value["reason"] for _, value in letters)
    assert reasons == {"message_too_large": 60, "undecodable": 3, "too_large": 4}

    def types() -> list[str]:
        return [value["type"] for did, value in flow_bed.messages("firehose_live") if did == ATTACKER]

    # one batch, two topics: these messages may be readable later than the dead letters
    wait_until(lambda: len(types()) >= 60)
    assert types() == ["sync"] * 60
    assert peak < MOST_MB, f"{peak} MB after {time.monotonic() - sent_at:.0f} s"
    assert flow.terminate() == 0


def sync_of(repo: Any) -> dict[str, Any]:
    blocks = {repo.commit: repo.blocks[repo.commit]}
    return {"did": repo.did, "rev": repo.rev, "blocks": car(repo.commit, blocks), "time": "2026-01-01T00:00:00.000Z"}


def test_a_hostile_labeler_ends_as_dead_letters_and_others_labels_arrive(simulator: Start, flow_bed: FlowBed) -> None:
    """H3: nested frames, bombs of items, labels too large for their key."""
    network = simulator(**SIZE, labelers=2, labels=60)
    network.set_faults(label_hostile={"every": 4, "host": 0}, label_giant={"every": 2, "host": 0})
    hostile, other = network.labelers
    flow = flow_bed.start("labels", plc=network.plc, labelers=network.labelers)
    for number in range(6):
        network.op("label", uri=f"did:plc:{number:024}", val="late")

    def letters() -> Counter[str]:
        return Counter(value["reason"] for _, value in flow_bed.messages("dead_letter") if hostile in value["topic"])

    wait_until(
        lambda: (
            flow.running and letters()["undecodable"] > 2 and letters()["too_large"] > 1 and letters()["bad_uri"] > 1
        )
    )
    values = wait_until(lambda: got if len(got := _late(flow_bed)) == 6 else None)
    assert set(values) == {f"did:plc:{number:024}" for number in range(6)}
    # the late ones came from one of both
    wait_until(lambda: {value["relay"] for _, value in flow_bed.messages("label_live")} == {hostile, other})
    wait_until(lambda: network.fired("label_hostile") > 5 and network.fired("label_giant") > 1)
    assert {value["topic"] for _, value in flow_bed.messages("dead_letter")} == {f"labels {hostile}"}
    assert megabytes(flow) < MOST_MB
    assert flow.terminate() == 0


def _late(bed: FlowBed) -> list[str]:
    return [value["uri"] for _, value in bed.messages("label_live") if value["val"] == "late"]
