"""The history of figures: what control writes, how long it is kept, and the rates that a chart shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from control.status import RATE_SECONDS
from control.tasks.figures import EVERY_SECONDS, KEPT_SECONDS, FigureWriter, series
from schemas.settings import Settings
from tests.support.flow_process import wait_until
from tests.support.served_api import Api


def test_totals_become_rates_and_gaps_have_no_value() -> None:
    rows = [
        (0.0, {"repos": 10, "lag a": 5}),
        (20.0, {"repos": 50, "lag a": 7}),
        (500.0, {"repos": 90, "lag a": 9}),
        (520.0, {"repos": 80, "lag a": 0, "lag b": 3}),
    ]
    assert series(rows, longest=60.0) == (
        [20.0, 500.0, 520.0],
        {"repos": [2.0, None, 0.0], "lag a": [7, None, 0], "lag b": [None, None, 3]},
    )
    assert series(rows[:1], longest=60.0) == ([], {"repos": [], "lag a": []})


def test_control_writes_rows_and_removes_old_ones(settings_of: Callable[..., Settings], database: str) -> None:
    writer = FigureWriter(settings_of(database=database))
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.repo (did, phase) values ('did:plc:a', 'sync'), ('did:plc:b', 'pending')")
        for age in (KEPT_SECONDS + 60, KEPT_SECONDS - 60):
            db.execute(
                "insert into sluice.figure (at, figures) values (now() - make_interval(secs => %s), '{}')", (age,)
            )
        writer.step(db)
        rows = db.execute("select figures from sluice.figure order by at").fetchall()
    assert len(rows) == 2
    assert rows[1][0] | {"repos": 1, "records": 0, "events": 0, "lag firehose_live": 0} == rows[1][0]


def test_rates_of_the_status_are_since_the_oldest_figures_of_the_last_minute(api: Api) -> None:
    def rates() -> tuple[Any, Any]:
        _, answer = wait_until(
            lambda: (found := api.get("/api/v1/status"))[0] == 200 and found
        )  # 503: the broker is slow
        return answer["records_per_second"], answer["events_per_second"]

    insert = (
        "insert into sluice.figure (at, figures) select now() - make_interval(secs => %s),"
        " jsonb_build_object('records', %s::int, 'events', %s::int)"
    )
    api.db.execute(insert, (RATE_SECONDS + 1, -9000, -9000))
    assert rates() == (None, None)
    api.db.execute(insert, (RATE_SECONDS - 20, -400, 100))
    api.db.execute(insert, (2, -9000, -9000))
    records, events = rates()
    assert 400 / RATE_SECONDS <= records <= 10  # 400 in 40 s, or as long as a slow test takes
    assert events == 0


def test_the_api_has_the_last_hours_in_few_points(api: Api) -> None:
    api.db.execute(
        "insert into sluice.figure (at, figures) select now() - make_interval(secs => 20 * n),"
        " jsonb_build_object('repos', 100000 - 40 * n) from generate_series(0, 3000) n"
    )
    for hours, points in ((1, 180), (16, 300)):
        status, found = api.get(f"/api/v1/history?hours={hours}")
        assert status == 200
        assert points - 3 <= len(found["at"]) <= points + 1
        assert found["at"] == sorted(found["at"])
        assert {round(value, 6) for value in found["figures"]["repos"]} == {2.0}
        assert found["at"][-1] - found["at"][0] > 3600 * hours - 3 * max(EVERY_SECONDS, 3600 * hours / 300)
    assert api.get("/api/v1/history?hours=1000")[0] == 400
