"""Records of every collection become the rows that the official indexer makes of them (N10)."""

import json
from typing import Any

import pytest

from appview.projection.project import KNOWN, Projected, Source, project
from appview.projection.rows import COLUMNS, OWNER, UNIQUE

ME = "did:plc:" + "a" * 24
YOU = "did:plc:" + "b" * 24
OTHER = "did:web:other.example.com"
CID = "bafyreib7xb2qc2xq5k3mzfjc4uzdyxsw2bukmlvtt3b7ptp4hnxq7gz6ai"
BLOB_CID = "bafkreib7xb2qc2xq5k3mzfjc4uzdyxsw2bukmlvtt3b7ptp4hnxq7gz6ai"
BLOB = {"$type": "blob", "ref": {"$link": BLOB_CID}, "mimeType": "image/jpeg", "size": 1000}
CREATED, INDEXED = "2024-01-02T03:04:05.678Z", "2024-01-02T03:04:06.000Z"
POST = f"at://{YOU}/app.bsky.feed.post/3k2aaaaaaaaaa"
REPOST = f"at://{OTHER}/app.bsky.feed.repost/3k2aaaaaaaaaa"
LIST = f"at://{ME}/app.bsky.graph.list/3k2aaaaaaaaaa"
KEY = "3k2bbbbbbbbbb"
JSONB = {("post", "langs"), ("post", "tags")}  # every other column is varchar


def ref(uri: str) -> dict[str, str]:
    return {"uri": uri, "cid": CID}


def projected(collection: str, rkey: str = KEY, **record: Any) -> Projected:
    whole = {"$type": collection, "createdAt": CREATED} | record
    found = project(Source(ME, collection, rkey, CID, json.dumps(whole), INDEXED))
    assert found is not None
    return found


def rows(found: Projected) -> dict[str, list[dict[str, str | None]]]:
    assert found.invalid is None
    return {
        table: [dict(zip(COLUMNS[table], row, strict=True)) for row in lines] for table, lines in found.rows.items()
    }


def test_like() -> None:
    found = projected("app.bsky.feed.like", subject=ref(POST), via=ref(REPOST))
    uri = f"at://{ME}/app.bsky.feed.like/{KEY}"
    assert rows(found) == {
        "like": [
            {
                **{"uri": uri, "cid": CID, "creator": ME, "subject": POST, "subjectCid": CID, "via": REPOST},
                **{"viaCid": CID, "createdAt": CREATED, "indexedAt": INDEXED},
            }
        ]
    }
    assert [(n.did, n.reason, n.subject, n.sort_at) for n in found.notices] == [
        (YOU, "like", POST, CREATED),
        (OTHER, "like-via-repost", REPOST, CREATED),
    ]


@pytest.mark.parametrize("kind", ["like", "repost"])
def test_an_action_on_an_own_post_makes_no_notification(kind: str) -> None:
    mine = f"at://{ME}/app.bsky.feed.post/3k2aaaaaaaaaa"
    assert projected(f"app.bsky.feed.{kind}", subject=ref(mine), via=ref(REPOST)).notices == []
    via_mine = projected(f"app.bsky.feed.{kind}", subject=ref(POST), via=ref(mine))
    assert [notice.reason for notice in via_mine.notices] == [kind]


def test_repost_is_a_feed_item_too() -> None:
    found = projected("app.bsky.feed.repost", subject=ref(POST))
    uri = f"at://{ME}/app.bsky.feed.repost/{KEY}"
    assert rows(found)["repost"][0]["via"] is None
    assert rows(found)["feed_item"] == [
        {"uri": uri, "cid": CID, "type": "repost", "postUri": POST, "originatorDid": ME, "sortAt": CREATED}
    ]


def test_follow_of_oneself_is_noticed() -> None:
    found = projected("app.bsky.graph.follow", subject=ME)
    assert rows(found)["follow"][0]["subjectDid"] == ME
    assert [(n.did, n.reason, n.subject) for n in found.notices] == [(ME, "follow", None)]


def test_record_dated_ahead_sorts_where_it_was_indexed() -> None:
    found = projected("app.bsky.feed.repost", subject=ref(POST), createdAt="2099-01-01T00:00:00Z")
    assert rows(found)["repost"][0]["createdAt"] == "2099-01-01T00:00:00.000Z"
    assert rows(found)["feed_item"][0]["sortAt"] == found.sort_at == found.notices[0].sort_at == INDEXED


def test_a_collection_without_a_table_has_no_rows() -> None:
    assert project(Source(ME, "com.example.thing", KEY, CID, "{}", INDEXED)) is None
    assert "com.example.thing" not in KNOWN


def test_tables_agree_with_each_other() -> None:
    assert set(UNIQUE) | set(OWNER) <= set(COLUMNS)
    for table, key in [*UNIQUE.items(), *((table, (column,)) for table, column in [*OWNER.items(), *JSONB])]:
        assert set(key) <= set(COLUMNS[table])
