"""Keys of accounts while a directory is partly dead or limits our requests: the real resolver and identity table."""

from __future__ import annotations

import threading
import time
from itertools import product

import psycopg
import pytest

from connectors.identity.key_lookups import PLC_TRIES, THROTTLED
from connectors.identity.key_ring import KeyRing, KeyUnavailable
from connectors.runtime.stop import Stopping
from tests.identity.plc_directory import KEY, KNOWN, NEW, Directory, find
from tests.support.flow_process import wait_until


def know(database: str) -> None:
    """As one that was resolved yesterday."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.identity (did, signing_key) values (%s, 'did:key:zQ')", (KNOWN,))


@pytest.mark.parametrize(("health", "known"), [(200, True), (404, False)])
def test_a_lookup_waits_for_a_directory_that_is_down_behind_its_proxy(
    directory: Directory, ring: KeyRing[str | None], database: str, health: int, known: bool
) -> None:
    """N1: whatever its health page says. A commit refused for want of a key could be an account's last one."""
    directory.health, directory.dead = health, {KNOWN, NEW}
    if known:
        know(database)
    found: list[dict[str, str | KeyUnavailable | None]] = []
    thread = threading.Thread(target=lambda: found.append(find(ring, {NEW})), daemon=True)
    thread.start()
    wait_until(lambda: directory.asked[KNOWN if known else "_health"] or found)
    directory.dead = set()
    thread.join(60)
    assert found == [{NEW: f"did:key:{KEY}"}]


def test_one_did_without_an_answer_delays_no_other(
    directory: Directory, ring: KeyRing[str | None], database: str
) -> None:
    """The directory has a word for what it knows, so this one is not waited for."""
    know(database)
    directory.dead = {NEW}
    assert find(ring, {NEW}) == {NEW: KeyUnavailable.UNREACHABLE}
    assert (directory.asked[NEW], directory.asked[KNOWN]) == (PLC_TRIES, 1)


@pytest.mark.parametrize("retry_after", [None, "1"])
def test_a_lookup_waits_for_a_directory_that_limits_our_requests(
    directory: Directory, ring: KeyRing[str | None], caplog: pytest.LogCaptureFixture, retry_after: str | None
) -> None:
    """N1, G8: half of 400 true commits were refused for want of a key. Whoever is silent for another reason is still given up."""
    caplog.set_level("INFO")
    directory.rate, directory.retry_after, directory.dead = 0.0, retry_after, {NEW}
    dids = {f"did:plc:{letter}{other}" + "m" * 22 for letter in "abcdefgh" for other in "abcdefgh"}
    ring.ask(dids | {NEW})
    wait_until(lambda: ring.problem == THROTTLED)
    directory.rate = 20.0
    found = find(ring, dids | {NEW})
    assert found == {NEW: KeyUnavailable.UNREACHABLE} | dict.fromkeys(dids, f"did:key:{KEY}")
    assert directory.refused > 0
    assert ring.problem == ""
    limited = [record for record in caplog.records if "limits our requests" in record.message]
    assert len(limited) == 1  # not once for every DID


def test_a_deferred_lookup_counts_as_no_failure(
    directory: Directory, ring: KeyRing[str | None], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it happens to one DID, and whatever the directory says about others meanwhile."""
    monkeypatch.setattr("connectors.identity.directory_pace.SHORTEST_REST_SECONDS", 0.05)
    monkeypatch.setattr("connectors.identity.directory_pace.LONGEST_UNNAMED_SECONDS", 0.1)  # else they double to 100 s
    monkeypatch.setattr("connectors.identity.key_lookups.REFUSED_WAIT_SECONDS", 0.01)
    know(database)
    directory.retry_after, directory.puts_off = "0", {NEW: 3 * PLC_TRIES}
    assert find(ring, {NEW, "did:plc:" + "m" * 24})[NEW] == f"did:key:{KEY}"
    assert directory.asked[NEW] == 3 * PLC_TRIES + 1


def test_a_directory_that_limits_us_for_long_does_not_hold_up_a_stop(
    directory: Directory, ring: KeyRing[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr("connectors.identity.key_lookups.STOP", stop)
    directory.rate, directory.retry_after = 0.0, "300"

    def stop_when_refused() -> None:
        wait_until(lambda: directory.refused)
        stop.set()

    threading.Thread(target=stop_when_refused, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(Stopping):
        find(ring, {NEW, KNOWN})
    assert directory.refused > 0
    assert time.monotonic() - started < 60


def test_a_did_that_the_directory_refuses_for_ever_ends_while_others_are_answered(
    directory: Directory, ring: KeyRing[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: one DID that is answered with 429 for ever held the firehose for ever."""
    monkeypatch.setattr("connectors.identity.directory_pace.SHORTEST_REST_SECONDS", 0.05)
    monkeypatch.setattr("connectors.identity.key_lookups.REFUSED_WAIT_SECONDS", 0.01)
    directory.retry_after, directory.puts_off = "0", {NEW: 1_000_000}
    ring.ask({NEW})
    others = ("did:plc:" + "".join(letters) * 6 for letters in product("abcdefghijkl", repeat=4))
    found: dict[str, str | KeyUnavailable | None] = {}
    while NEW not in found:
        if directory.asked[NEW] > PLC_TRIES:
            monkeypatch.setattr("connectors.identity.key_lookups.PLC_SECONDS", 0.0)  # its time is over
        other = next(others)
        ring.ask({other})  # the directory is well
        while other not in found:
            ring.wait()
            found |= {did: key.value for did, key in ring.answers().items()}
    assert found.pop(NEW) is KeyUnavailable.UNREACHABLE
    assert set(found.values()) == {f"did:key:{KEY}"}
    assert directory.asked[NEW] > PLC_TRIES
