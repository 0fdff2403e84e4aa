"""Corrupted CARs for the faults of getRepo and of the relays."""

from typing import Any

from cbrrr import decode_dag_cbor, encode_dag_cbor

from simulator.repo.car import CID_PREFIX, Block, cid_of, write_car

_MST_NODE = b"\xa2\x61e"  # a map of two entries, the first with key "e"


def sections(car: bytes) -> list[tuple[int, int]]:
    """(start, end) offsets of each block section, its length prefix included. The header is skipped."""
    size, at = _read_varint(car, 0)
    at += size
    found = []
    while at < len(car):
        start = at
        size, at = _read_varint(car, at)
        at += size
        found.append((start, at))
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at


def read_blocks(car: bytes) -> tuple[bytes, list[Block]]:
    """(root CID, blocks in file order) of a CAR that this package wrote: every CID has 36 bytes."""
    size, at = _read_varint(car, 0)
    header: Any = decode_dag_cbor(car[at : at + size])
    blocks = []
    for start, end in sections(car):
        _, body = _read_varint(car, start)
        blocks.append((car[body : body + 36], car[body + 36 : end]))
    return bytes(header["roots"][0]), blocks


def truncated(car: bytes, mode: str) -> bytes:
    """The CAR cut after about two thirds of its blocks. mode: mid (inside a block) or boundary (between two)."""
    found = sections(car)
    start, end = found[len(found) * 2 // 3]
    return car[: (start + end) // 2] if mode == "mid" else car[:start]


def tampered(car: bytes) -> bytes | None:
    """The CAR with one bit of a record block flipped; None if it has no record."""
    root, blocks = read_blocks(car)
    offsets = sections(car)
    for (cid, block), (_, end) in zip(blocks, offsets, strict=True):
        if cid != root and cid.startswith(CID_PREFIX) and not block.startswith(_MST_NODE):
            return car[: end - 1] + bytes([car[end - 1] ^ 1]) + car[end:]
    return None


def bad_signature(car: bytes) -> bytes:
    """The same tree under a commit whose signature is well-formed but invalid."""
    root, blocks = read_blocks(car)
    commit: Any = decode_dag_cbor(dict(blocks)[root])
    sig: bytes = commit["sig"]
    # flipping the lowest bit of r and s keeps both in range
    commit["sig"] = sig[:31] + bytes([sig[31] ^ 1]) + sig[32:63] + bytes([sig[63] ^ 1])
    block = encode_dag_cbor(commit)
    cid = cid_of(block)
    return write_car(cid, [(cid, block) if at == root else (at, body) for at, body in blocks])
