"""Every fault has the effect that its description states, and is counted when it fires."""

from __future__ import annotations

import asyncio
import json
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
from cbrrr import CID, decode_dag_cbor

from simulator.faults.faults import NAMES, Faults, UnknownFaultError
from simulator.faults.hostile_lists import KINDS
from simulator.repo.odd_leaves import KINDS as ODD_LEAVES
from tests.simulator.read_simulated import SimulatedReader, check_car, get, read_car, refused
from tests.support.simulation import Simulation

CONFIG = {"repos": 12, "records_per_repo": 12, "inactive_share": 0.0, "churn": 0.0}


def list_url(base: str, limit: int, cursor: str = "") -> str:
    return f"{base}/xrpc/com.atproto.sync.listRepos?limit={limit}" + (f"&cursor={cursor}" if cursor else "")


def only(simulation: Simulation, name: str, **parameters: Any) -> None:
    simulation.set_faults(clear=True, **{name: {"per_did": 0, **parameters}})


def test_unknown_faults_are_rejected(simulator: Any) -> None:
    with pytest.raises(UnknownFaultError, match="pds_nap"):
        Faults(1).switch({"pds_nap": 1.0})
    with pytest.raises(RuntimeError, match="exit code 2"):
        simulator(faults={"pds_nap": 1.0})


def test_a_fault_obeys_its_parameters() -> None:
    faults = Faults(1)
    faults.switch({"pds_500": {"p": 1.0, "times": 3, "host": 1, "per_did": 2}, "drop": {"every": 5}, "delay": 0.25})
    assert not faults.fire("pds_500", host=0, did="a")
    assert [bool(faults.fire("pds_500", host=1, did=did)) for did in "aaabc"] == [True, True, False, True, False]
    assert [bool(faults.fire("drop")) for _ in range(10)] == [False] * 4 + [True] + [False] * 4 + [True]
    assert 180 < sum(bool(faults.fire("delay")) for _ in range(1000)) < 320
    assert faults.counts["pds_500"] == 3
    faults.switch({"pds_500": None, "drop": 0})
    assert set(faults.active()) == {"delay"}


def test_lists_fail_only_on_pages_with_failing_positions(simulator: Any) -> None:
    simulation = simulator(**CONFIG, pdses=1)
    relay, pds = simulation.relays[0], simulation.pdses[0]
    only(simulation, "relay_list_500", **{"from": 7, "to": 8})
    assert get(list_url(relay, 6))["cursor"] == "6"
    assert refused(list_url(relay, 7)) == (500, "InternalServerError")
    assert refused(list_url(relay, 3, "6")) == (500, "InternalServerError")
    assert len(get(list_url(relay, 10, "8"))["repos"]) == 4
    only(simulation, "relay_list_500", **{"from": 1, "to": 1})
    assert refused(list_url(relay, 1)) == (500, "InternalServerError")
    only(simulation, "relay_list_429")
    assert refused(list_url(relay, 1)) == (429, "RateLimitExceeded")
    only(simulation, "list_slow", seconds=0.2)
    started = time.monotonic()
    get(list_url(relay, 1))
    get(list_url(pds, 1))
    assert time.monotonic() - started >= 0.4
    only(simulation, "relay_empty_head")
    assert {row["rev"] for row in get(list_url(relay, 5))["repos"]} == {""}
    only(simulation, "pds_list_500", **{"from": 3, "to": 3})
    cursor = get(list_url(pds, 2))["cursor"]
    assert refused(list_url(pds, 2, cursor)) == (500, "InternalServerError")
    fired = simulation.faults()["fired"]
    assert fired == {
        "relay_list_500": 3, "relay_list_429": 1, "list_slow": 2, "relay_empty_head": 5, "pds_list_500": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ODD_LEAVES)
def test_odd_leaves_are_in_the_expected_state_and_in_the_repo(simulator: Any, kind: str) -> None:
    """The writer creates them when a fault fires, an operation at once. Events announce them, or #sync if they are too large."""
    simulation = simulator(**CONFIG)
    reader = SimulatedReader(simulation)
    before = simulation.state()
    only(simulation, kind, times=1)
    while not simulation.fired(kind):
        simulation.writer(steps=1)
    simulation.set_faults(clear=True)
    did = next(did for did, one in simulation.state().items() if set(one.records) - set(before[did].records))
    created = simulation.op("odd_leaf", did=did, kind=kind)["paths"]
    cids = [simulation.state()[did].records[path] for path in created]
    car = reader.car(did)
    assert len(created) == (20 if kind == "leaf_repeated" else 1)
    assert len(set(cids)) == 1
    assert CID.decode(cids[0]).cid_bytes in car
    prefix = {"leaf_raw": "bafkrei", "leaf_foreign": "bafyrgq"}.get(kind, "bafyrei")
    assert cids[0].startswith(prefix)
    assert (len(car) > 3 << 20) == (kind == "leaf_large")
    if kind == "leaf_unordered":
        _, blocks = read_car(car)
        with pytest.raises(ValueError, match="key ordering"):
            decode_dag_cbor(blocks[CID.decode(cids[0]).cid_bytes])


def test_getrepo_faults(simulator: Any) -> None:
    simulation = simulator(**CONFIG)
    reader = SimulatedReader(simulation)
    did = next(iter(simulation.state()))
    url, key = f"{reader.pds(did)}/xrpc/com.atproto.sync.getRepo?did={did}", reader.key(did)

    only(simulation, "pds_500")
    assert refused(url) == (500, "InternalServerError")
    only(simulation, "pds_429", retry_after=7)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (429, "7")
    only(simulation, "pds_429", retry_after=None, html=True)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    assert caught.value.headers.get_content_type() == "text/html"
    assert caught.value.headers["Retry-After"] is None

    only(simulation, "pds_escapes")
    with pytest.raises(urllib.error.HTTPError) as caught:
        reader.car(did)
    assert "\x1b]0;owned\x07\r\n" in json.loads(caught.value.read())["message"]

    only(simulation, "pds_truncate", mode="mid")
    with pytest.raises(EOFError):
        read_car(reader.car(did))
    only(simulation, "pds_truncate", mode="boundary")
    read_car(reader.car(did))  # parses cleanly
    with pytest.raises(KeyError):
        check_car(reader.car(did), did, key)
    only(simulation, "pds_tamper")
    with pytest.raises(AssertionError, match="does not hash"):
        check_car(reader.car(did), did, key)
    only(simulation, "pds_bad_sig")
    with pytest.raises(AssertionError, match="signature"):
        check_car(reader.car(did), did, key)
    only(simulation, "pds_wrong_did")
    with pytest.raises(AssertionError, match="another account"):
        check_car(reader.car(did), did, key)

    only(simulation, "pds_html")
    with urllib.request.urlopen(url) as answer:
        assert (answer.status, answer.headers.get_content_type()) == (200, "text/html")

    only(simulation, "pds_hang", seconds=30)
    while not simulation.fired("pds_hang"):  # a client that disconnects before the handler runs is not counted
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(url, timeout=0.5)
    only(simulation, "pds_slow", seconds=0.3)
    started = time.monotonic()
    check_car(reader.car(did), did, key)
    assert time.monotonic() - started >= 0.3
    only(simulation, "pds_trickle", chunk=1500, interval=0.05)
    started = time.monotonic()
    check_car(reader.car(did), did, key)
    assert time.monotonic() - started > 0.1

    simulation.set_faults(clear=True)
    old = reader.repo(did)
    simulation.op("create", did=did)
    only(simulation, "pds_stale")
    assert reader.repo(did) == old
    simulation.set_faults(clear=True)
    assert reader.repo(did).rev > old.rev
    fired = simulation.faults()["fired"]
    assert set(fired) == {name for name in NAMES if name.startswith("pds_")} - {"pds_list_500", "pds_clock_ahead"}
    assert fired["pds_429"] == 2


SIGNS = {
    "long_cursor": b"x" * 2048,
    "invalid_utf8": b"\xff\xfe",
    "null": b"null",
    "huge": b"[]," * 2_700_000,
    "deep": b"[" * 100_000,
    "escapes": b"u001b]0;owned",
    "no_json": b"<html>",
}


def raw(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as err:
        return bytes(err.read())


def test_hostile_lists(simulator: Any) -> None:
    """Every kind of malformed page, and cursors that form a cycle."""
    simulation = simulator(**CONFIG, pdses=1)
    relay, pds = simulation.relays[0], simulation.pdses[0]
    hosts = f"{relay}/xrpc/com.atproto.sync.listHosts"
    for name, urls in (("list_malformed", [list_url(relay, 5), list_url(pds, 5)]), ("hosts_malformed", [hosts])):
        for kind in KINDS:
            only(simulation, name, kind=kind)
            for url in urls:
                assert SIGNS[kind] in raw(url)
        assert simulation.fired(name) == len(KINDS) * len(urls)
    for name, url in (("list_cycle", list_url(relay, 5)), ("list_cycle", list_url(pds, 5)), ("hosts_cycle", hosts)):
        only(simulation, name)
        mark = "&" if "?" in url else "?"
        first = get(url)["cursor"]
        second = get(f"{url}{mark}cursor={first}")["cursor"]
        assert get(f"{url}{mark}cursor={second}")["cursor"] == first != second
    assert (simulation.fired("list_cycle"), simulation.fired("hosts_cycle")) == (6, 3)
    only(simulation, "list_short", most=2)
    assert len(get(list_url(relay, 5))["repos"]) == 2
    assert simulation.fired("list_short") == 1


def test_a_repo_may_be_redirected(simulator: Any) -> None:
    simulation = simulator(**CONFIG, pdses=2)
    did, account = next(iter(simulation.state().items()))
    other = 1 - account.pds
    only(simulation, "repo_redirect", to=other)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{simulation.pdses[account.pds]}/xrpc/com.atproto.sync.getRepo?did={did}")
    assert caught.value.url.startswith(simulation.pdses[other])
    assert simulation.fired("repo_redirect") == 1


def test_plc_faults(simulator: Any) -> None:
    simulation = simulator(**CONFIG)
    did = next(iter(simulation.state()))
    only(simulation, "plc_500")
    with pytest.raises(urllib.error.HTTPError):
        get(f"{simulation.plc}/{did}")
    only(simulation, "plc_plain_404", status=410)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{simulation.plc}/{did}")
    assert (caught.value.code, caught.value.headers["Content-Type"]) == (410, "text/plain; charset=utf-8")
    only(simulation, "plc_other_did")
    assert get(f"{simulation.plc}/{did}")["id"] != did
    only(simulation, "plc_slow", seconds=0.3)
    started = time.monotonic()
    get(f"{simulation.plc}/{did}")
    assert time.monotonic() - started >= 0.3
    only(simulation, "plc_429", rate=0, retry_after=7)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{simulation.plc}/{did}")
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (429, "7")
    only(simulation, "plc_429", rate=1000)
    time.sleep(0.1)
    get(f"{simulation.plc}/{did}")
    assert simulation.faults()["fired"] == {name: 1 for name in NAMES if name.startswith("plc_")}
    assert refused_plain(f"{simulation.plc}/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa") == 404


def test_hosts_of_did_web_accounts(simulator: Any) -> None:
    simulation = simulator(**CONFIG, web_accounts=2)
    dids = list(simulation.state())
    assert [did.startswith("did:web:") for did in dids[-3:]] == [False, True, True]
    did, other = dids[-1], dids[-2]
    url = "http://" + urllib.parse.unquote(did.removeprefix("did:web:")) + "/.well-known/did.json"
    assert get(url)["id"] == did
    assert refused_plain(f"{simulation.plc}/{did}") == 404
    only(simulation, "did_web_429", did=did, retry_after=7)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url)
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (429, "7")
    only(simulation, "did_web_hang", did=other)
    assert get(url)["id"] == did
    only(simulation, "did_web_hang", did=did)
    while not simulation.fired("did_web_hang"):  # a client that disconnects before the handler runs is not counted
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(url, timeout=0.5)
    assert simulation.fired("did_web_429") == 1


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


def refused_plain(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    return caught.value.code


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
    for message in asyncio.run(raw_messages(url, count))[0]:
        header, body = libipld.decode_dag_cbor_multi(message)
        if header["t"] == "#account":
            sent = datetime.fromisoformat(body["time"])
            found.append((body["seq"], body["did"], body["active"], sent.timestamp() - time.time()))
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


def test_requests_are_counted_in_a_sliding_window_and_limited(simulator: Any) -> None:
    simulation = simulator(**CONFIG, pdses=1)
    url = f"{simulation.pdses[0]}/xrpc/com.atproto.server.describeServer"
    for _ in range(5):
        get(url)
    assert simulation.faults()["hosts"][simulation.pdses[0]]["max_in_window"] == 5
    simulation.limits(limit=5, seconds=600, reset=True)
    for _ in range(5):
        get(url)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    assert (caught.value.code, json.load(caught.value)["error"]) == (429, "RateLimitExceeded")
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert caught.value.headers["RateLimit-Limit"] == "5"
    assert caught.value.headers["RateLimit-Remaining"] == "0"
    simulation.limits(seconds=0.1)
    time.sleep(0.15)  # the five requests leave the window
    get(url)
    counted = simulation.faults()["hosts"][simulation.pdses[0]]
    assert counted["limit"] == 5
    assert counted["max_in_window"] >= 6, "the refused request was sent, and counts"
    assert counted["total"] - counted["refused"] == 6
