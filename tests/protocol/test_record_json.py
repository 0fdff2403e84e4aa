"""Hostile and ordinary records: the JSON hashes back to the CID, or the block stands beside it."""

import json
import time
from hashlib import sha256
from random import Random
from typing import Any

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.cid import cid_bytes, cid_str, dag_cbor_cid
from protocol.encoding import loose_cbor
from protocol.encoding.cbor_scan import MAX_DEPTH
from protocol.encoding.record_json import BodyReason, RecordBody, body_cid, leaf_body, record_body

CID = cbrrr.CID(b"\x01\x71\x12\x20" + sha256(b"x").digest())
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.binary()
    | st.binary(max_size=40).map(cbrrr.CID)
)  # fmt: skip
KEYS = st.text(max_size=8, alphabet=st.characters(exclude_categories=["Cs"])).filter(
    lambda k: k not in ("$link", "$bytes")
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.binary()
    | st.just(CID), lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=20
)  # fmt: skip
WILD = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS | st.sampled_from(["$link", "$bytes"]), v, max_size=4),
    max_leaves=20,
)


def lossless(value: object) -> object:
    """Assert that the JSON alone carries the record; returns the JSON's value."""
    block = cbrrr.encode_dag_cbor(value)
    body = record_body(block)
    assert body.raw is None, body
    assert body.reason is None
    assert body.json is not None
    assert body_cid(body.json, None) == dag_cbor_cid(block)
    return json.loads(body.json.decode("utf-8"))


def test_types_come_from_the_cbor() -> None:
    value = lossless({"link": CID, "bytes": b"\0\1\2", "list": [0, 1, 2], "like": {"ref": "bafyrei"}})
    assert value == {
        "link": {"$link": CID.encode()},
        "bytes": {"$bytes": "AAEC"},
        "list": [0, 1, 2],
        "like": {"ref": "bafyrei"},
    }


@pytest.mark.parametrize(
    "value",
    [
        {"text": "a\0b", "key\0": 1, "escaped": "\\u0000"},
        {"max": 2**63 - 1, "min": -(2**63), "unsigned": 2**64 - 1, "lowest": -(2**64)},
        {"b": b"", "c": bytes(range(256)), "d": [b"x", CID]},
        {"text": "ü€😀\u2028\ufffe" * 10_000},
        {"createdAt": "not a date", "$type": "org.nobody.knows.this"},
        {},
        {"": {"": []}},
        {"a": [[[{"b": None}]]], "t": True, "f": False},
        {"x": ["[{" * 1000]},  # brackets in text are no depth
        {"wide": [[] for _ in range(1000)]},
    ],
    ids=["nul", "64-bit", "bytes-links", "90kB", "dates", "empty", "empty-key", "nested", "brackets", "wide"],
)
def test_hostile_records_are_lossless(value: dict) -> None:
    """Hostile records survive the trip: JSON → DAG-CBOR → the same CID."""
    lossless(value)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_every_record_of_the_data_model_is_lossless(value: dict) -> None:
    lossless(value)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, WILD, max_size=4) | WILD)
def test_whatever_is_in_it_the_cid_comes_back(value: object) -> None:
    block = cbrrr.encode_dag_cbor(value)
    body = record_body(block)
    assert body_cid(body.json, body.raw) == dag_cbor_cid(block)
    assert (body.raw is None) == (body.reason is None)
    assert body.raw in (None, block)
    if body.json is not None:
        assert isinstance(json.loads(body.json.decode("utf-8")), dict)


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"\xa1\x61a" + b))
def test_no_bytes_make_it_raise(block: bytes) -> None:
    """G7: one bad block never stops the rest."""
    body = record_body(block)
    assert body_cid(body.json, body.raw) == dag_cbor_cid(block)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": {"$link": "x"}}, BodyReason.DOLLAR_KEY),
        ({"a": {"$link": CID.encode()}}, BodyReason.DOLLAR_KEY),
        ({"a": [{"$bytes": "AAEC", "b": 1}]}, BodyReason.DOLLAR_KEY),
        ({"$link": "x", "f": 1.5}, BodyReason.DOLLAR_KEY),
        ({"a": 1.5}, BodyReason.FLOAT),
        ({"a": [1.0, b"x", CID]}, BodyReason.FLOAT),
    ],
)
def test_what_json_cannot_carry_keeps_its_block_beside_it(value: dict, reason: BodyReason) -> None:
    block = cbrrr.encode_dag_cbor(value)
    body = record_body(block)
    assert (body.raw, body.reason) == (block, reason)
    assert body.json is not None
    assert body_cid(body.json, body.raw) == dag_cbor_cid(block)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\xa1\x61a\xfb\x7f\xf8" + bytes(6), BodyReason.FLOAT),  # NaN
        (b"\xa1\x61a\xfb\x7f\xf0" + bytes(6), BodyReason.FLOAT),  # infinity
        (b"\xa1\x61a\x18\x01", BodyReason.NOT_CANONICAL),  # long spelling of 1
        (b"\xa2\x61a\x01\x61a\x02", BodyReason.NOT_CANONICAL),  # key twice
        (b"\xa1\x61a\xf9\x7e\x00", BodyReason.NOT_CANONICAL),  # NaN as a half float
        (b"\xa3\x61b\x01\x61a\x02\x61b\x03", BodyReason.NOT_CANONICAL),  # key order, and a key twice
        (b"\xa2\x61b\x01\x61a\x18\x01", BodyReason.NOT_CANONICAL),  # key order, and a long spelling
        (b"\xa2\x61b\x01\x61a", BodyReason.NOT_CANONICAL),  # key order, and cut off
        (b"\xa2\x61b\x01\x61a\x02\x00", BodyReason.NOT_CANONICAL),  # key order, and bytes behind the end
        (b"\xa2\x61b\x01\x61a\xf8\x20", BodyReason.NOT_CANONICAL),  # a simple value that nobody knows
        (b"\xa2\x61b\x01\x61a\xd8\x2a\x41\x00", BodyReason.NOT_CANONICAL),  # no CID in the link
        (b"\xa2\x61b\x01\x61a" + b"\x81" * 128 + b"\x01", BodyReason.TOO_DEEP),
        (b"\xa2\x61b\x01\x61a\x9a\x00\x01\x86\xa0" + b"\xf6" * 100_000, BodyReason.TOO_MANY_ITEMS),  # key order as well
        (b"\xa1\x61a\x9a\x00\x01\x86\xa0" + b"\x80" * 100_000, BodyReason.TOO_MANY_ITEMS),
        (b"\x82\xa2\x61b\x01\x61a\x02\x01", BodyReason.NOT_A_MAP),
        (b"\xbf\x61a\x01\xff", BodyReason.NOT_CANONICAL),  # indefinite length
        (b"\xa1\x61a\xc2\x41\x01", BodyReason.NOT_CANONICAL),  # bignum
        (b"\xa1\x01\x01", BodyReason.NOT_CANONICAL),  # integer key
        (b"\xa2\x61\xfe\x01\x61\xff\x02", BodyReason.INVALID_UTF8),  # read with U+FFFD, a key is there twice
        (b"\xa1\x61a\x82\x61\xff", BodyReason.INVALID_UTF8),  # and cut off
        (b"", BodyReason.UNDECODABLE),
        (b"\xa1\x61a", BodyReason.UNDECODABLE),
        (b"\xa0\xa0", BodyReason.UNDECODABLE),
        (b"\xa1\x61a\x7b" + b"\xff" * 8, BodyReason.UNDECODABLE),
        (b"\x01", BodyReason.NOT_A_MAP),
        (b"\xfb\x3f\xf8" + bytes(6), BodyReason.NOT_A_MAP),
        (b"\x80", BodyReason.NOT_A_MAP),
        (b"\x41\x00", BodyReason.NOT_A_MAP),
        (b"\xd8\x2a\x58\x25\x00" + CID.cid_bytes, BodyReason.NOT_A_MAP),  # as JSON it would look like a map
    ],
)
def test_what_has_no_json_is_kept_as_it_is(block: bytes, reason: BodyReason) -> None:
    body = record_body(block)
    assert (body.json, body.raw, body.reason) == (None, block, reason)


@pytest.mark.parametrize(
    ("block", "json"),
    [
        (b"\xa2\x61b\x01\x61a\x02", b'{"b":1,"a":2}'),  # key order
        (b"\xa2\x62aa\x01\x61b\xa2\x61d\x20\x61c\x40", b'{"aa":1,"b":{"d":-1,"c":{"$bytes":""}}}'),
        (b"\xa1\x61a\xf9\x3e\x00", b'{"a":1.5}'),  # half float
        (b"\xa1\x61a\xfa\x3f\xc0\x00\x00", b'{"a":1.5}'),  # single float
        (b"\xa1\x61a\xf9\x3c\x00", b'{"a":1}'),
        (b"\xa2\x64user\xf6\x63NaN\xf6", b'{"user":null,"NaN":null}'),  # the decoder's message quotes the keys
        (b"\xa2\x61b\xf7\x61a\x82\xf5\xf4", b'{"b":null,"a":[true,false]}'),  # undefined
        (
            b"\xa2\x61b\xd8\x2a\x58\x25\x00" + CID.cid_bytes + b"\x61a\x1b" + b"\xff" * 8,
            b'{"b":{"$link":"' + CID.encode().encode() + b'"},"a":18446744073709551615}',
        ),
        (b"\xa2\x61b\x62\xc3\xbc\x61a" + b"\x81" * 127 + b"\x01", '{"b":"ü","a":'.encode() + b"[" * 127 + b"1" + b"]" * 127 + b"}"),
    ],
)  # fmt: skip
def test_what_the_official_appview_reads_has_json_beside_its_block(block: bytes, json: bytes) -> None:
    """G3: key order and short floats cost a record its canonical form, and not its JSON."""
    body = record_body(block)
    assert (body.json, body.raw, body.reason) == (json, block, BodyReason.NOT_CANONICAL)
    assert body_cid(body.json, body.raw) == dag_cbor_cid(block)


@settings(max_examples=100)
@given(st.dictionaries(KEYS, PLAIN, max_size=6), st.randoms(use_true_random=False))
def test_any_order_of_keys_gives_the_json_of_the_canonical_order(value: dict, order: Random) -> None:
    """G3: two decoders, one in C and one of ours, agree on everything else."""
    shuffled = written(value, order)
    assert loose_cbor.decode(shuffled, MAX_DEPTH) == value
    body, canonical = record_body(shuffled), record_body(cbrrr.encode_dag_cbor(value))
    assert canonical.json is not None
    assert body.json is not None
    assert json.loads(body.json) == json.loads(canonical.json)
    assert (body.reason is None) == (shuffled == cbrrr.encode_dag_cbor(value))


def written(value: object, order: Random) -> bytes:
    """DAG-CBOR with the keys of each map in this order."""
    if isinstance(value, list):
        return cbrrr.encode_dag_cbor([None] * len(value))[: -len(value) or None] + b"".join(
            written(item, order) for item in value
        )
    if not isinstance(value, dict):
        return cbrrr.encode_dag_cbor(value)
    keys = list(value)
    order.shuffle(keys)
    head = cbrrr.encode_dag_cbor({str(n): None for n in range(len(keys))})[:1]  # few keys: one byte
    return head + b"".join(cbrrr.encode_dag_cbor(key) + written(value[key], order) for key in keys)


@pytest.mark.parametrize(
    ("block", "json"),
    [
        (b"\xa1\x61a\x61\xff", '{"a":"\ufffd"}'),
        (b"\xa1\x61a\x65a\xffb\xc3\xa4", '{"a":"a\ufffdb\u00e4"}'),
        (b"\xa1\x61a\x63\xed\xa0\x80", '{"a":"\ufffd\ufffd\ufffd"}'),  # a surrogate
        (b"\xa1\x61\xff\x01", '{"\ufffd":1}'),
        (b"\xa2\x61b\x01\x61a\x61\xff", '{"b":1,"a":"\ufffd"}'),  # and out of order
    ],
)
def test_text_that_is_not_utf8_is_read_as_the_official_appview_reads_it(block: bytes, json: str) -> None:
    """G3: its decoder puts U+FFFD there and shows the post."""
    body = record_body(block)
    assert (body.json, body.raw, body.reason) == (json.encode(), block, BodyReason.INVALID_UTF8)


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61a", b"\x82\x80", b"\xa2\x61b\x01\x61a"])
def test_a_large_bomb_is_refused_without_decoding_it(opening: bytes) -> None:
    """H2: two megabytes of nesting took seconds of the flow's time; in order or not."""
    started = time.process_time()
    body = record_body(b"\xa1\x61a" + opening * (2_000_000 // len(opening)) + b"\x01")
    assert (body.json, body.reason) == (None, BodyReason.TOO_DEEP)
    assert time.process_time() - started < 1.0


def test_the_depth_of_a_large_record_is_exact() -> None:
    """The scan before the decoding refuses no record that is within the limit."""
    for levels in (MAX_DEPTH, MAX_DEPTH + 1):
        value: dict[str, Any] = {"text": "x" * 70_000}
        for _ in range(levels - 1):
            value = {"a": value}
        body = record_body(cbrrr.encode_dag_cbor(value))
        assert body.reason is (None if levels == MAX_DEPTH else BodyReason.TOO_DEEP)


def test_a_leaf_is_read_by_the_codec_of_its_cid() -> None:
    """G3: a raw block is bytes, whatever they look like; what no hash of ours proves has no body."""
    block = cbrrr.encode_dag_cbor({"a": 1})
    raw = b"\x01\x55\x12\x20" + sha256(block).digest()
    foreign = b"\x01\x71\x13\x40" + bytes(64)
    assert leaf_body(raw, block, BodyReason.TOO_LARGE) == RecordBody(None, block, BodyReason.RAW_BLOCK)
    assert body_cid(None, block, cid_str(raw)) == cid_str(raw)
    assert leaf_body(cid_bytes(dag_cbor_cid(block)), block, BodyReason.TOO_LARGE) == RecordBody(b'{"a":1}', None, None)
    for cid, reason in ((raw, BodyReason.TOO_LARGE), (foreign, BodyReason.FOREIGN_CID)):
        assert leaf_body(cid, None, BodyReason.TOO_LARGE) == RecordBody(None, None, reason)


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61a"], ids=["lists", "maps"])
@pytest.mark.parametrize("end", [b"\x01", b"\xfb\x3f\xf8" + bytes(6)], ids=["int", "float"])
def test_depth_is_limited(opening: bytes, end: bytes) -> None:
    """G9: depth bombs end as a typed reason, at exactly the same depth however they are decoded."""
    for inner in (MAX_DEPTH - 1, MAX_DEPTH, 900, 5000, 2_000_000 // len(opening)):
        body = record_body(b"\xa1\x61a" + opening * inner + end)
        too_deep = inner + 1 > MAX_DEPTH
        assert (body.reason is BodyReason.TOO_DEEP) == too_deep
        assert (body.json is None) == too_deep


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1.5]",
        b'{"a":{"$link":5}}',
        b'{"a":{"$link":"b!"}}',
        b'{"a":{"$bytes":"*"}}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 40 + b"}",
        b"[" * 5000,
    ],
)
def test_json_that_is_no_record_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the libraries' sentences differ)
        body_cid(text, None)
