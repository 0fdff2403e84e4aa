"""Commits too big for their frame and without their block: one question to the PDS, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from connectors.atproto.repo_lookup import AuditNetwork
from connectors.postgres.repo_queue import RepoQueue
from control.tasks import big_commits, dead_letter_retry
from control.tasks.big_commits import OLDEST_SECONDS, ROUND_DIDS, YOUNGEST_SECONDS, BigCommits
from control.tasks.storms import Storms
from schemas.settings import Settings
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation

OLD_REV = "2222222222222"
NEW_REV = "7zzzzzzzzzzzz"
NOT_CONFIRMED = ": its PDS did not confirm it"


class Bed:
    """Repos of a simulated network in the tables, and letters about them."""

    def __init__(self, network: Simulation, settings: Settings, db: psycopg.Connection[Any], looks: BigCommits) -> None:
        self.network, self.settings, self.db, self.looks = network, settings, db, looks
        self.truth = network.state()
        self.dids = list(self.truth)

    def repo(self, did: str, rev: str, *, phase: str = "sync") -> str:
        self.db.execute(
            "insert into sluice.repo (did, phase, attempt, rev, data, commit) values (%s, %s, 1, %s, 'd', 'c')",
            (did, phase, rev),
        )
        return did

    def letter(self, did: str, rev: str = NEW_REV, age: float = 60.0, reason: str = "too_big_no_block") -> int:
        """The offset of a new open letter."""
        (offset,) = self.db.execute(
            "insert into sluice.dead_letter (part, log_offset, topic, did, reason, error, noticed_at)"
            " select 0, count(*), 'firehose https://relay.test', %s, %s, %s, now() - make_interval(secs => %s)"
            " from sluice.dead_letter returning log_offset",
            (did, reason, rev, age),
        ).fetchone() or (0,)
        return int(offset)

    def letters(self) -> list[tuple[str, str]]:
        return self.db.execute("select state, error from sluice.dead_letter order by log_offset").fetchall()

    def listed(self) -> dict[str, str]:
        rows = self.db.execute("select did, listed_rev from sluice.repo where listed_since is not null")
        return dict(rows.fetchall())


@pytest.fixture
def bed(simulator: Callable[..., Simulation], database: str) -> Iterator[Bed]:
    network = simulator(seed=3, repos=40, records_per_repo=1, labelers=0, pdses=1, inactive_share=0.0)
    settings = Settings(database=database, plc=network.plc, allow_private_hosts=True)
    looks = BigCommits(settings)
    with psycopg.connect(database, autocommit=True) as db:
        yield Bed(network, settings, db, looks)
    looks.close()


def test_the_pds_is_asked_once_and_its_rev_takes_the_path_of_a_listed_one(bed: Bed) -> None:
    """H7: what the PDS confirms becomes a lost event after the grace, and a storm of those is held."""
    behind, level, gone, silent = bed.dids[:4]
    bed.repo(behind, OLD_REV)
    bed.repo(level, bed.truth[level].rev)
    bed.repo(gone, OLD_REV)
    bed.repo(silent, OLD_REV)
    bed.network.op("deactivate", did=gone)
    for did in (behind, behind, level, gone, silent):
        bed.letter(did)
    bed.db.execute("insert into sluice.identity (did, pds, signing_key, resolved_at) values (%s, %s, '', now())", (silent, "http://127.0.0.1:9"))  # fmt: skip
    before = requests(bed)
    assert bed.looks.round() == {"retried": 2, "open": 2}
    assert requests(bed) == before + 3
    assert bed.letters() == [
        *[("retried", NEW_REV)] * 3,
        *[("open", NEW_REV + NOT_CONFIRMED)] * 2,
    ]
    assert bed.listed() == {behind: bed.truth[behind].rev}
    assert bed.looks.round() == {"retried": 0, "open": 0}
    assert requests(bed) == before + 3
    store, storms = RepoQueue(bed.settings), Storms(bed.settings)
    assert "lost_event" in storms.held(storms.most() + 1, now=True)
    bed.db.execute("update sluice.repo set listed_since = now() - interval '1 hour' where listed_since is not null")
    assert store.lost_events(60.0) == [behind]
    store.close()
    storms.close()


def test_no_request_for_commits_already_seen_or_being_fetched_or_for_other_dead_letters(bed: Bed) -> None:
    """H6."""
    seen, fetched, young, old, other = bed.dids[:5]
    for did in (seen, young, old, other):
        bed.repo(did, bed.truth[did].rev)
    bed.repo(fetched, OLD_REV, phase="pending")
    bed.letter(seen, rev=OLD_REV)
    bed.letter(fetched)
    bed.letter(old, age=OLDEST_SECONDS + 60)
    bed.letter(other, reason="no_commit_block")
    bed.letter(bed.dids[5])  # of no repo of ours
    before = requests(bed)
    bed.letter(young, age=YOUNGEST_SECONDS / 2)
    assert bed.looks.round() == {"retried": 1, "open": 0}
    assert requests(bed) == before
    assert [state for state, _ in bed.letters()] == ["retried", *["open"] * 5]
    assert bed.listed() == {}


def test_a_flood_of_letters_and_a_silent_pds_are_bounded(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """H6: so many accounts a round, whatever anyone sends, and no longer than the deadline of a round."""
    for did in bed.dids[: ROUND_DIDS + 5]:
        bed.repo(did, OLD_REV)
        bed.letter(did)
    assert bed.looks.round() == {"retried": ROUND_DIDS, "open": 0}
    assert bed.looks.round() == {"retried": 5, "open": 0}

    async def silent(_network: AuditNetwork, _did: str) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(AuditNetwork, "latest", silent)
    monkeypatch.setattr(big_commits, "ASK_SECONDS", 0.05)
    bed.letter(bed.dids[0])
    assert bed.looks.round() == {"retried": 0, "open": 1}
    assert bed.letters()[-1] == ("open", NEW_REV + NOT_CONFIRMED)


def test_control_checks_big_commits_only_while_it_leads(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """H6."""
    monkeypatch.setattr(dead_letter_retry, "ROUND_SECONDS", 0.05)
    did = bed.repo(bed.dids[0], OLD_REV)
    bed.letter(did)
    looks = dead_letter_retry.DeadLetterRetry(bed.settings)
    looks.leads = True
    looks.worker.start()
    wait_until(lambda: bed.letters() == [("retried", NEW_REV)])
    looks.worker.check()
    looks.worker.stop(1.0)
    assert bed.listed() == {did: bed.truth[did].rev}


def requests(bed: Bed) -> int:
    return int(bed.network.faults()["hosts"][bed.network.pdses[0]]["total"])
