"""What `protocol/` makes of hostile input, as text, so that two processes can be compared.

Each parser gets the fuzzers' seeds, damaged copies of them, and real values with fields of other types. An outcome is the result
or the exception, with its type and message.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import cbrrr
import libipld

from protocol.car import CarIndex, CarLimits, salvaged
from protocol.commit import parse_commit
from protocol.did_document import parse_document
from protocol.encoding.bounded_json import JsonLimits
from protocol.encoding.bounded_json import decode as decode_json
from protocol.encoding.cbor_scan import integer_field, nested_deeper, scan, scan_all
from protocol.encoding.record_json import body_cid, record_body
from protocol.encoding.timestamps import canonical
from protocol.event_stream import Commit, Labels, Sync, decode, position, sequence
from protocol.handle import from_txt, from_well_known, joined, judge
from protocol.labels import label_signed, parse_label
from protocol.lexicon.validator import Lexicon
from protocol.mst.invert import Change, invert
from protocol.mst.node import parse_node
from protocol.mst.record_path import row_path
from protocol.mst.tree import build, walk
from protocol.snapshot import Limits, Snapshot, opening
from protocol.syntax import is_did, is_handle, tid_micros
from protocol.verify_commit import verify
from tests.fuzz.seeds import SEEDS
from tests.fuzz.test_parsers import DID, KEY, NOW, REPO, damage
from tests.support.size import sized
from tests.support.tiny_repo import cid_of

COPIES = sized(5, 60)
"""Damaged copies of each seed below LARGE bytes."""
LARGE = 20_000
DEEP: Any = 0
for _ in range(200):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        23,
        24,
        1 << 31,
        1 << 32,
        (1 << 62) - 1,
        1 << 62,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
    ),
    *(
        -(1 << 62),
        -(1 << 63),
        -(1 << 64),
        1.5,
        "",
        "x",
        "é\0\ud7ff",
        DID,
        "3kznmn7xqxl22",
        b"",
        b"\0",
        b"x" * 36,
        [],
        {},
    ),
    *([[]], {"a": {}}, DEEP, cbrrr.CID(cid_of(b"")), cbrrr.CID(REPO.commit)),
)
"""Values that take the place of others. The integers are at the limits of 64 bits, and of mypyc's short ones (62)."""
LEXICON = {
    "r": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxGraphemes": 5}, "r": {"type": "ref", "ref": "r"}, "n": {"type": "integer", "minimum": 1}, "all": {"type": "array", "items": {"type": "ref", "ref": "r"}, "maxLength": 3}}}
}  # fmt: skip


def frame(data: bytes) -> object:
    """A frame, as far as one can get without a key."""
    event = decode(data)
    found = [event, position(data), sequence(data)]
    if isinstance(event, Labels):
        return [
            *found,
            [(parse_label(one), type(one) is dict and label_signed(one, KEY.did_key)) for one in event.labels],
        ]
    return [*found, verify(event, NOW)] if isinstance(event, Commit | Sync) else found


def archive(data: bytes) -> object:
    """A CAR in chunks."""
    car = CarIndex(limits=CarLimits(block=300, blocks=50, total=100_000))
    found = [attempt(car.feed, data[at : at + 97]) for at in range(0, min(len(data), LARGE), 97)]
    found += [
        attempt(car.finish),
        car.root,
        car.blocks,
        car.oversized,
        car.skipped,
        salvaged(data, CarLimits(blocks=50)),
    ]
    return found if "Error" in str(found) else [*found, attempt(snapshot, car)]


def snapshot(car: CarIndex) -> object:
    """The records of a repo's CAR."""
    (*_, last) = opening(car, DID, None, limits=Limits(record_bytes=1 << 20, records=1000))
    assert isinstance(last, Snapshot)
    return last.head, list(walk(last.data, car.get))


def node(data: bytes) -> object:
    """A node of a tree, by both readers; it is also its own subtree, at every depth."""
    root = cid_of(data)
    changes = [Change(b"app.bsky.feed.post/x", None, root), Change(b"a.b.c/y", root, None)]
    return [
        attempt(parse_node, root, data),
        attempt(invert, root, {root: data}.get, changes[:1]),
        attempt(invert, root, lambda _: data, changes[:1]),
        attempt(invert, root, lambda _: data, changes),
        attempt(lambda: list(walk(root, lambda _: data))),
    ]


def items(data: bytes) -> object:
    """Scans."""
    decoded = attempt(libipld.decode_dag_cbor_multi, data)
    return [
        attempt(scan_all, data, 1000, 2, 100),
        attempt(integer_field, data, 0, b"seq", 1000),
        type(decoded) is list and nested_deeper(decoded),
    ]


def record(data: bytes) -> object:
    """A record, and the way back."""
    body = record_body(data)
    return [body, attempt(body_cid, body.json, body.raw), lexicon(data)]


def lexicon(data: bytes) -> object:
    """A value as its lexicon sees it."""
    value = attempt(libipld.decode_dag_cbor, data)
    return attempt(Lexicon(LEXICON).check("r"), value)


def listing(data: bytes) -> object:
    """JSON and DID documents."""
    value = attempt(decode_json, data, JsonLimits(10_000, 500))
    return [value, attempt(parse_document, DID, value)]


def text(data: bytes) -> object:
    """Texts."""
    words = data.decode("utf-8", "replace")
    said = joined(from_txt(words.split("\n")), from_well_known(200, data))
    functions: list[Callable[[str], object]] = [
        canonical,
        is_did,
        is_handle,
        tid_micros,
        lambda one: judge(DID, one, said),
    ]
    built = attempt(build, [(part, cid_of(b"")) for part in data[:500].split(b"a")])
    return [said, built, row_path(data.decode("latin-1")), *(attempt(one, words) for one in functions)]


TARGETS: dict[str, Callable[[bytes], object]] = {
    **{"frame": frame, "archive": archive, "node": node, "commit": parse_commit},
    **{"record": record, "items": items, "listing": listing, "document": listing, "text": text},
}


def attempt(function: Callable[..., object], *arguments: object) -> object:
    """The result, or type and message of the exception. Not its cause: mypyc leaves out `from` in `raise … from …`."""
    try:
        return function(*arguments)
    except Exception as err:
        return f"{type(err).__name__}: {err}"


def confused(value: Any, rng: random.Random) -> Any:
    """A copy of a decoded value with something else in one place."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        return value | {name: confused(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], confused(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


def of_other_types(data: bytes, rng: random.Random) -> bytes:
    """DAG-CBOR with something else in one place of each of its objects."""
    parts: list[Any] = []
    while data:
        end = scan(data, 0, 10_000).end
        parts.append(cbrrr.decode_dag_cbor(data[:end]))
        data = data[end:]
    return b"".join(
        cbrrr.encode_dag_cbor(confused(part, rng) if at == len(parts) - 1 else part) for at, part in enumerate(parts)
    )


def inputs(name: str) -> Iterator[bytes]:
    """The seeds of a target, and what became of them."""
    rng = random.Random(name)
    for seed in SEEDS[name]:
        yield seed
        if not seed or len(seed) > LARGE:
            continue
        for _ in range(COPIES):
            copy = bytearray(seed)
            damage(copy, rng)
            yield bytes(copy)
        if name in ("frame", "node", "commit", "record"):
            for _ in range(3 * COPIES):
                changed = attempt(of_other_types, seed, rng)
                if isinstance(changed, bytes):
                    yield changed


def outcomes() -> Iterator[tuple[str, bytes, str]]:
    """(target, input, outcome) of everything."""
    for name, target in TARGETS.items():
        for data in inputs(name):
            yield name, data, repr(attempt(target, data))


def main() -> None:
    """Print target, input, whether a defect shows, the start of the outcome and its hash, of everything."""
    json.dump(
        [
            (
                name,
                data.hex()[:20_000],
                "FAILED" in outcome or "SystemError" in outcome,
                outcome[:500],
                sha256(outcome.encode(errors="backslashreplace")).hexdigest(),
            )
            for name, data, outcome in outcomes()
        ],
        sys.stdout,
    )
