"""Inputs from which the fuzzers start: real ones of every parser, and the shapes that have hurt one."""

from __future__ import annotations

import json
from typing import Any

import cbrrr

from tests.fuzz.test_parsers import BLOCKS, FRAMES, NODES, REPO
from tests.support.tiny_repo import DID, Key

NEST = b"\x81" * 996 + b"\0"
BOMB = b"\x9a\x00\x0f\x42\x40" + b"\x80" * 1_000_000
_HEADER = cbrrr.encode_dag_cbor({"op": 1, "t": "#labels"})
HOSTILE = [
    NEST,
    b"\xa1" + b"\x61a" + NEST,
    b"\xa2\x61t\x67#commit\x62op" + NEST + b"\xa1\x63seq\x07",
    _HEADER + b"\xa2\x63seq\x07\x66labels" + NEST,
    _HEADER + b"\xa2\x63seq\x07\x66labels" + b"\x99\x03\xe8" + b"\x80" * 1000,
    b"\x80" * 16_000,
]


def _events() -> list[bytes]:
    time = "2026-01-01T00:00:00.000Z"
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("#identity", {"did": DID, "time": time, "handle": "bob.test"}),
        ("#account", {"did": DID, "time": time, "active": False, "status": "takendown"}),
        ("#sync", {"did": DID, "time": time, "rev": REPO.rev, "blocks": REPO.car()}),
        ("#info", {"name": "OutdatedCursor", "message": "x"}),
    ]
    frames = [
        cbrrr.encode_dag_cbor({"op": 1, "t": kind}) + cbrrr.encode_dag_cbor(body | {"seq": 7}) for kind, body in bodies
    ]
    error = cbrrr.encode_dag_cbor({"op": -1}) + cbrrr.encode_dag_cbor({"error": "FutureCursor", "message": "x"})
    return [*frames, error]


def _documents() -> list[bytes]:
    key = Key().multibase
    document = {
        "id": DID,
        "alsoKnownAs": ["at://bob.test"],
        "verificationMethod": [{"id": "#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": key}],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example"}
        ],
    }
    other = document | {"id": ["x"] * 20, "alsoKnownAs": {"a": 1}}
    refusal = {"message": f"DID not registered: {DID}"}
    status = {"did": DID, "active": False, "status": "takendown"}
    return [json.dumps(one).encode() for one in (document, other, refusal, status)] + [
        b"[" * 500,
        b'"\xff"',
        b'"\\ud800"',
    ]


def _listings() -> list[bytes]:
    row = {"did": DID, "head": "bafyx", "rev": REPO.rev, "active": True}
    pages: list[Any] = [
        {"repos": [row, {"did": 1}], "cursor": "1"},
        {"repos": None, "cursor": 10**40},
        {"hosts": [{"hostname": "pds.example:8080", "status": "active"}, {"hostname": "http://x/y"}], "cursor": "a"},
        {"error": "RepoNotFound", "message": "\x1b]0;x\x07"},
    ]
    return [json.dumps(page).encode() for page in pages] + [b"[" + b"[]," * 5000 + b"[]]"]


SEEDS: dict[str, list[bytes]] = {
    "frame": [*FRAMES, *_events(), *HOSTILE, _HEADER + b"\xa2\x63seq\x07\x66labels" + BOMB],
    "archive": [REPO.car(), b"<!doctype html>"],
    "node": NODES,
    "commit": [REPO.blocks[REPO.commit]],
    "record": [*BLOCKS, *HOSTILE],
    "items": [*FRAMES, *BLOCKS, *HOSTILE, BOMB],
    "listing": _listings(),
    "document": _documents(),
    "text": [
        f"did={DID}".encode(),
        DID.encode(),
        b"120",
        b"Wed, 21 Oct 2026 07:28:00 GMT",
        b"https://u:p@[::1]:99999/\r\n",
    ],
}
