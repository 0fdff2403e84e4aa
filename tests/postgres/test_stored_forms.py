"""CIDs, TIDs, times and commit blocks in their stored form, which gives them back; of the first three in Python and in SQL."""

from __future__ import annotations

import base64
import lzma
import re
from random import Random

import cbrrr
import psycopg
import pytest

from connectors.postgres.stored_forms import block_column, cid_column, commit_block, rev_column, time_column
from protocol.cid import any_cid_bytes, cid_str
from protocol.syntax import is_tid, tid_from_micros
from tests.support import ROOT
from tests.support.tiny_repo import DID, REV, sample

CID = re.compile(rb"\b(?:b[a-z2-7]{20,130}|Qm[1-9A-HJ-NP-Za-km-z]{44})\b")
BLOCK = re.compile(rb"[A-Za-z0-9+/]{100,}")
RAW = re.compile(rb"\x01[\x71\x55]\x12\x20.{32}", re.DOTALL)
SUFFIXES = {".py", ".json", ".xz", ".md", ".mjs", ".txt", ".sql"}


def cids_of_the_suite() -> list[str]:
    """Every CID in a file of the tests, benchmarks and docs: as text, and as bytes in recorded frames and CARs (base64)."""
    found: set[str] = set()
    for folder in ("tests", "bench", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
                found |= {cid.decode() for cid in CID.findall(data)}
                for block in BLOCK.findall(data):
                    found |= {cid_str(cid) for cid in RAW.findall(base64.b64decode(block[: len(block) // 4 * 4]))}
    return sorted(text for text in found if is_canonical(text))


def is_canonical(text: str) -> bool:
    try:
        any_cid_bytes(text)
    except Exception:
        return False
    return True


def odd_cids(random: Random) -> list[str]:
    """CIDs of other codecs, hash functions and lengths, and of version 0."""
    made = [cid_str(b"\x12\x20" + random.randbytes(32)) for _ in range(50)] + [cid_str(b"\x12\x20" + bytes(32))]
    for size in range(0, 65):
        made.append(cid_str(bytes([1, 0x55, 0x12, size]) + random.randbytes(size)))
        made.append(cid_str(b"\x01\xa9\x02\x13" + bytes([size]) + random.randbytes(size)))
    return made


NO_CIDS = [
    "",
    "x",
    "b",
    "bafy",
    "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvykU",
    "Qm" + "z" * 44,
    "ü\\x",
    "bb" * 40,
    "x" * 31,
    "x" * 32,
]


def test_every_cid_of_the_suite_comes_back(database: str) -> None:
    """G2, S7: bytes and text of a CID, in Python and in SQL, also of odd ones; what is no CID is kept as it is."""
    known = cids_of_the_suite()
    assert len(known) > 500
    texts = known + odd_cids(Random(1)) + NO_CIDS
    with psycopg.connect(database) as db:
        rows = db.execute(
            "select t, sluice.cid_bytes(t), sluice.cid_raw(sluice.cid_bytes(t)), sluice.cid_text(sluice.cid_bytes(t)) from unnest(%s::text[]) as u (t)",
            (texts,),
        ).fetchall()
    assert len(rows) == len(texts)
    for text, stored, raw, back in rows:
        assert (stored, back) == (cid_column(text), text), text
        assert raw == (any_cid_bytes(text) if text not in NO_CIDS else b"\0" + text.encode())
    assert len({stored for _, stored, _, _ in rows}) == len(set(texts))


def test_a_usual_cid_is_stored_as_its_hash() -> None:
    """G2: without the four bytes that they all begin with; what has 32 bytes by chance is not taken for a hash."""
    digest = Random(3).randbytes(32)
    assert cid_column(cid_str(b"\1\x71\x12\x20" + digest)) == digest
    assert cid_column(cid_str(b"\1\x55\x12\x20" + digest)) == b"\1\x55\x12\x20" + digest
    assert cid_column(cid_str(b"\1\x55\x12\x1c" + digest[:28])) == b"\xff\1\x55\x12\x1c" + digest[:28]
    assert cid_column("x" * 31) == b"\xff\0" + b"x" * 31


def test_a_tid_is_a_number_in_the_same_order(database: str) -> None:
    """G2, S7"""
    random = Random(2)
    tids = sorted({tid_from_micros(random.randrange(1 << 53), random.randrange(1024)) for _ in range(500)})
    tids += ["2222222222222", "7zzzzzzzzzzzz", "3lbenchmark22"]
    with psycopg.connect(database) as db:
        rows = db.execute(
            "select t, sluice.tid_number(t), sluice.tid_text(sluice.tid_number(t)) from unnest(%s::text[]) as u (t)",
            (tids,),
        ).fetchall()
        high = db.execute("select sluice.tid_text(sluice.tid_number('jzzzzzzzzzzzz'))").fetchone()
        none = db.execute("select sluice.tid_number('3l2'), sluice.tid_number('zzzzzzzzzzzzz')").fetchone()
    assert all((number, back) == (rev_column(text), text) for text, number, back in rows)
    assert sorted(tids) == sorted(tids, key=rev_column)
    assert (high, none) == (("jzzzzzzzzzzzz",), (None, None))
    assert is_tid("jzzzzzzzzzzzz")
    assert rev_column("jzzzzzzzzzzzz") < 0
    with pytest.raises(ValueError, match="not a TID"):
        rev_column("3l2")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T00:00:00.123456Z", "2026-01-01T00:00:00.123Z"),
        ("1999-12-31T23:59:59.9Z", "1999-12-31T23:59:59.900Z"),
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00.000Z"),
        ("yesterday", "1970-01-01T00:00:00.000Z"),
    ],
)
def test_a_time_is_stored_to_the_millisecond(database: str, text: str, shown: str) -> None:
    with psycopg.connect(database) as db:
        row = db.execute(
            "select sluice.time_text(timestamptz '2000-01-01Z' + %s * interval '1 microsecond')", (time_column(text),)
        ).fetchone()
    assert row == (shown,)


def test_a_commit_block_is_its_signature_where_the_row_has_the_rest() -> None:
    usual = sample(2)
    data = cid_str(usual.data)
    stored = block_column(usual.blocks[usual.commit], DID, REV, data)
    assert len(stored) == 64
    assert commit_block(stored, DID, REV, data) == usual.blocks[usual.commit]
    for repo in (sample(2, overrides={"future": 1}), sample(2, overrides={"prev": cbrrr.CID(usual.commit)})):
        block, data = repo.blocks[repo.commit], cid_str(repo.data)
        assert commit_block(block_column(block, DID, REV, data), DID, REV, data) == block
    assert block_column(usual.blocks[usual.commit], DID, REV, "root") == usual.blocks[usual.commit]
    assert commit_block(stored, DID, REV, "root") == stored, "a row that was changed: an audit finds it"
    assert commit_block(None, DID, REV, None) is None
