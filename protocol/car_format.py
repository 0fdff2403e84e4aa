"""The parts of a CARv1 file: varints, the header, sections, CIDs of other kinds. Raises CarError, and nothing else, on wire input."""

from enum import StrEnum
from typing import Final

import cbrrr

from protocol.cid import CID_SIZE, DAG_CBOR, RAW

MAX_HEADER: Final = 64 * 1024
LONGEST_CID: Final = 128
_MAX_VARINT: Final = 9
_MAP_OF_FEW: Final = range(0xA1, 0xB8)  # first byte of the header of any version: a small CBOR map
OUR_PREFIXES: Final = (DAG_CBOR, RAW)
_SHA2_256_SIZE: Final = b"\x12\x20"
_ONE_ROOT: Final = b"\xa2eroots\x81\xd8*X%\0" + DAG_CBOR  # the canonical header with one root, the usual case
_VERSION_1: Final = b"gversion\x01"


class CarReason(StrEnum):
    TRUNCATED = "truncated"
    NOT_A_CAR = "not_a_car"
    BAD_HEADER = "bad_header"
    BAD_VARINT = "bad_varint"
    BAD_CID = "bad_cid"
    HASH_MISMATCH = "hash_mismatch"
    TOO_MANY_BLOCKS = "too_many_blocks"
    TOO_LARGE = "too_large"


class CarError(Exception):
    """A CAR was refused. `reason` is for code, the message for people."""

    def __init__(self, reason: CarReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def may_be_car(start: bytes) -> bool:
    """Whether a file that starts with these bytes may be a CAR: its header is a map. True also if there are too few bytes."""
    at = 0
    while at < len(start) and start[at] >= 0x80 and at < _MAX_VARINT:
        at += 1
    return at + 1 >= len(start) or start[at + 1] in _MAP_OF_FEW


def varint(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, offset after it). The offset is `at` if the buffer ends within the varint."""
    value = shift = 0
    for position in range(at, min(end, at + _MAX_VARINT)):
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and position > at:
                raise CarError(CarReason.BAD_VARINT, "not minimal")
            return value, position + 1
        shift += 7
    if end - at >= _MAX_VARINT:
        raise CarError(CarReason.BAD_VARINT, "longer than 9 bytes")
    return 0, at


def parse_header(header: bytes) -> bytes:
    if header[:17] == _ONE_ROOT and header[49:] == _VERSION_1:
        return header[13:49]
    try:
        value = cbrrr.decode_dag_cbor(header)
    except (ValueError, RecursionError) as err:
        raise CarError(CarReason.BAD_HEADER, str(err)) from err
    if not isinstance(value, dict) or value.get("version") != 1 or value.get("version") is True:
        raise CarError(CarReason.BAD_HEADER, "not CAR version 1")
    roots = value.get("roots")
    if not isinstance(roots, list) or not roots or not isinstance(roots[0], cbrrr.CID):
        raise CarError(CarReason.BAD_HEADER, "no root")
    root: bytes = roots[0].cid_bytes
    if len(root) != CID_SIZE or root[:4] != DAG_CBOR:
        raise CarError(CarReason.BAD_HEADER, "the root is not the CID of a DAG-CBOR block")
    return root


def write_header(root: bytes) -> bytes:
    """The start of a CAR with this root: the CID of a DAG-CBOR block, 36 bytes."""
    return _varint(len(_ONE_ROOT) + len(root) - len(DAG_CBOR) + len(_VERSION_1)) + _ONE_ROOT + root[4:] + _VERSION_1


def write_section(cid: bytes, block: bytes) -> bytes:
    """A block of a CAR."""
    return b"".join((_varint(len(cid) + len(block)), cid, block))


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def check_foreign_cid(buffer: bytes, start: int, end: int) -> None:
    """Check the form of a CID of another codec or hash function. Such blocks are allowed, but no repo refers to them."""
    if buffer[start : start + 2] == _SHA2_256_SIZE and end - start >= 34:
        return  # CIDv0
    at = start
    fields: list[int] = []
    for _ in range(4):  # version, codec, hash function, digest size
        value, after = varint(buffer, at, end)
        if after == at:
            raise CarError(CarReason.BAD_CID, "ends within the CID")
        fields.append(value)
        at = after
    if fields[0] != 1 or at + fields[3] > end:
        raise CarError(CarReason.BAD_CID, f"version {fields[0]}, digest of {fields[3]} bytes")
