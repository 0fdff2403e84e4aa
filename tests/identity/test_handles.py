"""The table of handles over the simulated network's directory and DNS server."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from connectors.identity.handle_checks import HandleChecks
from connectors.runtime import metrics
from schemas.settings import Settings
from schemas.sql import queries
from tests.support.simulation import Simulation

WAIT_SECONDS = 120.0


class Checks:
    """HandleChecks over a simulated network, every account enrolled, and the truth beside it."""

    def __init__(self, database: str, simulation: Simulation, **changes: Any) -> None:
        given: dict[str, Any] = {
            "database": database,
            "plc": simulation.plc,
            "handle_dns": simulation.dns,
            "allow_private_hosts": True,
            "identity_cache_seconds": 0.01,
            "handle_checks_per_second": 500.0,
            "handle_retry_seconds": 60.0,  # where a slow moment passed for silence: a twelfth of that
        }
        self.settings = Settings(**(given | changes))
        self.simulation = simulation
        self.db = psycopg.connect(database, autocommit=True)
        self.checks = HandleChecks(self.settings)

    def __enter__(self) -> "Checks":
        dids = list(self.simulation.state())
        self.db.execute("insert into sluice.handle (did) select unnest(%s::text[])", (dids,))
        return self

    def __exit__(self, *_: object) -> None:
        self.checks.close()
        self.db.close()

    def again(self, *dids: str) -> None:
        """As the index does for an event, but at once."""
        statement = "update sluice.handle set next_check_at = '-infinity', asked = asked + 1"
        self.db.execute(statement + (" where did = any(%s)" if dids else ""), (list(dids),) if dids else None)

    def rows(self) -> dict[str, tuple[str | None, bool]]:
        return {
            did: (handle, ok) for did, handle, ok in self.db.execute("select did, handle, verified from sluice.handle")
        }

    def truth(self) -> dict[str, tuple[str, bool]]:
        return {did: (one.handle, one.handle_verified) for did, one in self.simulation.state().items()}

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            self.checks.step(leads=True)
            assert time.monotonic() < deadline, (self.rows(), self.truth())
            time.sleep(0.05)

    def column(self, name: str, did: str) -> Any:
        row = self.db.execute(f"select {name} from sluice.handle where did = %s", (did,)).fetchone()
        assert row is not None
        return row[0]


def test_switched_contended_and_false_handles(simulator: Any, database: str) -> None:
    """A handle is verified only if both ways agree; whoever the domain names now has it, and nobody else."""
    simulation = simulator(seed=5, repos=30, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        first, second, third, *_ = sorted(checks.rows())
        wanted = checks.rows()[first][0]
        simulation.op("handle", did=third, handle="new.pds0.test")
        simulation.op("handle", did=second, handle=wanted, domain=False)  # claims it, and the domain says no
        checks.again()
        checks.until(lambda: checks.rows() == checks.truth())
        assert checks.rows()[third] == ("new.pds0.test", True)
        assert (checks.rows()[first], checks.rows()[second]) == ((wanted, True), (wanted, False))
        assert checks.column("reason", second) == "elsewhere"
        simulation.op("handle", did=second, handle=wanted)  # now the domain names the newcomer
        checks.again(second)
        checks.until(lambda: checks.rows()[second] == (wanted, True))
        assert checks.rows()[first] == (wanted, False)  # in the same transaction, though nobody asked about it
        assert checks.db.execute(
            "select handle, claimed from sluice.shown_handle where did = %s", (first,)
        ).fetchone() == ("handle.invalid", wanted)
        simulation.set_faults(handle_false={"times": 5}, handle_contended={"times": 10})
        for did in sorted(checks.rows())[:20]:
            simulation.op("handle", did=did)
        assert simulation.fired("handle_false") == 5
        assert simulation.fired("handle_contended") == 10
        assert sum(not ok for _, ok in checks.truth().values()) >= 8
        checks.again()
        checks.until(lambda: checks.rows() == checks.truth())


def test_the_loser_is_found_when_somebody_else_is_asked_about(simulator: Any, database: str) -> None:
    """The domain names an account that claims the handle and has not been checked since: it is checked soon."""
    simulation = simulator(seed=6, repos=3, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        first, second, _ = sorted(checks.rows())
        wanted = checks.rows()[first][0]
        simulation.op("handle", did=second, handle=wanted, domain=False)
        checks.again(second)
        checks.until(lambda: checks.rows()[second] == (wanted, False))
        simulation.op("handle", did=second, handle=wanted)
        checks.again(first)
        checks.until(lambda: checks.rows() == checks.truth())
        assert checks.rows()[second] == (wanted, True)


def test_silence_of_directory_and_dns_changes_nothing(simulator: Any, database: str) -> None:
    """An unreachable directory or DNS delays, never rejects: what was verified stays so, and is asked again soon."""
    simulation = simulator(seed=7, repos=8, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation, handle_retry_seconds=6.0) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        before = checks.rows()
        simulation.set_faults(dns_servfail=1.0)
        checks.again()
        checks.until(
            lambda: checks.db.execute("select bool_and(reason = 'dns_silent') from sluice.handle").fetchone()[0]
        )
        assert checks.rows() == before
        assert simulation.fired("dns_servfail") > 8
        simulation.set_faults(clear=True, plc_500=1.0)

        def all_silent() -> bool:
            checks.db.execute("truncate sluice.identity")  # no old document at hand, nor one that was just on its way
            left = "select did from sluice.handle where reason is distinct from 'directory_silent'"
            others = [row[0] for row in checks.db.execute(left)]
            if others:
                checks.again(*others)
            return not others

        checks.until(all_silent)
        assert checks.rows() == before
        assert simulation.fired("plc_500") >= 8
        simulation.set_faults(clear=True)
        verified = "select bool_and(reason is null) and min(failures) = 0 from sluice.handle"
        checks.until(lambda: checks.db.execute(verified).fetchone()[0])  # by the schedule, nobody asked


def test_an_event_that_comes_during_a_check_is_not_lost(simulator: Any, database: str) -> None:
    simulation = simulator(seed=8, repos=1, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        (did,) = checks.rows()
        simulation.set_faults(plc_slow={"seconds": 2})
        checks.db.execute("truncate sluice.identity")
        checks.again(did)
        checks.until(lambda: simulation.fired("plc_slow") == 1)  # the check is under way
        checks.again(did)
        checks.until(lambda: simulation.fired("plc_slow") >= 2)  # and once more, for the event


def test_the_rate_is_bounded_and_events_go_first(simulator: Any, database: str) -> None:
    """The backlog of a whole network does not keep a switched handle waiting."""
    simulation = simulator(seed=9, repos=40, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation, handle_checks_per_second=4.0) as checks:
        checks.db.execute("update sluice.handle set next_check_at = now() - interval '1 day'")
        last = max(checks.rows())
        checks.again(last)
        before = metrics.HANDLE_CHECKS.labels("verified")._value.get()
        started = time.monotonic()
        checks.until(lambda: checks.column("verified", last))
        earlier = (
            "select did from sluice.handle where checked_at < (select checked_at from sluice.handle where did = %s)"
        )
        assert checks.db.execute(earlier, (last,)).fetchall() == []
        checks.until(lambda: time.monotonic() - started > 4)
        done = metrics.HANDLE_CHECKS.labels("verified")._value.get() - before
        assert done <= 4.0 * (time.monotonic() - started + 3)


def test_handles_never_checked_come_before_scheduled_checks(database: str) -> None:
    """Re-checks of a whole network do not keep new accounts at `handle.invalid`; both parts are read from an index."""
    rows = (
        "insert into sluice.handle (did, next_check_at, checked_at)"
        " select %s || n, now() + %s::interval - n * interval '1 s', case when %s then now() - interval '2 d' end"
        " from generate_series(1, %s) n"
    )
    due = queries("handle")["due"]
    with psycopg.connect(database, autocommit=True) as db:
        for kind, when, checked, count in (
            ("again ", "-1 d", True, 20_000),
            ("later ", "1 d", True, 20_000),
            ("new ", "-1 min", False, 30),
            ("soon ", "1 h", False, 5),
            ("asked ", "0", True, 10),
        ):
            db.execute(rows, (kind, when, checked, count))
        db.execute("update sluice.handle set next_check_at = '-infinity' where did like 'asked %'")
        db.execute("analyze sluice.handle")
        for limit, expected in (
            (5, {"asked": 5}),
            (25, {"asked": 10, "new": 15}),
            (100, {"asked": 10, "new": 30, "again": 60}),
        ):
            dids = [row[0] for row in db.execute(due, {"limit": limit})]
            assert Counter(did.split()[0] for did in dids) == expected
        (plan,) = db.execute(b"explain (analyze, format json) " + due, {"limit": 60}).fetchone()[0]
        assert "Seq Scan" not in str(plan)
        skipped = [int(rows) for rows in re.findall(r"'Rows Removed by Filter': (\d+)", str(plan))]
        assert max(skipped, default=0) <= 60


def test_a_handle_has_one_owner_whatever_runs(database: str) -> None:
    """The index refuses a second owner, also to two leaders at once."""
    with psycopg.connect(database, autocommit=True) as db:
        add = "insert into sluice.handle (did, handle, verified, verified_at) values (%s, 'a.b', true, now())"
        db.execute(add, ("did:plc:a",))
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute(add, ("did:plc:b",))
