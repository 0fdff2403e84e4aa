"""`sluice appview rebuild` makes what the live path made, and `sluice appview check` sees what is wrong."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from appview import rebuild as appview
from appview.rebuild import RebuildProgress, rebuild
from appview.state import AppviewUnavailable, begin
from schemas.settings import Settings, load
from schemas.sql import queries
from tests.appview.index.appview_tables_seen import differences, everything, network
from tests.appview.index.appview_world import World, gone, like, post
from tests.support import zygote
from tests.support.flow_process import wait_until
from tests.support.postgres import fresh_database
from tests.support.size import sized

STARTERS = 4
SLUICE = Path(sys.executable).with_name("sluice")


@pytest.fixture
def filled(database: str) -> World:
    """The network, some of it live, something deleted and something not valid."""
    world = World(database)
    for name, writes in network().items():
        world.index(*world.snapshot(name, writes[:2]))
        for write in writes[2:]:
            world.index(world.commit(name, write))
    extra = post("dan", "3kdddddddddd9", 10)
    world.index(world.commit("dan", extra), world.commit("eve", like("eve", "3keeeeeeeeee9", 11, extra)))
    world.index(world.commit("dan", gone(extra, 12)))
    world.index(world.commit("bob", post("bob", "3kbbbbbbbbbb8", 12, text=5)))
    world.reconcile()
    return world


def quiet(_: RebuildProgress) -> None:
    pass


def test_a_rebuild_makes_what_the_live_path_made(filled: World) -> None:
    """N10: over existing rows, and from empty tables."""
    live = everything(filled)
    assert live["notification"]
    assert live["duplicate_record"]
    done = rebuild(filled.settings, quiet)
    assert (done.repos, done.invalid) == (5, 1)
    assert differences(live, everything(filled)) == {}
    filled.sql("update bsky.actor set \"takedownRef\" = 'x', \"trustedVerifier\" = true where did like '%%ann%%'")
    filled.sql('update bsky.post_agg set "bookmarkCount" = 3 where uri = (select min(uri) from bsky.post)')
    marked = everything(filled)
    rebuild(filled.settings, quiet, from_empty=True)
    assert differences(marked, everything(filled)) == {}
    assert filled.sql('select count(*) from bsky.actor where "takedownRef" = \'x\' and "trustedVerifier"') == [(1,)]


def test_a_rebuild_from_empty_waits_for_a_running_transaction_of_the_index(filled: World) -> None:
    """N10: it had emptied the posts and waited for a profile of the transaction, which then wrote a post: a deadlock."""
    live = everything(filled)
    waiting = "select count(*) from pg_stat_activity where application_name = 'sluice appview rebuild' and wait_event_type = 'Lock'"
    with psycopg.connect(filled.settings.database) as index, ThreadPoolExecutor(1) as pool:
        index.execute(queries("filter")["fence"])
        index.execute("select from bsky.profile for update")
        done = pool.submit(rebuild, filled.settings, quiet, from_empty=True)
        wait_until(lambda: filled.sql(waiting) == [(1,)], 30)
        index.execute("lock table bsky.post in row exclusive mode")
        index.commit()
        assert done.result(60).repos == 5
    assert differences(live, everything(filled)) == {}


def test_a_stopped_rebuild_resumes(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    live = everything(filled)
    monkeypatch.setattr(appview, "REPOS", 2)
    seen: list[int] = []

    class Stopped(Exception):
        pass

    def stop(progress: RebuildProgress) -> None:
        seen.append(progress.repos)
        raise Stopped

    with pytest.raises(Stopped):
        rebuild(filled.settings, stop, from_empty=True)
    assert seen == [2]
    assert filled.sql("select complete, rebuild_after is not null from sluice.appview") == [(False, True)]
    done = rebuild(filled.settings, quiet)
    assert done.resumed
    assert done.repos == 5
    assert differences(live, everything(filled)) == {}
    assert filled.sql("select complete, rebuild_after from sluice.appview") == [(True, None)]


def test_processes_that_start_together_switch_it_on_once(postgres: str, migrated_template: str) -> None:
    """PostgreSQL's `create index if not exists` fails if another transaction creates the index at the same time."""
    for _ in range(sized(3, 20)):
        with fresh_database(postgres, migrated_template) as url, ThreadPoolExecutor(STARTERS) as pool:
            settings, gate = load(database=url, appview=True), threading.Barrier(STARTERS)

            def start(settings: Settings = settings, gate: threading.Barrier = gate) -> bool:
                gate.wait()
                return begin(settings).current

            assert all(future.result() for future in [pool.submit(start) for _ in range(STARTERS)])


def test_a_start_waits_for_no_transaction_of_an_index_that_runs(filled: World) -> None:
    """Neither the indexes nor the tables of the projection are locked if they exist."""
    with psycopg.connect(filled.database) as held:
        held.execute("lock table sluice.record_row, bsky.actor, bsky.profile, bsky.starter_pack in row exclusive mode")
        with psycopg.connect(filled.database, autocommit=True) as db:
            db.execute(f"alter role current_user in database {db.info.dbname} set lock_timeout = 100".encode())
        assert begin(filled.settings).active


def test_what_was_written_while_it_was_off_is_filled_in(filled: World) -> None:
    """Off and on again: not complete, until it is rebuilt."""
    off = World(filled.database, appview=False)
    assert off.sql("select active, complete from sluice.appview") == [(False, False)]
    off.revs = filled.revs
    late = post("ann", "3kaaaaaaaaaa9", 15)
    off.index(off.commit("ann", late))
    on = World(filled.database)
    assert on.sql("select active, complete from sluice.appview") == [(True, False)]
    assert on.sql("select count(*) from bsky.post where uri = %s", late.uri) == [(0,)]
    rebuild(on.settings, quiet)
    assert on.sql("select count(*) from bsky.post where uri = %s", late.uri) == [(1,)]
    assert on.sql("select active, complete from sluice.appview") == [(True, True)]


def sluice(world: World, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    environment |= {"SLUICE_DATABASE": world.database} | {
        f"SLUICE_{name.upper()}": value for name, value in settings.items()
    }
    return zygote.run(["sluice", "appview", *words], env=environment, timeout=120)


def test_a_check_finds_every_count_that_is_wrong(filled: World) -> None:
    """Drift is 0 after all that the fixture did, and 1 after one number was changed by hand."""
    clean = sluice(filled, "check")
    assert (clean.returncode, clean.stdout.splitlines()[-1]) == (0, "drift = 0"), clean.stdout + clean.stderr
    filled.sql(
        'update bsky.post_agg set "likeCount" = "likeCount" + 1 where uri = (select min(uri) from bsky.post_agg)'
    )
    wrong = sluice(filled, "check")
    assert (wrong.returncode, wrong.stdout.splitlines()[-1]) == (1, "drift = 1")
    mended = sluice(filled, "rebuild", "--from-empty", appview="true")
    assert mended.returncode == 0, mended.stderr
    assert sluice(filled, "check").returncode == 0


def test_a_rebuild_without_the_projection_is_refused(database: str) -> None:
    world = World(database, appview=False)
    refused = sluice(world, "rebuild")
    assert refused.returncode == 2
    assert "SLUICE_APPVIEW" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_database_that_may_not_have_trigrams_is_one_clear_line(plain_database: str) -> None:
    """Only with SLUICE_APPVIEW: a plain installation needs no extension."""
    with psycopg.connect(plain_database, autocommit=True) as db:
        name = f"r{secrets.token_hex(4)}"
        db.execute(f"create role {name} login password 'x'")
        db.execute(
            f"grant all on all tables in schema sluice, bsky to {name}; grant usage on schema sluice, bsky to {name}"
        )
        place = urlsplit(plain_database)
        poor = urlunsplit(place._replace(netloc=f"{name}:x@{place.hostname}:{place.port}"))
        try:
            with pytest.raises(AppviewUnavailable, match=r"pg_trgm.*create extension pg_trgm"):
                begin(load(database=poor, appview=True))
            assert begin(load(database=poor, appview=False)).active is False
        finally:
            db.execute(f"drop owned by {name}; drop role {name}")
