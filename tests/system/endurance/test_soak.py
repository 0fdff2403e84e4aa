"""A soak: every clock of Sluice runs faster, so that weeks of operation pass in minutes.

A simulated day lasts `DAY_SECONDS`. Re-lists, handle checks, caches, history and the log's retention are as many days long as in
production or fewer, so that each comes round several times. `make soak DAYS=60` runs a long one;
`make test` has five days, `make test-long` 16.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from tests.support.simulation import Simulation
from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for
from tests.system.endurance.soak_watch import OF_THE_NETWORK, Measures, Retention, growing, measure

pytestmark = pytest.mark.acceptance

DAYS = int(os.environ.get("SOAK_DAYS") or sized(5, 16))
DAY_SECONDS = 8.0
KEPT_DAYS = 3
KILLED = ("control", "list-repos", "firehose", "labels", "backfill", "index")
FAULTS = {
    "drop": {"every": 500},
    "garbage": {"every": 150},
    "unknown_type": {"every": 200},
    "lost_commit": {"every": 60},
    "duplicate": {"every": 30},
    "delay": {"every": 40},
    "seq_gap": {"every": 40},
    "relay_bad_sig": {"every": 90},
    "relay_list_500": {"p": 0.02, "from": 50, "to": 60},
    "pds_500": {"p": 0.06},
    "pds_429": {"p": 0.05, "retry_after": 1},
    "plc_500": {"p": 0.02},
    "label_drop": {"every": 20},
    "label_garbage": {"every": 25},
}


@pytest.mark.timeout(DAYS * DAY_SECONDS * 3 + 600)
def test_weeks_of_operation(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """G6, G1: after weeks of rotated keys, re-lists, retention and kills no table, file, process or metric
    grows without bound, and the last day's audit is clean."""
    network: Simulation = simulator(
        seed=61, repos=150, records_per_repo=10, relays=2, labels=60, churn=0.05, faults=FAULTS, writer_rate=15
    )
    name = prefix()
    one: Mirror = mirror(
        network,
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=name,
        list_relist_seconds=DAY_SECONDS,
        gap_relist_seconds=DAY_SECONDS / 2,
        handle_recheck_seconds=DAY_SECONDS,
        identity_cache_seconds=DAY_SECONDS,
        history_days=KEPT_DAYS * DAY_SECONDS / 86_400,
    )
    one.up()
    one.started()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 100, 120, one.last_lines)
    days, done = operate(one, network, Retention(log, name, 8, KEPT_DAYS))
    wait_for(lambda: all(map(network.fired, FAULTS)), 120, lambda: f"fired: {network.faults()['fired']}")
    network.set_faults(clear=True)
    one.quiesce()
    one.await_truth(180)
    assert unbounded(one, network) == []
    assert growing(days) == []
    audit = one.cli("audit", "--all", "--against-pds", "--json", seconds=180)
    report = json.loads(audit.stdout or "{}")
    fired = {fault: network.fired(fault) for fault in FAULTS}
    print(f"soak: {len(days)} days ({len(days) * 24} h), {dict(done)}, faults {fired}, proven {report.get('proven')}")
    assert (audit.returncode, report["findings"]) == (0, []), audit.stdout[-2000:] + audit.stderr[-2000:]
    assert [fault for fault, count in fired.items() if not count] == []
    assert min(done[what] for what in ("killed", "rotated", "job", "audit", "migrated")) > 0


def operate(one: Mirror, network: Simulation, retention: Retention) -> tuple[list[Measures], Counter[str]]:
    """Day after day: what a network and its operators do. What was measured each day, and what was done how often."""
    rng, days, done = random.Random(61), list[Measures](), Counter[str]()
    for day in range(DAYS):
        morning = time.monotonic()
        done += change_accounts(network, rng)
        if day % 3 == 1:
            name = rng.choice(KILLED)
            pid = wait_for(lambda name=name: one.alive() and one.pid(name), 120, one.last_lines)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda name=name, pid=pid: one.alive() and one.pid(name) not in (0, pid), 120, one.last_lines)
            done["killed"] += 1
        if day % 4 == 2:
            dids = [did for (did,) in one.query("select did from sluice.repo where phase = 'sync' limit 5")]
            started = one.cli("backfill", "start", *(word for did in dids for word in ("--did", did)))
            assert started.returncode == 0, started.stderr
            done["job"] += 1
        if day % 5 == 4:
            one.cli("audit", "--sample", "20", "--json")  # repos move on meanwhile; the last day's audit counts
            done["audit"] += 1
        one.cli("backfill", "retry", "--all")
        retention.day()
        time.sleep(max(0.0, morning + DAY_SECONDS - time.monotonic()))
        days.append(measure(one))
    assert retention.removed > 0, "retention removed nothing"
    return days, done


def change_accounts(network: Simulation, rng: random.Random) -> Counter[str]:
    """Accounts rotate their keys, and one moves to another host."""
    active = [did for did, account in network.state().items() if account.active]
    rng.shuffle(active)
    dids = iter(active)
    rotated = sum(1 for _ in islice((did for did in dids if changed(network, "rotate_key", did)), 3))
    migrated = any(changed(network, "migrate", did, noisy=True) for did in dids)
    return Counter(rotated=rotated, migrated=migrated)


def changed(network: Simulation, operation: str, did: str, **more: Any) -> bool:
    """Do it; False if the network itself has just made the account inactive."""
    try:
        network.op(operation, did=did, **more)
    except AssertionError as error:
        if "OperationError" not in str(error):
            raise
        return False
    return True


def unbounded(one: Mirror, network: Simulation) -> list[str]:
    """Tables of the network with more rows than the network has accounts, records or labels."""
    truth = network.state()
    records = sum(len(account.records) for account in truth.values())
    accounts = len(truth) + len(network.labeler_dids)
    bounds = {"repo": accounts, "handle": accounts, "identity": accounts, "record": records}
    bounds |= {"label": len(network.labels()), "buffered_event": 0, "appview_record": 0}
    assert bounds.keys() == OF_THE_NETWORK
    counts = {name: one.query(f"select count(*) from sluice.{name}")[0][0] for name in bounds}
    return [f"{name}: {count} > {bounds[name]}" for name, count in counts.items() if count > bounds[name]]
