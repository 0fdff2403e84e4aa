"""The coverage-guided fuzzer over the parsers: `python guided.py CORPUS [libFuzzer options]`. A find ends it with its bytes.

The first byte of an input chooses the parser, the rest is its input.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["steps"], enable_loader_override=False):
    from steps import car, frames, invert, labels, live_messages, mst_node, record_json, verify_commit
    from steps import commit as commits

DATA = b"\x01\x71\x12\x20" + bytes(32)
NOW = 1 << 53


def frame(data: bytes) -> None:
    message = frames.decode(data)
    if isinstance(message, frames.Commit | frames.Sync):
        result = verify_commit.verify(message, NOW)
        if isinstance(result, verify_commit.Verified):
            live_messages.commit_message(result, "relay", "2026-01-01T00:00:00.000Z")
    elif isinstance(message, frames.Labels):
        for value in message.labels:
            if isinstance(labels.label(value, 1, "labeler"), labels.Label):
                labels.label_signed(value, "did:key:z")


def archive(data: bytes) -> None:
    try:
        car.index_bytes(data)
    except car.CarError:
        return


def node(data: bytes) -> None:
    strict = True
    try:
        mst_node.parse_node(b"", data)
    except mst_node.MstError:
        strict = False
    try:
        invert.invert(DATA, {DATA: data}.get, [invert.Change(b"a.b.c/x", None, DATA)])
    except invert.Unproven:
        return
    assert strict, "the firehose's reader takes a node that the strict one refuses"


TARGETS = (frame, archive, node, commits.parse_commit, record_json.record_body)


def one(data: bytes) -> None:
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
