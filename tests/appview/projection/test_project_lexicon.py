"""What is valid for us is what is valid for the official validators (N10: lexicon validation).

Recorded, of each of some 46,000 records: whether @atproto/bsky 0.0.221 would index it (lenient), and 0.0.280 (strict: it
checks sizes and types of blobs, and refuses blobs without type, URIs with a slash at the end, times without zone).
We take what either takes: what the newest refuses has been in every AppView for years.
"""

import json
from pathlib import Path

import pytest

from appview.lexicons import definitions
from appview.projection.project import Source, project
from protocol.lexicon.datetimes import EPOCH, created_at, is_datetime
from protocol.lexicon.validator import Lexicon
from tests.appview.projection import lexicon_cases

RECORDED = Path(__file__).parent / "recorded"
ODD_SEPARATORS = {
    *("20240102T030405Z", "2024/01/02T03:04:05Z", "2024-01-02T03.04.05Z", "2024-01-02T030405Z", "2024-01-02T03:04:05,678Z"),
    *("2024-01-02T03:04:05x678Z", "2024-01-02T03:04:05 678Z", "2024-01-02T03:04:05:678Z"),
}  # fmt: skip
"""Valid for the lenient validator alone, which makes 1970 of them."""


def test_records_are_valid_that_an_official_validator_takes() -> None:
    recorded = json.loads((RECORDED / "verdicts.json").read_text())
    asked = lexicon_cases.asked()
    assert recorded["cases"] == lexicon_cases.digest(asked), "run record_verdicts.py: the cases changed"
    verdicts = [f"{int(recorded[mode], 16):0{len(asked)}b}" for mode in ("lenient", "strict")]
    lexicon = Lexicon(definitions())
    wrong = []
    valid = 0
    for (collection, record), lenient, strict in zip(asked, *verdicts, strict=True):
        ours = record.get("$type") == collection and lexicon.check(collection)(record) is None
        valid += ours
        if ours != ("1" in (lenient, strict)):
            wrong.append((ours, lenient, strict, json.dumps(record)[:500]))
    assert wrong == []
    assert len(asked) // 5 < valid < len(asked) // 2, "the cases prove little if nearly all are of one kind"


def test_times_are_read_as_javascript_reads_them() -> None:
    recorded = [json.loads(line) for line in (RECORDED / "times.jsonl").read_text().splitlines()]
    for text, lenient, strict, normalised in recorded:
        assert is_datetime(text) == ((lenient or strict) and text not in ODD_SEPARATORS), text
        if is_datetime(text):
            assert created_at(text) == normalised, text
        else:
            assert len(created_at(text)) == len(EPOCH), text
    assert len(recorded) > 80


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"createdAt": "2024-01-02T03:04:05Z"}, ": lacks text"),
        ({"text": "x" * 301, "createdAt": "2024-01-02T03:04:05Z"}, "/text: has 301 graphemes"),
        ({"text": "", "createdAt": "then"}, "/createdAt: is not a valid datetime"),
        ({"text": "", "createdAt": "2024-01-02T03:04:05Z", "embed": {"$type": "app.bsky.embed.images", "images": [{"alt": ""}]}}, "/embed/images/0: lacks image"),
    ],
)  # fmt: skip
def test_a_reason_names_place_and_cause(record: dict[str, object], why: str) -> None:
    whole = {"$type": "app.bsky.feed.post"} | record
    found = project(Source("did:plc:a", "app.bsky.feed.post", "a", "b", json.dumps(whole), "2024-01-02T03:04:05.000Z"))
    assert found is not None
    assert (found.invalid, found.rows, found.notices) == (why, {}, [])


def test_definition_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"value": {"type": "integer"}, "left": {"type": "ref", "ref": "tree"}}}
    check = Lexicon({"tree": tree}).check("tree")
    assert check({"value": 1, "left": {"left": {"value": 2}}}) is None
    assert check({"left": {"left": {"value": "2"}}}) == "/left/left/value: is not an integer"
