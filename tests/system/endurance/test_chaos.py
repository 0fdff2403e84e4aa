"""A chaos run: every fault of the network at once, and everything that runs is killed, frozen or cut off at random.

`make chaos` is this test for ten minutes under a seed of its own (`SEED=… MINUTES=…`); CI has a short one. The seed decides
the network, its faults and the blows; the report at the end is text, and one JSON line after `chaos:`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from local.embedded.embedded_database import EmbeddedDatabase
from simulator.faults.faults import NAMES
from tests.support.log_listeners import ProxiedLog
from tests.support.simulation import Simulation
from tests.support.size import sized
from tests.support.whole_mirror import ROOT, Mirror, prefix, wait_for
from tests.system.endurance.chaos_monkey import PROCESSES, Monkey
from tests.system.endurance.chaos_watch import Watch
from tests.system.test_proofs import EQUAL, tables

pytestmark = pytest.mark.acceptance

SEED = int(os.environ.get("CHAOS_SEED", "11"))
SECONDS = float(os.environ.get("CHAOS_MINUTES") or sized(0.4, 1)) * 60
REPOS = int(min(2000, max(500, 1000 * SECONDS / 60)))
PAGE = REPOS // 5  # of the listing
FEW_FAILED = 20  # five attempts in a row, of which every fourth meets a fault
LONGEST_STALL_SECONDS = 150.0  # blows come every few seconds all the while

# Pages of the listing that touch these uids fail until the faults end.
FIRST_PAGE = {"from": 1, "to": 20, "times": 12}  # no cursor to step over
MIDDLE = {"from": REPOS * 45 // 100, "to": REPOS * 48 // 100}
LISTING = {
    "relay_list_500": FIRST_PAGE,
    "relay_list_429": {"every": 15, "times": 20},
    "relay_empty_head": {"p": 0.01},
    "pds_list_500": {"p": 0.1},
    "list_malformed": {"p": 0.02},
    "list_short": {"p": 0.05, "most": 50},
    "hosts_malformed": {"p": 0.2, "times": 4},
}
FETCHING = {
    "pds_429": {"p": 0.04, "retry_after": 1},
    "pds_500": {"p": 0.04},
    "pds_escapes": {"p": 0.02},
    "pds_truncate": {"p": 0.04, "mode": "boundary"},
    "pds_hang": {"p": 0.02},
    "pds_trickle": {"p": 0.02, "chunk": 2000, "interval": 0.05},
    "pds_slow": {"p": 0.02, "seconds": 1},
    "pds_tamper": {"p": 0.04},
    "pds_stale": {"p": 0.3},
    "pds_bad_sig": {"p": 0.02},
    "pds_wrong_did": {"p": 0.02},
    "pds_html": {"p": 0.02},
    "plc_500": {"p": 0.05},
    "plc_slow": {"p": 0.02, "seconds": 1},
    "did_web_hang": {"p": 0.3, "seconds": 10},
    "did_web_429": {"p": 0.2},
}
STREAMING = {
    "drop": {"every": 300},
    "garbage": {"every": 110},
    "hostile": {"every": 170},
    "unknown_type": {"every": 130},
    "error_frame": {"every": 500},
    "silence": {"every": 800, "times": 6},
    "lost_commit": {"every": 40},
    "duplicate": {"every": 25},
    "delay": {"every": 30},
    "seq_gap": {"every": 600},
    "relay_bad_sig": {"every": 60},
    "pds_clock_ahead": {"p": 0.3},
    "stream_429": {"every": 4},
}
WRITING = {
    "leaf_raw": {"every": 30},
    "leaf_foreign": {"every": 35},
    "leaf_unordered": {"every": 25},
    "leaf_large": {"every": 200, "times": 4},
    "leaf_repeated": {"every": 60},
}
LABELLING = {
    "label_drop": {"every": 40},
    "label_garbage": {"every": 30},
    "label_unknown_type": {"every": 35},
    "label_error_frame": {"every": 90},
    "label_silence": {"every": 100, "times": 3},
    "label_bad_sig": {"every": 20},
    "label_foreign_src": {"every": 20},
    "label_hostile": {"every": 45},
    "label_giant": {"every": 25},
}
TUNED: dict[str, Any] = {**LISTING, **FETCHING, **STREAMING, **WRITING, **LABELLING}
# Lies that a mirror has to believe for an hour or more: flow tests have them. A takedown that the relay of the last event
# repeats is one of these (test_two_relays has what can be proven of `relay_old_account`).
UNPROVABLE = {"list_cycle", "hosts_cycle", "repo_redirect", "plc_plain_404", "plc_other_did", "relay_old_account"}
FAULTS: dict[str, Any] = {name: TUNED.get(name, {"p": 0.05}) for name in NAMES if name not in UNPROVABLE}


def unfired(simulation: Simulation) -> set[str]:
    """Faults that have not happened yet."""
    counts = simulation.faults()["fired"]
    return {name for name in FAULTS if not counts.get(name)}


def at_port(url: str, port: int) -> str:
    """The same URL at another port."""
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{'@' if credentials else ''}127.0.0.1:{port}"))


@pytest.fixture
def chaos_log(tmp_path: Path) -> Iterator[ProxiedLog]:
    """A broker to be killed, whose clients go through a proxy."""
    with ProxiedLog(tmp_path / "log", heap_mb=384) as log:
        yield log


@pytest.mark.timeout(SECONDS * 2 + 900)
def test_chaos(
    simulator: Any, private_postgres: EmbeddedDatabase, chaos_log: ProxiedLog, proxy: Any, mirror: Any
) -> None:
    """G1, G2, G3, G5, G7: lost 0, twice 0, every repo in sync by its root, the log alone gives the same tables, and every
    fault of the network and every blow has hit."""
    print(f"chaos: seed {SEED}, {SECONDS:.0f} s")
    assert TUNED.keys() <= NAMES.keys()
    run(Chaos(simulator, private_postgres, chaos_log, proxy, mirror))


class Chaos:
    """The parts of a run: the network, the servers, a proxy before everything that has one address, and the mirror."""

    def __init__(self, simulator: Any, database: EmbeddedDatabase, log: ProxiedLog, proxy: Any, mirror: Any) -> None:
        self.network: Simulation = simulator(
            seed=SEED, repos=REPOS, web_accounts=20, records_per_repo=15, relays=2, labels=200, churn=0.03, window=100_000,
            faults=FAULTS, writer_rate=60,
        )  # fmt: skip
        self.direct, self.log = database.url, log

        def before(url: str) -> Any:
            return proxy((urlsplit(url).hostname, urlsplit(url).port))

        self.wires = {
            "relay": before(self.network.relays[0]),
            "other relay": before(self.network.relays[1]),
            "plc": before(self.network.plc),
            "database": before(self.direct),
            "log": proxy(log.proxied_address, log.advertised_port),
        }
        self.mirror: Mirror = mirror(
            self.network,
            relays=[f"http://{self.wires[name].address}" for name in ("relay", "other relay")],
            plc=f"http://{self.wires['plc'].address}",
            database=at_port(self.direct, self.wires["database"].port),
            kafka_bootstrap=self.wires["log"].address,
            kafka_topic_prefix=prefix(),
            skip_after_failures=3,
            list_page_size=PAGE,
            skip_step=PAGE // 2,
            crawl_hosts=True,
            list_hosts_recheck_seconds=5.0,
            fetch_idle_seconds=4.0,
        )
        self.monkey = Monkey(self.mirror, {"kafka": log, "postgres": database}, self.wires, SEED)
        self.watch = Watch(self.mirror, self.monkey, self.direct, log.bootstrap)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.direct, autocommit=True) as db:
            return db.execute(sql.encode(), values or None).fetchall()


def run(chaos: Chaos) -> None:
    """The chaos, and what is left of it. The report is told in any case."""
    one, found = chaos.mirror, dict[str, Any]()
    one.up("--workers", "2")
    one.started()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 10, 120, one.last_lines)
    try:
        rage(chaos)
        found["faults"] = chaos.network.faults()["fired"]
        last = lose_the_last_commits(chaos)
        one.quiesce()
        quiet = time.monotonic()
        found["retried"] = retry_the_failed(chaos)
        one.await_truth(180)
        found["equal_after_seconds"] = round(time.monotonic() - quiet, 1)
        chaos.watch.stop()
        assert chaos.rows("select count(*) from sluice.repo where did = any(%s) and attempt > 1", last)[0][0] == len(
            last
        )
        unread = "select 1 from sluice.skipped_range where filled_at is null"
        wait_for(lambda: not chaos.rows(unread), 120, "a range that was stepped over was never read")
        found |= prove(chaos)
        assert one.interrupt() == 0
        found |= rebuild(chaos)
    finally:
        chaos.watch.stop()
        tell(chaos, found)
    assert not chaos.monkey.missed()
    assert chaos.watch.longest.seconds < LONGEST_STALL_SECONDS, chaos.watch.longest


def rage(chaos: Chaos) -> None:
    """Everything at once, until every fault and every blow has hit; then all processes run again, the faults still on."""
    one, network, begun = chaos.mirror, chaos.network, time.monotonic()
    poisoned = False

    def meanwhile() -> None:
        nonlocal poisoned
        one.alive()
        if not poisoned and time.monotonic() > begun + min(60.0, SECONDS / 3):
            # from now on later passes have to step over a cursor in the middle of the listing
            network.set_faults(relay_list_500=MIDDLE)
            poisoned = True

    def ready() -> set[str]:
        one.alive()
        return {name for name, seen in one.sightings(with_metrics=False).items() if seen.ready}

    chaos.watch.start()
    chaos.monkey.play(SECONDS, meanwhile=meanwhile)
    wait_for(lambda: not unfired(network), 120, lambda: f"never fired: {unfired(network)}")
    wait_for(lambda: ready() >= {*PROCESSES}, 120, lambda: f"not ready: { {*PROCESSES} - ready() } {one.last_lines()}")
    assert chaos.rows("select count(*) from sluice.skipped_range")[0][0] > 0


def lose_the_last_commits(chaos: Chaos) -> list[str]:
    """Events that are lost and nothing ever follows them: only the next listing can tell. Their DIDs."""
    network = chaos.network
    network.set_faults(clear=True)
    network.writer(0)
    truth = network.state()

    def settled() -> list[str]:
        rows = chaos.rows("select did from sluice.repo where phase = 'sync' order by did")
        return [did for (did,) in rows if truth[did].active][:20]

    # a slow machine may have come to nothing but pending repos
    wait_for(lambda: len(settled()) == 20, SECONDS + 180, lambda: f"nothing gets in sync: {chaos.mirror.phases()}")
    last, before = settled(), network.fired("lost_commit")
    network.set_faults(lost_commit={"p": 1.0})
    for did in last:
        network.op("create", did=did)
    assert network.fired("lost_commit") == before + len(last) * len(network.relays) > before
    return last


def sluice(chaos: Chaos, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command over the mirror's folder that may take its time."""
    environment = chaos.mirror.environment(kafka_bootstrap=chaos.log.bootstrap, database=chaos.direct)
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS + 600
    )


def retry_the_failed(chaos: Chaos) -> int:
    """What ran out of attempts under so many faults is an end state (G5): the operator's command reopens it. How many."""
    moving = "select count(*) from sluice.repo where phase in ('pending', 'backfill')"
    wait_for(lambda: chaos.rows(moving) == [(0,)], SECONDS + 180, lambda: f"still at work: {chaos.mirror.phases()}")
    failed = [error for (error,) in chaos.rows("select last_error from sluice.repo where phase = 'failed'")]
    assert len(failed) <= FEW_FAILED, failed
    assert all(failed), "each says why"
    if failed:
        said = sluice(chaos, "backfill", "retry", "--all")
        assert said.returncode == 0, said.stderr
    return len(failed)


def prove(chaos: Chaos) -> dict[str, Any]:
    """`sluice audit --all`, and the numbers of rows beside the network's own."""
    said = sluice(chaos, "audit", "--all", "--against-pds", "--json")
    report = json.loads(said.stdout or "{}")
    assert (said.returncode, report["good"], report["findings"]) == (0, True, []), said.stderr
    truth = chaos.network.state()
    active = {did: one.records for did, one in truth.items() if one.active}
    wanted = Counter((did, *path.split("/"), cid) for did, records in active.items() for path, cid in records.items())
    inactive = [did for did, one in truth.items() if not one.active]
    stored = "select did, collection, rkey, cid from sluice.record where not did = any(%s)"
    found = Counter(chaos.rows(stored, inactive))
    numbers = {
        "repos": len(truth),
        "proven": report["proven"],
        "records": found.total(),
        "lost": (wanted - found).total(),
        "twice": (found - wanted).total(),
    }
    assert (numbers["lost"], numbers["twice"]) == (0, 0)
    assert report["repos"] == report["proven"] == report["compared"] == len(active)
    assert report["records"] == found.total() == wanted.total() > 0
    return numbers


def rebuild(chaos: Chaos) -> dict[str, Any]:
    """The log alone, which all the retries were written to, gives the same rows and revs in an empty database."""
    with psycopg.connect(chaos.direct, autocommit=True) as db:
        db.execute("create database rebuilt")
    into = urlunsplit(urlsplit(chaos.direct)._replace(path="/rebuilt"))
    said = sluice(chaos, "replay", "--all", "--into", into, "--json")
    report = json.loads(said.stdout or "{}")
    assert (said.returncode, report["unfinished"]) == (0, {}), said.stderr
    first, second = tables(chaos.direct), tables(into)
    for name in EQUAL:
        assert len(first[name]) > 50
        assert second[name] == first[name], name
    return {"rebuilt": {name: len(rows) for name, rows in second.items()}}


def tell(chaos: Chaos, found: dict[str, Any]) -> None:
    """The report."""
    watch, monkey, network = chaos.watch, chaos.monkey, chaos.network
    blows: dict[str, dict[str, int]] = {}
    for blow, count in sorted(monkey.hits.items(), key=lambda item: str(item[0])):
        blows.setdefault(blow.kind, {})[blow.target] = count
    summary = network.summary()
    report = {
        "seed": SEED,
        "seconds": SECONDS,
        **found,
        "events": {"commits": summary["commits"], "steps": summary["steps"], "seqs": summary["seqs"]},
        "settled": watch.settled,
        "blows": blows,
        "recoveries": {
            name: {"count": len(seconds), "longest_seconds": round(max(seconds), 1)}
            for name, seconds in sorted(watch.recoveries.items())
        },
        "stalls": [round(stall.seconds, 1) for stall in watch.stalls],
    }
    for stall in sorted(watch.stalls, key=lambda stall: -stall.seconds)[:3]:
        near = [f"{at:.0f} {blow}" for at, blow in monkey.log if stall.began - 10 < at < stall.began + stall.seconds]
        print(f"stood still for {stall.seconds:.0f} s from {stall.began:.0f}: {near}\n    {stall.said}")
    for name, value in report.items():
        print(f"{name}: {value}")
    print("chaos:", json.dumps(report))
