"""Benchmark: the speed of `sluice audit --all`, by roots only, and with every record hashed again.

    .venv/bin/python -m bench.audit [--repos 2000] [--records-per-repo 100]

A simulated network is mirrored first, by every process but the firehose; these have ended before the measurement. The audits run
as in the command, with one worker, from the first query to the report. `per_core_second`: records per CPU second of the audit,
which a further worker adds; PostgreSQL's CPU time is in `cpu_seconds`. Floor: the same checks of the same rows in memory.
"""

import argparse
import time
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from typing import Any

import psycopg
from psycopg.types.string import ByteaBinaryLoader

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Floor, Stack, floor, report, stack, until
from ops.audit import audit
from ops.audit_report import AuditOptions, AuditScope
from schemas.sql import queries
from steps.repo_audit import StoredHead, check_rows

KINDS = ("control", "index", "backfill", "list-repos")
SQL = queries("audit")


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=2000)
    parser.add_argument("--records-per-repo", type=int, default=100)
    options = parser.parse_args()
    network: dict[str, Any] = {"repos": options.repos, "records_per_repo": options.records_per_repo, "churn": 0.0}
    with simulated(**network, labelers=0, inactive_share=0.0, prebuild=True) as sim:
        overrides = {"relays": sim.urls["relays"], "plc": sim.urls["plc"], "pds_requests": 1_000_000}
        with stack(**overrides) as running:
            records = mirror(running, sim, options.repos)
            roots, bodies = audited(running, records, bodies=False), audited(running, records, bodies=True)
    report("audit", repos=options.repos, records=records, roots=roots, bodies=bodies)


def mirror(running: Stack, sim: Simulated, repos: int) -> int:
    """Mirror every repo through the pipeline; returns the number of records."""
    in_sync = "select count(*) from sluice.repo where phase = 'sync'"
    with ExitStack() as processes:
        for kind in KINDS:
            processes.enter_context(running.process(kind))
        until(lambda: running.sql(in_sync)[0][0] >= repos, every=0.3)
    running.sql("vacuum analyze")
    found: int = running.sql("select count(*) from sluice.record")[0][0]
    assert found == sim.ask("/state/summary")["records"], found
    return found


def audited(running: Stack, records: int, *, bodies: bool) -> dict[str, Any]:
    """Measure one audit of all repos, which must find nothing."""
    usage, cpu = running.usage(), time.process_time()
    told = audit(running.settings, AuditScope(), AuditOptions(bodies=bodies, restart=True), lambda _: None)
    cpu = time.process_time() - cpu
    cost = usage.stop()
    assert told.good, told.as_text()
    assert (told.tally.records, told.tally.bodies) == (records, records if bodies else 0), told.as_text()
    rate = records / told.seconds
    own = check_floor(running, bodies=bodies)
    return {"records_per_second": round(rate), "per_core_second": round(records / cpu), **own.figures(rate), **cost}


def check_floor(running: Stack, *, bodies: bool) -> Floor:
    """Measure only the checks, of all rows in memory."""
    with psycopg.connect(running.settings.database) as db:
        db.adapters.register_loader("json", ByteaBinaryLoader)
        heads = [StoredHead(*row) for row in db.execute(SQL["heads"], {"dids": dids(running)}, binary=True)]
        rows = db.execute(SQL["leaves" if bodies else "roots"], {"dids": [head.did for head in heads]}, binary=True)
        repos = {number: [row[1:] for row in own] for number, own in groupby(rows, itemgetter(0))}
    with floor(sum(map(len, repos.values()))) as measured:
        for number, head in enumerate(heads, 1):
            assert not check_rows(head, repos.get(number, []), bodies=bodies).findings
    return measured


def dids(running: Stack) -> list[str]:
    """The DIDs of all repos."""
    return [row[0] for row in running.sql("select did from sluice.repo order by did")]


if __name__ == "__main__":
    main()
