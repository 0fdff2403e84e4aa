"""Our rows are those that the official indexers store of the same record (N10; both known versions)."""

import json
from pathlib import Path
from typing import Any

import pytest

from appview.projection.project import Projected, Source, project
from appview.projection.rows import COLUMNS
from tests.appview.projection.row_cases import CASES, CID, DID, INDEXED

RECORDED = [
    json.loads(line) for line in (Path(__file__).parent / "recorded" / "rows.jsonl").read_text().split("\n")[:-1]
]
NEWER_TABLES = {"op_thread_reply", "post_embed_gallery_image", "reference_list_opt_out"}
JSONB = {("post", "langs"), ("post", "tags")}  # every other column is varchar
NO_IMAGES = {"$type": "app.bsky.embed.images", "images": []}


def stored(found: Projected) -> dict[str, list[list[Any]]]:
    """A projection in the form of the recording, as an empty database would take it: all notices hold."""
    tables: dict[str, list[list[Any]]] = {}
    for table, rows in found.rows.items():
        parse = [json.loads if (table, column) in JSONB else str for column in COLUMNS[table]]
        tables[table] = sorted(
            ([None if value is None else of(value) for of, value in zip(parse, row, strict=True)] for row in rows),
            key=str,
        )
    if found.notices:
        tables["notification"] = sorted(([n.did, n.reason, n.subject, n.sort_at] for n in found.notices), key=str)
    if found.invalid is None:
        tables["record"] = [[found.uri]]
    return tables


@pytest.mark.parametrize(("case", "official"), list(zip(CASES, RECORDED, strict=True)))
def test_rows_are_the_official_indexers(case: tuple[str, str, dict[str, Any]], official: dict[str, Any]) -> None:
    collection, rkey, record = case
    found = project(Source(DID, collection, rkey, CID, json.dumps(record), INDEXED))
    assert found is not None
    ours = stored(found)
    if record.get("embed") == NO_IMAGES:
        # the official indexers fail in SQL and lose the post (see `appview.projection.embeds`)
        assert (official, sorted(ours)) == ({}, ["feed_item", "post", "record"])
        return
    if "older" in official:  # what the newest refuses, the mirror takes as the older does
        official = official["older"]
        ours = {table: rows for table, rows in ours.items() if table not in NEWER_TABLES}
    assert ours == official


def test_recording_has_every_table() -> None:
    assert {table for official in RECORDED for table in official} >= set(COLUMNS)
