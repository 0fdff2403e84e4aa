"""The mirror against the official PDS and PLC directory: every record of every account, by path and CID."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.running_mirror import Mirror, record_rows, repo_rows
from tests.support.official.servers import OfficialNetwork, operation

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

DATE = {"createdAt": "2024-02-29T12:00:00.000Z"}
POST = "app.bsky.feed.post"
CUSTOM = "com.example.sluice.trial"
TIDS = [f"3jzfcijpj2z{letter}a" for letter in "abcdefgh"]


def count(truth: dict[str, dict[str, Any]]) -> int:
    return sum(len(account.get("records", ())) for account in truth.values())


def test_until_synced_mirrors_every_record(official_network: Callable[..., OfficialNetwork], tmp_path: Path) -> None:
    """B1, B3, G2, G3: one command, exit 0, one line; and once more, after writes while it was down."""
    network = official_network(accounts=12, posts=8)
    *_, hidden = network.truth()
    network.order("deactivate", did=hidden)
    truth = network.truth()
    assert not truth[hidden]["active"]
    assert len({path.split("/")[0] for account in truth.values() for path in account.get("records", ())}) >= 15

    mirror = Mirror(tmp_path / "mirror", network)
    totals = mirror.sync()
    assert totals["records"] == count(truth)
    assert totals["repos"]["sync"] == len(truth) - 1
    assert totals["dead_letters"] == 0
    mirror.assert_equals(truth)

    # nobody wrote while it ran, so its relay has shown it no sequence number; what follows is still not lost
    network.order("burst", dids=[did for did in truth if did != hidden], n=30)
    network.order("activate", did=hidden)
    truth = network.truth()
    assert mirror.sync()["records"] == count(truth)
    mirror.assert_equals(truth)


def test_a_running_mirror_follows_the_network(official_network: Callable[..., OfficialNetwork], tmp_path: Path) -> None:
    """B4, G1, G4: live writes of every kind, handles, accounts that hide, come back, arrive and go; then SIGTERM,
    and what happens while it is down is caught up by the next run."""
    network = official_network(accounts=10, posts=5)
    writer, renamed, paused, banned, gone, *others = network.truth()
    mirror = Mirror(tmp_path / "mirror", network)
    with mirror.running():
        mirror.await_equal(network.truth())

        write_in_every_way(network, writer)
        network.order("handle", did=renamed, handle="renamed.test")
        kept = network.truth()[paused]["records"]
        network.order("deactivate", did=paused)
        network.order("takedown", did=banned, applied=True)
        network.order("delete_account", did=gone)
        arrived = network.order("account", handle="arrived.test")["did"]
        truth = network.truth()
        assert (truth[renamed]["handle"], truth[paused]["status"]) == ("renamed.test", "deactivated")
        assert truth[banned]["status"] == "takendown"
        assert gone not in truth
        assert truth[arrived]["records"]
        mirror.await_equal(truth)
        with mirror.database() as connection:
            repos, records = repo_rows(connection), record_rows(connection)
        assert records[paused] == kept, "a deactivated account's records are hidden, not removed"
        assert (repos[gone]["active"], repos[gone]["status"]) == (False, "deleted")
        assert gone not in records

        network.order("activate", did=paused)
        network.order("takedown", did=banned, applied=False)
        crowd = [writer, renamed, paused, banned, arrived, *others]
        network.order("burst", dids=crowd, n=400)
        truth = network.truth()
        assert all(account["active"] for account in truth.values())
        seconds = mirror.await_equal(truth)
        print(f"equal {seconds:.1f} s after a burst of 400 commits; {count(truth)} records")

    write_in_every_way(network, others[0])
    network.order("delete_account", did=banned)
    network.order("deactivate", did=paused)
    network.order("handle", did=renamed, handle="again.test")
    network.order("account", handle="late.test")
    network.order("burst", dids=[writer, renamed, arrived, *others], n=60)
    truth = network.truth()
    mirror.sync()
    mirror.assert_equals(truth)


def write_in_every_way(network: OfficialNetwork, did: str) -> None:
    """Commits of one operation and of many; a path that comes, changes, goes and comes again."""
    for tid in TIDS[:4]:
        network.write(did, "create", f"{POST}/{tid}", text="created live", **DATE)
    network.write(did, "update", f"{POST}/{TIDS[0]}", text="changed live", **DATE)
    network.write(did, "delete", f"{POST}/{TIDS[1]}")
    network.write(did, "delete", f"{POST}/{TIDS[2]}")
    network.write(did, "create", f"{POST}/{TIDS[2]}", text="back again", **DATE)
    network.write(did, "update", "app.bsky.actor.profile/self", displayName="live \x00 name \\u0000")
    network.write(did, "create", f"{CUSTOM}/live", bytes={"$bytes": "AP9/"}, big=2**53 - 1)
    network.write_together(
        did,
        operation("create", f"{POST}/{TIDS[4]}", text="together", **DATE),
        operation("update", f"{POST}/{TIDS[0]}", text="changed together", **DATE),
        operation("delete", f"{POST}/{TIDS[3]}"),
        *(operation("create", f"{CUSTOM}/many-{number}", number=number) for number in range(150)),
    )
    network.write_together(did, *(operation("delete", f"{CUSTOM}/many-{number}") for number in range(75)))
