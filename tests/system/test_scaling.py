"""Workers come and go under load: 1 → 3 → 1 of each, and a rolling restart. Nothing is lost, nothing stands still for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.support.fleet import Fleet, Stopped
from bench.support.group_progress import Pace, Sample, rate, recovery, stall
from schemas.settings import load
from tests.support import zygote
from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

SCALED = ("index", "backfill")
LIVE, BACKFILL = "firehose_live", "firehose_backfill"
REPOS = sized(700, 1500)
STALL_SECONDS = sized(60.0, 25.0)  # of a partition with live events waiting, on a machine that others use as well


def forked(kind: str, environment: dict[str, str], output: int) -> Any:
    """`sluice run KIND` from the zygote."""
    return zygote.spawn(["sluice", "run", kind], env=environment, stdout=output, stderr=output)


@pytest.fixture
def fleet(mirror: Any, simulator: Any, log: str, database: str, tmp_path: Path) -> Iterator[tuple[Mirror, Fleet, Pace]]:
    simulation = simulator(seed=51, repos=REPOS, records_per_repo=12, labels=50, churn=0.01, prebuild=True)
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), backfill_concurrency=4
    )
    simulation.set_faults(pds_slow={"p": 0.2, "seconds": 1})  # so that the backfill lasts
    fleet = Fleet(one.environment(), tmp_path, grace_seconds=60.0, start=forked)
    settings = load(
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=one.settings["kafka_topic_prefix"],
        kafka_partitions=8,
    )
    fleet.start("control").await_ready()  # it makes tables and topics, which the samples are taken of
    pace = Pace(settings).start()
    yield one, fleet, pace
    fleet.stop(fleet.pods)
    pace.stop()


def test_workers_come_and_go(fleet: Any) -> None:
    """U1, N2, G1: scaled and replaced under load, every process drains and ends with 0, and the tables are the network's."""
    one, pods, pace = fleet
    for kind in ("firehose", "labels", *SCALED):
        pods.start(kind)
    pods.start("list-repos")
    wait_for(lambda: all(pod.ready for pod in pods.pods), 120, "not all are ready")
    assert one.simulation is not None
    one.simulation.writer(30)
    wait_for(lambda: one.phases().get("sync", 0) > 50, 120, lambda: str(one.phases()))
    begin = time.monotonic()
    changes = (
        lambda: pods.scale(3, *SCALED),
        lambda: pods.roll(*SCALED),
        lambda: pods.scale(1, *SCALED),
    )
    ended: list[Stopped] = []
    unfinished = []
    for change in changes:
        before = one.phases()
        unfinished.append(before.get("pending", 0) + before.get("backfill", 0))
        seconds, gone = change()
        ended += gone
        moved = pace.last.settled(LIVE)
        wait_for(lambda moved=moved: pace.last.settled(LIVE) > moved + 30, 120, "live events do not move")
        pods.check()
        print(f"{seconds:.1f} s; ended {[(one.kind, round(one.seconds, 1)) for one in gone]}; {before}")
    assert unfinished[0] > REPOS / 4, "the backfill was over before anything was scaled"
    assert len(ended) == 2 * (3 + 2)
    assert not [one for one in ended if one.killed or one.code]
    one.quiesce()
    wait_for(lambda: pace.last.lag(LIVE) == 0, 120, "live events are left")
    samples = pace.between(begin, time.monotonic())
    print(f"longest stall {stall(samples, LIVE):.1f} s, highest lag and its end {recovery(samples, LIVE, 30)}")
    assert stall(samples, LIVE) < STALL_SECONDS
    one.await_truth(120)
    doubled = one.query("select count(*) from sluice.repo where retry_count > 0 and phase <> 'sync'")
    assert doubled == [(0,)]
    audit = one.cli("audit", "--sample", "200", "--json")
    assert audit.returncode == 0, audit.stdout[-2000:] + audit.stderr[-2000:]


def samples_of(*positions: tuple[int, int]) -> list[Sample]:
    """One partition, looked at once a second: (position, end)."""
    return [Sample(float(at), {(LIVE, 0): place}) for at, place in enumerate(positions)]


def test_stalls_are_seen() -> None:
    """The measure itself: only a partition that has messages waiting stands still, and from when they waited."""
    assert stall(samples_of((5, 5), (5, 5), (5, 5)), LIVE) == 0
    assert stall(samples_of((5, 5), (5, 9), (5, 9), (9, 9)), LIVE) == 3
    assert stall(samples_of((5, 9), (6, 9), (7, 9)), LIVE) == 1
    assert stall(samples_of((5, 9), (5, 9), (5, 9)), LIVE) == 2
    assert recovery(samples_of((0, 9), (0, 50), (45, 50), (50, 50)), LIVE, 10) == (50, 1.0)
    assert recovery(samples_of((0, 9), (0, 50)), LIVE, 10) == (50, None)
    assert rate(samples_of((0, 9), (8, 9), (9, 9)), LIVE) == 4.5
