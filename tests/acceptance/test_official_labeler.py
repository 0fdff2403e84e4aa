"""The mirror against the official Ozone labeler: labels and their negations, those from before and those that come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.running_mirror import CATCH_UP_SECONDS, Mirror, until
from tests.support.official.servers import OfficialNetwork

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

COLUMNS = ("src", "uri", "cid", "val", "neg", "cts", "exp")
Labels = set[tuple[Any, ...]]


def labels_of_the_labeler(network: OfficialNetwork) -> Labels:
    return {tuple(label[name] for name in COLUMNS) for label in network.order("labels")}


def labels_of_the_mirror(mirror: Mirror) -> Labels:
    with mirror.database() as connection:
        return set(connection.execute(f"SELECT {', '.join(COLUMNS)} FROM sluice.label").fetchall())


def test_labels_and_negations_of_ozone_are_mirrored(
    official_network: Callable[..., OfficialNetwork], blank_database: str, tmp_path: Path
) -> None:
    """B5, N3: beside the repos, one pipeline: the labeler's whole history, then what it says while the mirror runs; its signatures are valid."""
    network = official_network(ozone=blank_database, accounts=3, posts=2)
    (one, account), (two, _), (three, _) = network.truth().items()
    path, cid = next((path, cid) for path, cid in account["records"].items() if path.startswith("app.bsky.feed.post/"))
    record = {"uri": f"at://{one}/{path}", "cid": cid}
    network.order("label", did=two, create=["spam", "rude"])
    network.order("label", **record, create=["porn"])
    network.order("label", did=two, negate=["rude"])
    wanted = labels_of_the_labeler(network)
    values = {(uri, value, negated) for _, uri, _, value, negated, *_ in wanted}
    assert values == {(two, "spam", False), (two, "rude", True), (record["uri"], "porn", False)}

    mirror = Mirror(tmp_path / "mirror", network)
    with mirror.running():
        until(lambda: labels_of_the_mirror(mirror) == wanted, CATCH_UP_SECONDS)
        assert labels_of_the_mirror(mirror) == wanted, mirror.last_words()
        network.order("label", did=three, create=["!hide"])
        network.order("label", did=two, negate=["spam"], create=["rude"])  # taken back; and given again
        network.order("label", **record, negate=["porn"])
        wanted = labels_of_the_labeler(network)
        assert {(uri, value, negated) for _, uri, _, value, negated, *_ in wanted} == {
            (two, "spam", True),
            (two, "rude", False),
            (three, "!hide", False),
            (record["uri"], "porn", True),
        }
        until(lambda: labels_of_the_mirror(mirror) == wanted, CATCH_UP_SECONDS)
        assert labels_of_the_mirror(mirror) == wanted, mirror.last_words()
        assert {source for source, *_ in wanted} == {network.labeler_did}
        mirror.await_equal(network.truth())
