"""`sluice repo` and `sluice record`: what the tables have of one repo and one record, also of several shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.status_text import record_page
from connectors.postgres.shard_identity import prepare_shards
from control.repo_details import parts_of
from schemas.errors import OperatorError
from schemas.settings import Settings
from simulator.faults.hostile_lists import ESCAPES
from steps.partitioner import partition_of
from tests.support.postgres import fresh_database

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
OTHER = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
REV = "3l22222222222"
URI = f"at://{DID}/app.bsky.feed.post/3k2"
REPO = f"""
insert into sluice.repo (did, phase, reason, rev, seen_rev, data, commit, attempt, retry_count, last_error, fetched_at, buffered)
    values ('{DID}', 'sync', 'snapshot', '{REV}', '{REV}', 'root', 'head', 3, 2, 'http_status: 500', '{{2026-01-01Z, 2026-01-02Z}}', 1);
insert into sluice.backfill_attempt (did, attempt, host, started_at, ended_at, outcome, error)
    select '{DID}', n, 'https://pds.test', now(), now(), 'failed', 'error ' || n from generate_series(1, 3) n;
insert into sluice.collection (name) values ('app.bsky.feed.post');
insert into sluice.record_row (rev, indexed_at, repo, collection, attempt, rkey, cid, json, raw, reason)
    select sluice.tid_number('{REV}'), now() + n * interval '1 s', r.id, c.id, 1, '3k' || n, sluice.cid_bytes('{CID}'),
           '{{"text":"é","n":1.0}}', '\\x0102', 'float'
    from sluice.repo r, sluice.collection c, generate_series(1, 12) n;
insert into sluice.label (src, uri, val, neg, cts, seq) values
    ('did:plc:labeler', '{DID}', 'spam', false, '2026-01-01T00:00:00Z', 1),
    ('did:plc:labeler', '{URI}', 'nude', false, '2026-01-02T00:00:00Z', 2),
    ('did:plc:labeler', '{DID}x', 'of-another', false, '2026-01-03T00:00:00Z', 3);
insert into sluice.buffered_event (did, log_offset, rev, event) values ('{DID}', 7, '3l33333333333', '')
"""
MAIN = f"""
insert into sluice.identity (did, pds) values ('{DID}', 'https://pds.test');
insert into sluice.handle (did, handle, verified, verified_at) values ('{DID}', 'alice.test', true, now());
insert into sluice.handle (did, handle, reason) values ('{OTHER}', 'alice.test', 'elsewhere'), ('did:web:a', 'bob.test', null),
    ('did:web:b', 'bob.test', null), ('did:web:c', 'unseen.test', null);
insert into sluice.dead_letter (part, log_offset, topic, did, reason, error) values (1, 2, 'firehose_live', '{DID}', 'no_key', 'x')
"""


@pytest.fixture(params=["one database", "two shards"])
def variables(
    request: pytest.FixtureRequest,
    database: str,
    postgres: str,
    migrated_template: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, str]]:
    """The environment of a mirror that has one repo."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    with ExitStack() as closing:
        found, of_repo = {"SLUICE_DATABASE": database}, database
        if request.param == "two shards":
            urls = [closing.enter_context(fresh_database(postgres, migrated_template)) for _ in range(2)]
            shards = f"0-3={urls[0]} 4-7={urls[1]}"
            prepare_shards(Settings(database=database, shards=shards, kafka_partitions=8))
            found |= {"SLUICE_SHARDS": shards, "SLUICE_KAFKA_PARTITIONS": "8"}
            of_repo = urls[partition_of(DID, 8) > 3]
        for url, statements in ((of_repo, REPO), (database, MAIN)):
            with psycopg.connect(url, autocommit=True) as db:
                db.execute(statements.encode())
        yield found


def run(variables: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app, arguments, env=variables, prog_name="sluice")
    return ended.exit_code, ended.stdout, ended.stderr


def answer(variables: dict[str, str], *arguments: str) -> Any:
    code, out, err = run(variables, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_repo_and_a_record(variables: dict[str, str]) -> None:
    found = answer(variables, "repo", DID)
    assert (found["phase"], found["reason"], found["rev"], found["attempt"]) == ("sync", "snapshot", REV, 3)
    assert (found["last_error"], found["retry_count"], len(found["fetched_at"])) == ("http_status: 500", 2, 2)
    assert (found["identity"]["pds"], found["identity"]["handle"]) == ("https://pds.test", "alice.test")
    assert found["collections"] == {"app.bsky.feed.post": 12}
    assert [row["rkey"] for row in found["records"]] == [f"3k{n}" for n in range(12, 2, -1)], "the newest"
    assert [row["val"] for row in found["labels"]] == ["nude", "spam"]
    assert [row["rev"] for row in found["buffered_events"]] == ["3l33333333333"]
    assert [(row["attempt"], row["error"]) for row in found["attempts"]] == [(n, f"error {n}") for n in (3, 2, 1)]
    assert [row["id"] for row in found["dead_letters"]] == ["1:2"]
    assert answer(variables, "repo", "@Alice.test") == found, "the verified one of two that claim it"
    code, text, _ = run(variables, "repo", DID)
    assert code == 0
    for part in (
        "alice.test, verified 20",
        "sync (snapshot) since",
        "3; 2 failed in a row",
        "error 2\n",
        "http_status: 500",
        "1:2  ",
        "\napp.bsky.feed.post/3k2 ",
    ):
        assert part in text
    one = answer(variables, "record", URI)
    assert (one["uri"], one["cid"], one["rev"], one["reason"], one["raw"]) == (URI, CID, REV, "float", "AQI=")
    assert one["json"] == {"text": "é", "n": 1.0}
    assert answer(variables, "record", f"at://alice.test/{URI.partition(DID)[2][1:]}") == one
    assert '  "text": "é",' in run(variables, "record", URI)[1]


def test_what_is_not_there_is_one_line_and_exit_1_and_a_wrong_argument_exit_2(variables: dict[str, str]) -> None:
    wrong = {
        ("repo", OTHER): (1, f"{OTHER} is not in the mirror"),
        ("repo", "unseen.test"): (1, "unseen.test is not in the mirror"),
        ("repo", "nobody.test"): (1, "claims the handle nobody.test"),
        ("repo", "bob.test"): (
            2,
            "bob.test is claimed by several accounts, none of them verified: did:web:a, did:web:b",
        ),
        ("repo", "alice"): (2, "'alice' is not a DID or a handle"),
        ("record", f"{URI}x"): (1, f"{URI}x is not in the mirror; its repo is in phase sync"),
        ("record", f"at://{OTHER}/a.b.c/d"): (1, "its repo is unknown"),
        ("record", f"at://{DID}/a.b.c"): (2, "is not the AT-URI of a record; write at://DID/COLLECTION/RKEY"),
        ("record", f"at://{DID}:/a.b.c/d"): (2, "is not a DID or a handle"),
    }
    for command, (code, said) in wrong.items():
        ended = run(variables, *command)
        assert (ended[0], ended[1], ended[2].count("\n")) == (code, "", 1), (command, ended)
        assert said in ended[2]


def test_parts_of_an_at_uri() -> None:
    assert parts_of("at://a.test/b.c.d/e/f") == ("a.test", "b.c.d", "e/f")
    for wrong in ("", "at://", "at://a/b", "at://a//c", "https://a/b/c", "a/b/c"):
        with pytest.raises(OperatorError, match="not the AT-URI of a record"):
            parts_of(wrong)


def test_a_record_is_printable() -> None:
    """H8: whatever its author wrote."""
    row = {"uri": ESCAPES, "cid": CID, "rev": REV, "indexed_at": None, "reason": None, "raw": None}
    shown = record_page(row | {"json": {"text": f"{ESCAPES}\x9b\u202e\u2028\ud800"}})
    assert all(line.isprintable() for line in shown.split("\n"))
