"""The mirror against the official PDS, PLC directory and Ozone labeler: every record of every account, and every label.

One network and one mirror; the tests follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.running_mirror import CATCH_UP_SECONDS, Mirror, record_rows, repo_rows, until
from tests.support.official.servers import OfficialNetwork, operation, start_official_network
from tests.support.postgres import data_folder, fresh_database

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

DATE = {"createdAt": "2024-02-29T12:00:00.000Z"}
POST = "app.bsky.feed.post"
CUSTOM = "com.example.sluice.trial"
TIDS = [f"3jzfcijpj2z{letter}a" for letter in "abcdefgh"]


def count(truth: dict[str, dict[str, Any]]) -> int:
    return sum(len(account.get("records", ())) for account in truth.values())


COLUMNS = ("src", "uri", "cid", "val", "neg", "cts", "exp")
Labels = set[tuple[Any, ...]]


@pytest.fixture(scope="module")
def network(
    official_modules: Path, postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OfficialNetwork]:
    """Ten accounts, and a labeler."""
    folder = tmp_path_factory.mktemp("official") / "network"
    with fresh_database(postgres) as ozone:
        network = start_official_network(official_modules, folder, ozone, accounts=10, posts=6)
        try:
            yield network
        finally:
            network.end()


@pytest.fixture(scope="module")
def mirror(network: OfficialNetwork) -> Iterator[Mirror]:
    """It runs only when a test says so."""
    with data_folder() as folder:
        yield Mirror(folder / "mirror", network)


def test_until_synced_mirrors_every_record(network: OfficialNetwork, mirror: Mirror) -> None:
    """B1, B3, B5, G2, G3: one command, exit 0, one line; and once more, after writes while it was down."""
    labels = write_labels(network)
    *_, hidden = network.truth()
    network.order("deactivate", did=hidden)
    truth = network.truth()
    assert not truth[hidden]["active"]
    assert len({path.split("/")[0] for account in truth.values() for path in account.get("records", ())}) >= 15

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
    assert labels_of_the_mirror(mirror) == labels


def test_a_running_mirror_follows_the_network(network: OfficialNetwork, mirror: Mirror) -> None:
    """B4, B5, N3, G1, G4: live writes of every kind, labels and their negations, handles, accounts that hide, come back,
    arrive and go; then SIGTERM, and what happens while it is down is caught up by the next run."""
    writer, renamed, paused, banned, gone, *others = network.truth()
    with mirror.running():
        mirror.await_equal(network.truth())
        labels = change_labels(network)
        assert until(lambda: labels_of_the_mirror(mirror) == labels, CATCH_UP_SECONDS), mirror.last_words()

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
        network.order("burst", dids=crowd, n=200)
        truth = network.truth()
        assert all(account["active"] for account in truth.values())
        seconds = mirror.await_equal(truth)
        print(f"equal {seconds:.1f} s after a burst of 200 commits; {count(truth)} records")

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


def labels_of_the_labeler(network: OfficialNetwork) -> Labels:
    return {tuple(label[name] for name in COLUMNS) for label in network.order("labels")}


def labels_of_the_mirror(mirror: Mirror) -> Labels:
    with mirror.database() as connection:
        return set(connection.execute(f"SELECT {', '.join(COLUMNS)} FROM sluice.label").fetchall())


def labelled(network: OfficialNetwork) -> tuple[dict[str, str], str, str]:
    """What labels are about: the oldest post of an account ({uri, cid}), and the DIDs of two others."""
    truth = network.truth()
    one, two, three = [*truth][5:8]
    path, cid = min(found for found in truth[one]["records"].items() if found[0].startswith(f"{POST}/"))
    return {"uri": f"at://{one}/{path}", "cid": cid}, two, three


def write_labels(network: OfficialNetwork) -> Labels:
    """Labels on an account and on a record, one of them taken back; the labeler's table."""
    record, two, _ = labelled(network)
    network.order("label", did=two, create=["spam", "rude"])
    network.order("label", **record, create=["porn"])
    network.order("label", did=two, negate=["rude"])
    wanted = labels_of_the_labeler(network)
    values = {(uri, value, negated) for _, uri, _, value, negated, *_ in wanted}
    assert values == {(two, "spam", False), (two, "rude", True), (record["uri"], "porn", False)}
    return wanted


def change_labels(network: OfficialNetwork) -> Labels:
    """A new label, one that is given again, and the others taken back; the labeler's table."""
    record, two, three = labelled(network)
    network.order("label", did=three, create=["!hide"])
    network.order("label", did=two, negate=["spam"], create=["rude"])
    network.order("label", **record, negate=["porn"])
    wanted = labels_of_the_labeler(network)
    assert {(uri, value, negated) for _, uri, _, value, negated, *_ in wanted} == {
        (two, "spam", True),
        (two, "rude", False),
        (three, "!hide", False),
        (record["uri"], "porn", True),
    }
    assert {source for source, *_ in wanted} == {network.labeler_did}
    return wanted
