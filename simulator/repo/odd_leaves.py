"""Unusual leaves that the protocol allows an account to sign, by kind.

The expected state lists them like any other leaf: path → CID. Current PDSes do not accept a record of 3 MiB, but the protocol
allows it.
"""

import hashlib
import random
from collections.abc import Callable
from typing import Any

from cbrrr import encode_dag_cbor

from simulator.repo.car import Block, cid_of
from simulator.repo.records import POST, timestamp
from simulator.repo.repository import RecordWrite
from simulator.repo.tid import tid

KINDS: dict[str, str] = {
    "leaf_raw": "the writer creates a leaf whose CID names raw bytes (codec 0x55)",
    "leaf_foreign": "the writer creates a leaf whose CID uses SHA-512 instead of SHA-256",
    "leaf_unordered": "the writer creates a post in non-canonical CBOR: unsorted keys and a half-precision float",
    "leaf_large": "the writer creates a record of `bytes` (default 3 MiB); too large for a #commit event, its PDS sends #sync",
    "leaf_repeated": "the writer creates the same record of `bytes` (default 20,000) control characters under `count` paths (default 20)",
}

_COLLECTION = "com.example.odd"
_HALF_FLOAT = b"\xf9\x3e\x00"  # 1.5


def odd_ops(kind: str, micros: Callable[[], int], rng: random.Random, given: dict[str, Any]) -> list[RecordWrite]:
    """The writes that create leaves of one kind. `micros` returns a new time in microseconds at each call, used as the rkey."""
    size, count = int(given.get("bytes", 3 << 20 if kind == "leaf_large" else 20_000)), int(given.get("count", 20))
    if kind == "leaf_raw":
        raw = rng.randbytes(40)
        return [RecordWrite("create", _path(micros), block=(b"\x01\x55\x12\x20" + hashlib.sha256(raw).digest(), raw))]
    if kind == "leaf_foreign":
        block = encode_dag_cbor({"$type": _COLLECTION, "noise": rng.randbytes(20)})
        return [
            RecordWrite("create", _path(micros), block=(b"\x01\x71\x13\x40" + hashlib.sha512(block).digest(), block))
        ]
    if kind == "leaf_unordered":
        now = micros()
        return [RecordWrite("create", f"{POST}/{tid(now)}", block=_unordered(now))]
    if kind == "leaf_large":
        return [RecordWrite("create", _path(micros), {"$type": _COLLECTION, "noise": rng.randbytes(size)})]
    record = {"$type": _COLLECTION, "text": "\x01" * size, "noise": rng.randbytes(20)}
    return [RecordWrite("create", _path(micros), record) for _ in range(count)]


def _path(micros: Callable[[], int]) -> str:
    return f"{_COLLECTION}/{tid(micros())}"


def _unordered(micros: int) -> Block:
    """A valid post in non-canonical DAG-CBOR."""
    fields: dict[str, Any] = {
        "text": "keys out of order",
        "createdAt": timestamp(micros),
        "$type": POST,
        "langs": ["en"],
    }
    block = bytes([0xA0 + len(fields) + 1])
    block += b"".join(encode_dag_cbor(key) + encode_dag_cbor(value) for key, value in fields.items())
    block += encode_dag_cbor("ratio") + _HALF_FLOAT
    return cid_of(block), block
