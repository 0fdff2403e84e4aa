"""Plans of the index's statements: rows of records are found by key, in one part, whatever the planner knows of the tables."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from connectors.postgres.migrate import migrate
from connectors.postgres.pg_array import array
from flows.index.store import IndexStore
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("index")
REPOS = 50
PER_REPO = 40
FILL = """
insert into sluice.repo (did, phase) select 'did:plc:' || md5(n::text), 'sync' from generate_series(1, 400) n;
insert into sluice.collection (name) values ('app.bsky.feed.post');
insert into sluice.record_row (rev, indexed_at, repo, collection, attempt, rkey, cid, json)
select 1, now(), r.id, c.id, 1, '3k' || n, 'x', '{}'
from sluice.repo r, sluice.collection c, generate_series(1, 40) n where r.id % 2 = 0
"""


@pytest.fixture(params=["analyzed", "never analyzed"])
def filled(blank_database: str, request: pytest.FixtureRequest) -> str:
    """64 parts; every second repo has rows."""
    migrate(blank_database)
    with psycopg.connect(blank_database, autocommit=True) as db:
        db.execute("alter table sluice.repo set (autovacuum_enabled = off)")
        for statement in FILL.split(";\n"):
            db.execute(statement.encode())
        if request.param == "analyzed":
            db.execute("vacuum analyze sluice.record_row")
    return blank_database


def read(db: psycopg.Connection[Any], statement: str, values: dict[str, Any]) -> tuple[set[str], int]:
    """Types of the executed scans of record_row, and how many rows they read."""
    ((plan,),) = db.execute(b"explain (analyze, format json) " + SQL[statement], values).fetchall()
    kinds, rows, nodes = set[str](), 0, [plan[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        loops = node["Actual Loops"]
        if "record_row" in str(node.get("Relation Name", "")) and "Scan" in node["Node Type"] and loops:
            kinds.add(node["Node Type"])
            rows += round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * loops)
    return kinds, rows


def test_the_index_finds_rows_by_key(filled: str) -> None:
    """S9."""
    store = IndexStore(Settings(database=filled), "log", None)
    with psycopg.connect(filled) as plain:
        repos = plain.execute("select did, id from sluice.repo order by id limit %s", (REPOS,)).fetchall()
    ids = [number for _, number in repos]
    half = REPOS // 2
    with store.transaction() as transaction:
        for statement, values, most in (
            ("renew_ids", {"dids": array([did for did, _ in repos])}, half * PER_REPO),
            ("count_rows", {"repos": array(ids), "attempts": array([1] * REPOS)}, half * PER_REPO),
            ("drop_rows", {"repos": array(ids), "befores": array([1] * REPOS)}, half * PER_REPO),
            ("delete_records", {"repos": array(ids), "collections": array([1] * REPOS), "rkeys": array(["3k7"] * REPOS)}, half),
        ):  # fmt: skip
            kinds, rows = read(transaction.db, statement, values)
            assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, (statement, kinds)
            assert 0 < rows <= most, (statement, rows)
    store.close()


def test_the_projection_has_the_planner_to_itself(database: str) -> None:
    """Its statements join whole sets."""
    asked: dict[str, str] = {}

    class Changes:
        def __init__(self, db: psycopg.Connection[Any]) -> None:
            self._db = db

        def apply(self, *, singly: bool) -> None:
            assert not singly
            asked["apply"] = str((self._db.execute("show enable_hashjoin").fetchone() or ("",))[0])

    class Projection:
        def is_active(self, _db: object) -> bool:
            return True

        changes = staticmethod(Changes)

    store = IndexStore(Settings(database=database), "log", Projection())  # type: ignore[arg-type]
    for _ in range(2):
        with store.transaction() as transaction:
            assert transaction.db.execute("show enable_hashjoin").fetchone() == ("off",)
        assert asked.pop("apply") == "on"
    store.close()
