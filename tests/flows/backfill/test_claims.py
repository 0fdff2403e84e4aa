"""Which tasks are claimed and when, what ends a claim, and when offsets move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connectors.kafka.producer import Out
from connectors.postgres.repo_queue import ListedRepo
from schemas import wire
from tests.flows.backfill.backfill_here import WorldHere

Here = Callable[..., WorldHere]


def test_a_resync_does_not_queue_behind_the_backlog(here: Here) -> None:
    """A desynced repo is fetched while slow downloads of the backlog hold all their slots."""
    run = here({"repos": 40, "records_per_repo": 20, "inactive_share": 0.0}, backfill_concurrency=4, pds_concurrency=50)
    truth = run.simulation.state()
    urgent, *others = list(truth)
    task = run.store.discover([ListedRepo(urgent)]).tasks
    run.simulation.set_faults(pds_hang={"seconds": 600, "per_did": 0})
    run.list_all({did: truth[did] for did in others})
    run.start()
    run.until(lambda: run.simulation.fired("pds_hang") >= 4)
    run.simulation.set_faults(pds_hang=None)
    run.queue(task, "repo_resync")
    run.until(lambda: run.rows()[urgent]["produced_offset"] is not None)
    assert run.attempts()[urgent, 1].outcome
    assert run.produced() == 1


def test_nothing_is_written_for_a_lost_claim(here: Here) -> None:
    """The lease ran out and somebody else has the repo: the worker notices, stops, and writes no outcome."""
    run = here({"repos": 1, "records_per_repo": 20, "inactive_share": 0.0}, lease_seconds=1.5)
    truth = run.simulation.state()
    run.list_all(truth)
    run.simulation.set_faults(pds_trickle={"chunk": 100, "interval": 1.0, "times": 1})
    process = run.start()
    run.until(lambda: run.simulation.fired("pds_trickle") == 1)
    run.execute("update sluice.repo set attempt = attempt + 1, worker = 'another'")
    run.until(lambda: process.metric("sluice_claims_total", result="lost") == 1)
    run.own.pass_time(600.0)  # longer than the download would have taken
    assert run.attempts() == {}
    assert process.running


def test_unreadable_tasks_become_dead_letters(here: Here) -> None:
    """C3, G7, P3: a message without its id is a dead letter, and the one behind it is worked on."""
    run = here({"repos": 3, "records_per_repo": 10, "inactive_share": 0.0})
    truth = run.simulation.state()
    bad = [
        b"",
        b"not json",
        b"{}",
        b'{"did": "did:plc:x", "reason": "listed"}',
        b'{"did": "nobody", "attempt": 0, "reason": "r"}',
    ]
    run.send([Out("repo_backfill", "did:plc:x", value) for value in bad])
    tasks = run.list_all(truth)
    run.start()
    run.run_to_end(len(tasks))

    def letters() -> list[Any]:
        return [wire.decode_dead_letter(message.value()) for message in run.read("dead_letter")]

    run.until(lambda: len(letters()) >= len(bad))
    assert {letter.reason for letter in letters()} == {"bad_task"}
    assert len(letters()) == len(bad)
    run.check(truth)


def test_offsets_do_not_wait_for_a_slow_repo(here: Here) -> None:
    """From the claim on the database holds the work: the group's lag is nothing while a download hangs."""
    run = here(
        {"repos": 20, "records_per_repo": 10, "inactive_share": 0.0}, backfill_concurrency=30, pds_concurrency=30
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.simulation.set_faults(pds_hang={"seconds": 600, "times": 3, "per_did": 0})
    run.start()
    run.until(lambda: run.produced() == len(tasks) - 3)
    assert run.simulation.fired("pds_hang") == 3
    run.until(lambda: run.committed == run.log.ends("repo_backfill"))
    assert run.produced() == len(tasks) - 3


def test_no_claims_are_made_while_the_index_is_behind(here: Here) -> None:
    """B7: above the mark the flow is paused with a reason; below it continues, and nothing is missing."""
    run = here(
        {"repos": 120, "records_per_repo": 20, "inactive_share": 0.0},
        kafka_high_water_messages=200,
        backfill_concurrency=1,
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.simulation.set_faults(pds_trickle={"chunk": 20_000, "interval": 0.5, "per_did": 0})
    process = run.start()
    run.until(lambda: process.health()["state"] == "paused")
    assert "behind on firehose_backfill" in process.health()["why"]
    run.own.pass_time(60.0)
    stopped_at = run.produced()
    run.own.pass_time(60.0)
    assert run.produced() == stopped_at < len(tasks)
    run.simulation.set_faults(clear=True)

    def caught_up() -> bool:
        run.indexed |= run.log.ends("firehose_backfill")
        return run.produced() == len(tasks)

    run.until(caught_up)
    run.check(truth)
