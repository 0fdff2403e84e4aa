"""`sluice.record`: the names of what `sluice.record_row` stores, and the plans of the usual questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.migrate import migrate
from local.embedded.embedded_database import SERVER_SETTINGS
from tests.support import ROOT

PARTS = 64
LOCKS = 256
FILL = """
insert into sluice.repo (did, phase) select 'did:plc:' || md5(n::text), 'sync' from generate_series(1, 2000) n;
insert into sluice.collection (name) values ('app.bsky.feed.post'), ('app.bsky.feed.like'), ('app.bsky.graph.follow');
insert into sluice.record_row (rev, indexed_at, repo, collection, attempt, rkey, cid, json)
select sluice.tid_number('3l22222222222'), timestamptz '2026-01-01Z' + (r.id * 60 + n) * interval '1 second', r.id, c.id, 1,
       '3k' || lpad(n::text, 11, 'a'), sluice.cid_bytes('bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'), '{"a":1}'
from sluice.repo r, sluice.collection c, generate_series(1, 30) n;
vacuum analyze sluice.repo;
vacuum analyze sluice.record_row
"""
REPO = "did = 'did:plc:' || md5('77')"
OF_ONE_REPO = {
    "one record": (f"select * from sluice.record where {REPO} and collection = 'app.bsky.feed.like' and rkey = '3kaaaaaaaaaa5'", 1),
    "a repo's collection": (f"select rkey, cid from sluice.record where {REPO} and collection = 'app.bsky.feed.like' order by rkey", 30),
    "a repo": (f"select * from sluice.record where {REPO}", 90),
}  # fmt: skip
IN_TIME = """
select did, rkey, json from sluice.record
where collection = 'app.bsky.feed.like' and indexed_at >= '2026-01-01 10:00Z' and indexed_at < '2026-01-01 10:30Z'
"""


@pytest.fixture(scope="module")
def filled(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """A database in the shape of production: 64 parts."""
    from tests.support.postgres import fresh_database

    with fresh_database(postgres) as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as db:
            for statement in FILL.split(";\n"):
                db.execute(statement.encode())
            yield db


def scans(db: psycopg.Connection[Any], query: str | bytes, values: Any = None) -> list[dict[str, Any]]:
    """The scans of record_row that the plan of this query executes."""
    text = query.encode() if isinstance(query, str) else query
    ((plan,),) = db.execute(b"explain (analyze, format json) " + text, values).fetchall()
    found, nodes = [], [plan[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if str(node.get("Relation Name", node.get("Index Name"))).startswith("record_row") and node["Actual Loops"]:
            found.append(node)
    return found


@pytest.mark.parametrize("name", OF_ONE_REPO)
def test_what_is_asked_of_one_repo_reads_one_part_through_its_key(filled: psycopg.Connection[Any], name: str) -> None:
    """S6"""
    query, rows = OF_ONE_REPO[name]
    assert len(filled.execute(query.encode()).fetchall()) == rows
    found = scans(filled, query)
    assert {node["Node Type"] for node in found} <= {
        "Index Scan",
        "Index Only Scan",
        "Bitmap Heap Scan",
        "Bitmap Index Scan",
    }
    assert len({node["Relation Name"] for node in found if "Relation Name" in node}) == 1, found
    assert any(node.get("Index Name", "").endswith("_pkey") for node in found), found


def test_a_span_of_time_reads_only_its_pages(filled: psycopg.Connection[Any]) -> None:
    """S6: of every part, since any repo may have written in it; by the small index of times."""
    filled.execute("set enable_seqscan = off")  # 90 pages a part: a scan of all would be cheaper
    try:
        assert len(filled.execute(IN_TIME.encode()).fetchall()) == 30 * 30
        found = scans(filled, IN_TIME)
    finally:
        filled.execute("reset enable_seqscan")
    assert {node["Node Type"] for node in found} == {"Bitmap Heap Scan", "Bitmap Index Scan"}
    assert {node["Index Name"][-15:] for node in found if "Index Name" in node} == {"_indexed_at_idx"}
    assert len([node for node in found if "Relation Name" in node]) == PARTS


def test_a_query_of_all_parts_holds_fewer_locks_than_a_connection_may(filled: psycopg.Connection[Any]) -> None:
    """`max_locks_per_transaction` is set in every server that Sluice starts, and named for those that it does not."""
    with filled.transaction():
        filled.execute("select count(*) from sluice.record")
        held = filled.execute(
            "select count(*) from pg_locks where pid = pg_backend_pid() and relation is not null"
        ).fetchone()
    assert held is not None
    assert 3 * PARTS < held[0] < LOCKS
    assert int(SERVER_SETTINGS["max_locks_per_transaction"]) == LOCKS
    for name in ("redpanda.yml", "deploy/k8s/overlays/local/postgres.yaml"):
        assert f"-c, max_locks_per_transaction={LOCKS}," in (ROOT / name).read_text("utf-8"), name
    assert f"`max_locks_per_transaction = {LOCKS}`" in (ROOT / "docs/deploying.md").read_text("utf-8")


def test_a_row_has_the_names_of_what_it_stores(filled: psycopg.Connection[Any]) -> None:
    """S6"""
    query = f"select did, collection, rkey, uri, cid, rev, json::text, sluice.time_text(indexed_at) from sluice.record where {REPO} limit 1"
    ((did, collection, rkey, uri, cid, rev, json, at),) = filled.execute(query.encode()).fetchall()
    assert uri == f"at://{did}/{collection}/{rkey}"
    assert (cid, rev, json) == (
        "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "3l22222222222",
        '{"a":1}',
    )
    assert at[:10] == "2026-01-01"
