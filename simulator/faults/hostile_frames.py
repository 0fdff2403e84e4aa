"""Frames that exhaust a reader without limits: deep nesting and a million items. They must not move a cursor."""

from cbrrr import encode_dag_cbor

DEPTH = 996
ITEMS = 1_000_000

_NESTED = b"\x81" * DEPTH + b"\0"
_ITEMS = b"\x9a" + ITEMS.to_bytes(4) + b"\x80" * ITEMS


def frames(kind: str, seq: int) -> list[bytes]:
    """Hostile frames that claim to be messages of this type."""
    header = encode_dag_cbor({"op": 1, "t": kind})
    field = "labels" if kind == "#labels" else "ops"
    return [
        b"\xa2\x61t\x67#commit\x62op" + _NESTED + _body(seq, field, b"\x80"),
        b"\xa2\x61t" + _NESTED + b"\x62op\x01" + _body(seq, field, b"\x80"),
        header + _body(seq, field, _NESTED),
        header + _body(seq, field, _ITEMS),
        _ITEMS,
    ]


def _body(seq: int, field: str, value: bytes) -> bytes:
    fields = {encode_dag_cbor("seq"): encode_dag_cbor(seq), encode_dag_cbor(field): value}
    return b"\xa2" + b"".join(key + fields[key] for key in sorted(fields, key=lambda key: (len(key), key)))
