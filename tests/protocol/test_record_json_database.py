"""What record_body writes, PostgreSQL's type `json` takes, and gives back byte for byte."""

import cbrrr
import psycopg

from protocol.cid import dag_cbor_cid
from protocol.encoding.cbor_scan import MAX_DEPTH
from protocol.encoding.record_json import body_cid, record_body


def test_hostile_json_survives_the_column_type(blank_database: str) -> None:
    nested: object = 1
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    values = [
        {
            "nul": "a\0b",
            "nul\0key": "\\u0000",
            "controls": "".join(map(chr, range(32))),
            "odd": "\u2028\ufffe\ufeff\U0010ffff",
        },
        {"integers": [2**63 - 1, -(2**63), 2**64 - 1, -(2**64)]},
        {"bytes": bytes(range(256)), "link": cbrrr.CID(b"\x01\x71\x12\x20" + bytes(32))},
        {"text": "ü€😀" * 10_000},
        {"nested": nested},
        {"float": 1e300, "link": {"$link": "x"}},
    ]
    with psycopg.connect(blank_database) as connection:
        connection.execute("CREATE TABLE record (id integer PRIMARY KEY, json json)")
        for at, value in enumerate(values):
            block = cbrrr.encode_dag_cbor(value)
            body = record_body(block)
            assert body.json is not None
            connection.execute("INSERT INTO record VALUES (%s, %s::json)", (at, body.json.decode()))
            row = connection.execute("SELECT json::text FROM record WHERE id = %s", (at,)).fetchone()
            assert row is not None
            assert body_cid(row[0].encode(), body.raw) == dag_cbor_cid(block)
