"""What a listing says of many repos never waits in a circle with the index, which locks some of the same ones."""

from __future__ import annotations

import threading

import psycopg
from flow_process import wait_until

from connectors.repos import Listed, RepoStore
from schemas.settings import load

FIRST, LAST = "did:plc:a", "did:plc:z"
WAITS = """
select 1 from pg_stat_activity
where application_name = 'sluice repos' and wait_event_type = 'Lock' and datname = current_database()
"""


def test_a_page_and_the_index_lock_the_same_repos(database: str) -> None:
    """G5: a page's later DID is written by one of its statements, its earlier one by another, and an index wants both."""
    store = RepoStore(load(database=database))
    store.discover([Listed(FIRST), Listed(LAST)])
    failed: list[BaseException] = []

    def page() -> None:
        try:
            store.discover([Listed(FIRST, "3l22222222222"), Listed(LAST, "3l22222222222")])
        except BaseException as err:
            failed.append(err)

    with psycopg.connect(database, autocommit=True) as db, psycopg.connect(database) as index:
        db.execute(
            "update sluice.repo set phase = 'sync', rev = '3l2' where did = %s", (LAST,)
        )  # ahead; FIRST is raised
        index.execute("select from sluice.repo where did = %s for update", (FIRST,))
        thread = threading.Thread(target=page)
        thread.start()
        wait_until(lambda: db.execute(WAITS).fetchone(), what="the page waits for the index")
        index.execute("select from sluice.repo where did = %s for update", (LAST,))
        index.commit()
        thread.join(60)
        assert failed == []
        said = db.execute("select did, heard_rev, listed_rev from sluice.repo order by did").fetchall()
    assert said == [(FIRST, "3l22222222222", None), (LAST, "", "3l22222222222")]
    store.close()
