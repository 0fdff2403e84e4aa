"""`sluice export`: the files hold what the database holds, also after a stop."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from pyarrow import parquet

from ops import export as module
from ops.export import ExportScope, export
from schemas.errors import OperatorError
from schemas.settings import Settings, load
from tests.ops.settled_repos import settle_repos
from tests.support import ROOT
from tests.support.shard_databases import half, urls_of
from tests.support.tiny_repo import Repo

ALL = ExportScope()
POST, LIKE, OTHER = "app.bsky.feed.post", "app.bsky.feed.like", "com.example.note"
SHOWN = "select did, collection, rkey, e.cid, e.rev, e.json::text from sluice.record e join sluice.repo r using (did) where r.active"
READ = "select did, collection, rkey, cid, rev, record from read_parquet('{}/*/*/*.parquet', hive_partitioning = true)"


@pytest.fixture
def settings(database: str) -> Settings:
    """A database with seven repos of three collections; one account is not active."""
    found = load(database=database)
    repos = []
    for number in range(7):
        records = {
            f"{kind}/r{at}": {"text": f"hello {number} {at}", "langs": ["en"]}
            for kind in (POST, LIKE, OTHER)
            for at in range(4)
        }
        repos.append(Repo(records, did=f"did:web:host{number}.example"))
    settle_repos(found, repos)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("update sluice.repo set active = false, status = 'takendown' where did = 'did:web:host6.example'")
    return found


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repos a page, and files after each page."""
    monkeypatch.setattr(module, "PAGE_REPOS", 2)
    monkeypatch.setattr(module, "BUFFER_BYTES", 1500)
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)


def in_database(settings: Settings, condition: str = "true") -> set[tuple[Any, ...]]:
    with psycopg.connect(settings.database) as db:
        return set(db.execute(f"{SHOWN} and {condition}".encode()).fetchall())


def in_files(folder: Path) -> list[tuple[Any, ...]]:
    return duckdb.sql(READ.format(folder)).fetchall()


def nothing(_: str) -> None:
    """No progress is printed."""


def test_the_files_hold_the_records_of_active_accounts(settings: Settings, tmp_path: Path) -> None:
    """By collection and day; DuckDB finds collection and day in the folder names."""
    done = export(settings, tmp_path / "out", ALL, nothing)
    found = in_files(tmp_path / "out")
    assert len(found) == done.records == 6 * 12
    assert set(found) == in_database(settings)
    assert (done.repos, done.complete) == (6, True)
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.parquet"))
    assert len(files) == done.files == 3
    assert {path.parts[0] for path in files} == {f"collection={kind}" for kind in (POST, LIKE, OTHER)}
    assert done.bytes == sum((tmp_path / "out" / path).stat().st_size for path in files)
    posts = parquet.read_table(
        tmp_path / "out", filters=[("collection", "==", POST)], columns=["did", "record"]
    )  # as pandas
    assert posts.num_rows == 24
    days = duckdb.sql(
        f"select distinct day, indexed_at::date from read_parquet('{tmp_path}/out/*/*/*.parquet')"
    ).fetchall()
    assert days == [(days[0][1], days[0][1])]


def test_a_part_of_the_records(settings: Settings, tmp_path: Path) -> None:
    """By collection, by pattern, by time."""
    parts = [
        (ExportScope((POST,)), f"collection = '{POST}'"),
        (ExportScope(("app.bsky.*",)), "collection like 'app.bsky.%'"),
        (ExportScope((LIKE, "com.example.*")), f"collection in ('{LIKE}', '{OTHER}')"),
        (ExportScope(since="2000-01-01T00:00:00+00:00"), "true"),
        (ExportScope(since="2999-01-01T00:00:00+00:00"), "false"),
    ]
    for number, (scope, condition) in enumerate(parts):
        folder = tmp_path / str(number)
        done = export(settings, folder, scope, nothing)
        wanted = in_database(settings, condition)
        assert done.records == len(wanted), scope
        assert (set(in_files(folder)) if wanted else set()) == wanted


@pytest.mark.usefixtures("small_steps")
def test_a_stopped_export_resumes(settings: Settings, tmp_path: Path) -> None:
    """Stopped at a record, with unfinished files; every record is in the files once."""
    for at in range(1, 60, 7):
        folder, lines = tmp_path / str(at), count(1)

        def stop(_: str, at: int = at, lines: Iterator[int] = lines) -> None:
            if next(lines) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(settings, folder, ALL, stop)
        done = export(settings, folder, ALL, nothing)
        found = in_files(folder)
        assert len(found) == done.records == 72, at
        assert set(found) == in_database(settings)
        assert done.number > 3


@pytest.mark.usefixtures("small_steps")
def test_files_moved_without_their_position_are_written_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when _export.json is written."""
    stores = 0

    def full(*arguments: Any, **options: Any) -> None:
        nonlocal stores
        stores += 1
        if stores == 3:  # the first is stored before any file
            raise OSError(28, "No space left on device")
        file.write(json.dumps(*arguments[:1], **options)) if (file := arguments[1]) else None

    with monkeypatch.context() as patched:
        patched.setattr(module.json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            export(settings, tmp_path / "out", ALL, nothing)
    assert list((tmp_path / "out").glob("*/*/000002-*.parquet"))
    export(settings, tmp_path / "out", ALL, nothing)
    found = in_files(tmp_path / "out")
    assert len(found) == 72
    assert set(found) == in_database(settings)


def test_the_queries_of_the_docs_run(settings: Settings, tmp_path: Path) -> None:
    """docs/analysis.md: each statement for DuckDB, on an export."""
    export(settings, tmp_path / "out", ALL, nothing)
    (block,) = re.findall(r"```duckdb\n(.*?)```", (ROOT / "docs" / "analysis.md").read_text("utf-8"), re.DOTALL)
    with duckdb.connect() as db:
        view, *queries, _ = block.replace("/data/network", f"{tmp_path}/out").split(";")
        db.execute(view)
        languages, per_day, accounts = (db.execute(query).fetchall() for query in queries)
    assert languages == [("en", 24)]
    assert [posts for _, posts in per_day] == [24]
    assert sorted(accounts) == [(f"did:web:host{number}.example", 12) for number in range(6)]


def test_invented_collections_share_a_folder(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name longer than a file name can be, and more collections than MAX_COLLECTIONS; also after a resume."""
    monkeypatch.setattr(module, "MAX_COLLECTIONS", 3)
    found = load(database=database)
    long = ".".join(["a" * 60] * 5)
    names = [long, *(f"com.example.c{number}" for number in range(6))]
    settle_repos(found, [Repo({f"{name}/r": {"n": name} for name in names}, did="did:web:many.example")])
    done = export(found, tmp_path / "out", ALL, nothing)
    assert done.records == len(names)
    folders = {path.name for path in (tmp_path / "out").glob("collection=*")}
    assert folders == {"collection=other", *(f"collection=com.example.c{number}" for number in range(3))}
    rest = duckdb.sql(
        f"select nsid, record ->> 'n' from read_parquet('{tmp_path}/out/collection=other/*/*')"
    ).fetchall()
    assert sorted(rest) == sorted((name, name) for name in [long, *names[4:]])


def test_each_mistake_is_one_line(settings: Settings, tmp_path: Path) -> None:
    export(settings, tmp_path / "done", ALL, nothing)
    with pytest.raises(OperatorError, match="holds a complete export"):
        export(settings, tmp_path / "done", ALL, nothing)
    with pytest.raises(OperatorError, match="with other options"):
        export(settings, tmp_path / "done", ExportScope((POST,)), nothing)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(OperatorError, match="is not empty and holds no export"):
        export(settings, tmp_path / "else", ALL, nothing)
    (tmp_path / "done" / "_export.json").write_text("{}")
    with pytest.raises(OperatorError, match="not the state of an export"):
        export(settings, tmp_path / "done", ALL, nothing)
    with module._locked(tmp_path / "else"), pytest.raises(OperatorError, match="another `sluice export` writes"):
        export(settings, tmp_path / "else", ALL, nothing)


def test_without_the_extra_an_export_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "ops.export")
    with pytest.raises(OperatorError, match=r"pip install 'sluice\[export\]'"):
        importlib.import_module("ops.export")


def test_an_export_holds_the_records_of_every_shard_and_resumes_in_the_one_that_failed(
    sharded: Settings, tmp_path: Path
) -> None:
    """S10."""
    urls = urls_of(sharded)
    wanted = set[tuple[Any, ...]]()
    for number, url in enumerate(urls):
        one = sharded.replaced(database=url, shards="")
        settle_repos(
            one, [Repo({f"{POST}/r{number}": {"text": f"of shard {number}"}}, did=f"did:web:host{number}.example")]
        )
        wanted |= in_database(one)
    assert len(wanted) == 2
    with pytest.raises(psycopg.OperationalError):
        export(half(sharded), tmp_path / "out", ALL, nothing)
    done = export(sharded, tmp_path / "out", ALL, nothing)
    assert sorted(in_files(tmp_path / "out")) == sorted(wanted)
    assert (done.repos, done.records, done.complete) == (2, 2, True)
