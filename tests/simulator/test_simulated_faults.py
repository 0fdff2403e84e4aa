"""Every fault has the effect that its description states, and is counted when it fires."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest
from cbrrr import CID, decode_dag_cbor

from simulator.faults.faults import NAMES, Faults, UnknownFaultError
from simulator.faults.hostile_lists import KINDS
from simulator.repo.odd_leaves import KINDS as ODD_LEAVES
from tests.simulator.read_simulated import (
    CONFIG,
    SimulatedReader,
    check_car,
    get,
    list_url,
    only,
    read_car,
    refused,
    refused_plain,
)


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


def test_requests_are_counted_in_a_sliding_window_and_limited(simulator: Any) -> None:
    simulation = simulator(**CONFIG, pdses=1)
    url = f"{simulation.pdses[0]}/xrpc/_health"
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
