"""`sluice filters add` and `remove`: entries of the filter change, and the rest stays, whoever edits at the same time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import psycopg
import pytest
from typer.testing import CliRunner

from cli.main import app
from control import filter_changes
from schemas.errors import OperatorError
from schemas.filter_spec import MAX_DIDS, FilterSpec
from steps.gate.filter_edits import FilterEdit, FilterEntries

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
DIDS = [f"did:plc:{number:024}" for number in range(40)]


def edit(
    verb: Literal["add", "remove"], spec: FilterSpec, *collections: str, dids: list[str] | None = None
) -> FilterSpec:
    return FilterEdit(verb, FilterEntries(collections=list(collections), dids=dids or []))(spec)


def of(*collections: str) -> FilterSpec:
    return FilterSpec(collections=list(collections))


@pytest.mark.parametrize(
    ("before", "verb", "entries", "after"),
    [
        ([POST], "add", [LIKE], [POST, LIKE]),
        ([POST], "add", [POST], [POST]),
        (["*"], "add", [POST], ["*"]),
        (["app.bsky.*"], "add", [POST], ["app.bsky.*"]),
        ([POST, "com.example.x", LIKE], "add", ["app.bsky.*"], ["com.example.x", "app.bsky.*"]),
        ([POST, LIKE], "remove", [POST], [LIKE]),
        ([POST, LIKE], "remove", ["com.example.x"], [POST, LIKE]),
        (["*", POST], "remove", ["*", POST, "app.bsky.*"], None),
        ([POST], "remove", [POST], "would mirror nothing"),
        (["app.bsky.*"], "remove", [POST], "the filter has app.bsky.*, not app.bsky.feed.post; remove app.bsky.*"),
        (["*"], "remove", [POST], "the filter has *, not"),
        ([POST, "com.example.x"], "remove", ["app.bsky.*"], f"the filter has {POST}, not app.bsky.*; remove {POST}"),
    ],
)
def test_collections(before: list[str], verb: Any, entries: list[str], after: list[str] | str | None) -> None:
    if isinstance(after, list):
        assert edit(verb, of(*before), *entries).collections == after
    else:
        with pytest.raises(OperatorError, match=(after or "would mirror nothing").replace("*", r"\*")):
            edit(verb, of(*before), *entries)


def test_dids() -> None:
    spec = FilterSpec(boundary="dids", dids=DIDS[:2])
    assert edit("add", spec, dids=DIDS[1:3]).dids == DIDS[:3]
    assert edit("remove", spec, dids=DIDS[1:3]).dids == DIDS[:1]
    with pytest.raises(OperatorError, match="would mirror nothing"):
        edit("remove", spec, dids=DIDS[:2])
    with pytest.raises(
        OperatorError, match=r"no list of DIDs: it mirrors all repos with records of app\.bsky\.feed\.post"
    ):
        edit("add", FilterSpec(boundary="collection", signal=POST), dids=DIDS[:1])


def test_the_list_stays_bounded() -> None:
    full = FilterSpec(boundary="dids", dids=[f"did:plc:{number}" for number in range(MAX_DIDS)])
    with pytest.raises(OperatorError, match=f"dids: List should have at most {MAX_DIDS} items"):
        edit("add", full, dids=["did:plc:one.more"])


def test_concurrent_edits_all_count(database: str) -> None:
    """Each reads the list, changes it and writes it: without the lock one would undo another."""
    with psycopg.connect(database, autocommit=True) as db:
        filter_changes.change(db, FilterSpec(boundary="dids", dids=DIDS[:20]))

    def change(number: int) -> None:
        verb: Literal["add", "remove"] = "add" if number >= 20 else "remove"
        if number:
            with psycopg.connect(database, autocommit=True) as db:
                filter_changes.change(db, FilterEdit(verb, FilterEntries(dids=[DIDS[number]])))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    with psycopg.connect(database, autocommit=True) as db:
        state = filter_changes.show(db)
        assert filter_changes.spec_of(db, state).dids == [DIDS[0], *DIDS[20:]]
        assert filter_changes.change(db, FilterEdit("add", FilterEntries(dids=DIDS[:1]))).version == state.version


def test_the_commands(database: str) -> None:
    def sluice(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["filters", *arguments], env={"SLUICE_DATABASE": database}, prog_name="sluice")

    def after(*arguments: str) -> Any:
        ended = sluice(*arguments, "--json")
        assert ended.exit_code == 0, ended.stderr
        return json.loads(ended.stdout)

    after("set", "--did", DIDS[0], "--collection", "app.bsky.*")
    state = after("add", DIDS[1], "com.example.*")
    assert (state["dids"], state["collections"], state["walking"]) == (2, ["app.bsky.*", "com.example.*"], True)
    state = after("remove", DIDS[0], "app.bsky.*")
    assert (state["dids"], state["collections"]) == (1, ["com.example.*"])
    for wrong in ("nothing", "did:", "app.*.x"):
        ended = sluice("add", wrong)
        assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
        assert f"'{wrong}': write " in ended.stderr
