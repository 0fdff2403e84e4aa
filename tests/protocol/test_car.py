"""CAR reading: every cut, order and corruption ends in the index or in a CarError."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.car import CarIndex, CarLimits, file_reader, index_bytes
from protocol.car_format import CarError, CarReason, write_header, write_section
from protocol.encoding.block_offsets import BlockOffsets
from tests.protocol.car_file import index_file
from tests.support import ROOT
from tests.support.tiny_repo import car, cid_of, sample, varint

REPO = sample(40)
CAR = REPO.car()


def in_memory(data: bytes) -> CarIndex:
    return index_bytes(data)


def from_file(data: bytes) -> CarIndex:
    fd = os.memfd_create("car")
    os.write(fd, data)
    return index_file(fd)


def spooled(data: bytes) -> CarIndex:
    """As a download does it: the same chunks go to the file and to the index."""
    fd = os.memfd_create("car")
    index = CarIndex(file_reader(fd))
    for at in range(0, len(data), 1000):
        os.write(fd, data[at : at + 1000])
        index.feed(data[at : at + 1000])
    index.finish()
    return index


@pytest.mark.parametrize("read", [in_memory, from_file, spooled])
def test_every_block_is_found(read: Callable[[bytes], CarIndex]) -> None:
    index = read(CAR)
    assert index.root == REPO.commit
    assert len(index) == len(REPO.blocks)
    assert index.size == len(CAR)
    for cid, block in REPO.blocks.items():
        assert cid in index
        assert index.get(cid) == block
    assert index.get(cid_of(b"nothing")) is None


@settings(max_examples=60)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=400))
def test_chunks_of_any_size(sizes: list[int]) -> None:
    index = CarIndex()
    at = 0
    while at < len(CAR):
        for size in sizes:
            index.feed(CAR[at : at + size])
            at += size
    index.finish()
    assert index.blocks == REPO.blocks


def test_single_bytes() -> None:
    index = CarIndex()
    for at in range(len(CAR)):
        index.feed(CAR[at : at + 1])
    index.finish()
    assert index.blocks == REPO.blocks


def test_order_and_duplicates_do_not_matter() -> None:
    blocks = list(REPO.blocks.items())
    random.Random(1).shuffle(blocks)
    data = car(REPO.commit, dict(blocks))
    data += b"".join(varint(36 + len(block)) + cid + block for cid, block in blocks[:20])
    assert index_bytes(data).blocks == REPO.blocks


def test_every_cut_within_a_block_is_truncated_and_every_cut_between_is_not() -> None:
    """A CAR cut on a block boundary parses cleanly; only the walk finds it (tests of the snapshot)."""
    header = car(REPO.commit, {})
    boundaries = {len(header)}
    for cid, block in REPO.blocks.items():
        boundaries.add(max(boundaries) + len(varint(len(cid) + len(block))) + len(cid) + len(block))
    for cut in range(len(CAR)):
        if cut in boundaries:
            index_bytes(CAR[:cut])
            continue
        with pytest.raises(CarError) as caught:
            index_bytes(CAR[:cut])
        assert caught.value.reason is CarReason.TRUNCATED


def test_a_changed_byte_is_found_wherever_it_is() -> None:
    """Each single corruption is a typed error or leaves a CAR whose blocks are still what their CIDs say."""
    found = set()
    for at in range(len(CAR)):
        damaged = bytearray(CAR)
        damaged[at] ^= 0x21
        try:
            index = index_bytes(bytes(damaged))
        except CarError as err:
            found.add(err.reason)
        else:
            assert index.root != REPO.commit or index.skipped
            assert all(cid_of(block)[4:] == cid[4:] for cid, block in index.blocks.items())
    assert {CarReason.HASH_MISMATCH, CarReason.TRUNCATED, CarReason.BAD_HEADER, CarReason.BAD_CID} <= found


def section(cid: bytes, block: bytes) -> bytes:
    return varint(len(cid) + len(block)) + cid + block


@pytest.mark.parametrize(
    "cid",
    [
        b"\x12\x20" + sha256(b"x").digest(),
        b"\x01\x71\x13\x40" + bytes(64),
        b"\x01\x55\x00\x01x",
        b"\x01\x70\x12\x20" + sha256(b"x").digest(),
    ],
    ids=["v0", "sha-512", "identity", "dag-pb"],
)
def test_a_block_of_a_foreign_hash_or_codec_does_not_stop_the_rest(cid: bytes) -> None:
    """G7."""
    header = car(REPO.commit, {})
    index = index_bytes(header + section(cid, b"x") + CAR[len(header) :])
    assert index.blocks == REPO.blocks
    assert index.skipped == 1


def test_raw_blocks_and_odd_contents_are_kept() -> None:
    raw = b"\x01\x55\x12\x20" + sha256(b"\xff\xff").digest()
    odd = cid_of(b"\xff\xff no cbor")
    index = index_bytes(car(REPO.commit, REPO.blocks | {raw: b"\xff\xff", odd: b"\xff\xff no cbor"}))
    assert index.get(raw) == b"\xff\xff"
    assert index.get(odd) == b"\xff\xff no cbor"


def test_a_written_car_is_the_independent_writers() -> None:
    large = bytes(20_000)
    blocks = REPO.blocks | {cid_of(large): large, cid_of(b""): b""}
    written = b"".join([write_header(REPO.commit), *(write_section(cid, block) for cid, block in blocks.items())])
    assert written == car(REPO.commit, blocks)


HEADER = car(REPO.commit, {})


def header(value: object) -> bytes:
    block = cbrrr.encode_dag_cbor(value)
    return varint(len(block)) + block


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", CarReason.TRUNCATED),
        (b"\x00", CarReason.BAD_HEADER),
        (b"<!DOCTYPE html><html><body>404</body></html>" * 3, CarReason.NOT_A_CAR),
        (b"<html>503</html>", CarReason.NOT_A_CAR),
        (b"\xef\xbb\xbf<html></html>", CarReason.NOT_A_CAR),
        (b'{"error":"RepoNotFound"}' * 10, CarReason.NOT_A_CAR),
        (b"{}", CarReason.NOT_A_CAR),
        (b"\xff" * 20, CarReason.NOT_A_CAR),
        (b"\xff\xff\xff\xff\x0f", CarReason.BAD_HEADER),
        (header({"version": 2, "roots": [cbrrr.CID(REPO.commit)]}), CarReason.BAD_HEADER),
        (header({"version": True, "roots": [cbrrr.CID(REPO.commit)]}), CarReason.BAD_HEADER),
        (header({"version": 1, "roots": []}), CarReason.BAD_HEADER),
        (header({"version": 1}), CarReason.BAD_HEADER),
        (header({"version": 1, "roots": [REPO.commit]}), CarReason.BAD_HEADER),
        (header({"version": 1, "roots": [cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32))]}), CarReason.BAD_HEADER),
        (header([1]), CarReason.NOT_A_CAR),
        (b"\x82\x00", CarReason.BAD_VARINT),
        (HEADER + b"\x82\x00", CarReason.BAD_VARINT),
        (HEADER + b"\xff" * 10, CarReason.BAD_VARINT),
        (HEADER + varint((2 << 20) + 200), CarReason.TRUNCATED),
        (HEADER + varint(1 << 60), CarReason.TRUNCATED),
        (HEADER + varint((2 << 20) + 200) + cid_of(b"x") + bytes((2 << 20) + 200 - 36), CarReason.HASH_MISMATCH),
        (HEADER + varint(3 << 20) + b"\x02" + bytes(3 << 20), CarReason.BAD_CID),
        (HEADER + b"\x00", CarReason.BAD_CID),
        (HEADER + b"\x02\x01\x71", CarReason.BAD_CID),
        (HEADER + section(b"\x01\x71\x12\x20" + bytes(32), b"x"), CarReason.HASH_MISMATCH),
    ],
    ids=lambda value: value if isinstance(value, str) else "car",  # no bytes: every run signs with another key
)
def test_malformed_cars_have_a_typed_reason(data: bytes, reason: CarReason) -> None:
    for read in (in_memory, from_file, spooled):
        with pytest.raises(CarError) as caught:
            read(data)
        assert caught.value.reason is reason


def test_limits() -> None:
    """G6, G9."""
    big = b"x" * 5000
    data = car(cid_of(big), {cid_of(big): big})
    for limits, reason in (
        (CarLimits(total=4000), CarReason.TOO_LARGE),
        (CarLimits(blocks=0), CarReason.TOO_MANY_BLOCKS),
    ):
        with pytest.raises(CarError) as caught:
            index_bytes(data, limits=limits)
        assert caught.value.reason is reason
    assert len(index_bytes(data, limits=CarLimits(block=5000, blocks=1, total=len(data)))) == 1


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_block_above_the_limit_is_hashed_and_not_kept(piece: int, in_file: bool) -> None:
    """G7: one large block costs the others nothing, wherever the chunks end; its place in the CAR does not matter."""
    large = b"\xa1\x61x\x59" + (6000).to_bytes(2) + b"y" * 6000
    foreign = b"\x01\x71\x13\x40" + bytes(64)
    small = [section(cid, block) for cid, block in list(REPO.blocks.items())[:20]]
    sections = [*small[:5], section(cid_of(large), large), *small[5:9], section(foreign, bytes(7000)), *small[9:]]
    sections += [section(cid_of(large), large)]
    data = HEADER + b"".join(sections)
    fd = os.memfd_create("car")
    os.write(fd, data)
    index = CarIndex(file_reader(fd) if in_file else None, limits=CarLimits(block=4000))
    for at in range(0, len(data), piece):
        index.feed(data[at : at + piece])
        assert index._have <= 4000 + 200 + piece
    index.finish()
    assert (index.oversized, index.skipped, len(index)) == ({cid_of(large): len(large)}, 1, 20)
    assert cid_of(large) in index
    assert index.get(cid_of(large)) is None
    assert index.size_of(cid_of(large)) is None
    for cid, block in list(REPO.blocks.items())[:20]:
        assert index.get(cid) == block
        assert index.size_of(cid) == len(block)
    with pytest.raises(CarError) as caught:
        index.feed(section(cid_of(large), large[:-1] + b"z"))
    assert caught.value.reason is CarReason.HASH_MISMATCH


@settings(max_examples=400)
@given(st.binary(max_size=300), st.sampled_from([b"", HEADER, CAR[:700]]))
def test_fuzz(data: bytes, prefix: bytes) -> None:
    """G7: no bytes raise anything but CarError."""
    with contextlib.suppress(CarError):
        index_bytes(prefix + data)


def test_a_large_car_costs_little_memory(tmp_path: Path) -> None:
    """G6, H2: 150 MB, 300,000 blocks: the index holds 25 bytes a block; measured in a process of its own."""
    path = tmp_path / "large.car"
    noise = random.Random(7)
    with path.open("wb") as out:
        out.write(HEADER)
        for _ in range(300_000):
            block = noise.randbytes(460)
            out.write(section(cid_of(block), block))
    program = """
import os, re, sys
from pathlib import Path
from tests.protocol.car_file import index_file
import random
from tests.support.tiny_repo import cid_of
# not ru_maxrss: that one is inherited from the test process
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
fd = os.open(sys.argv[1], os.O_RDONLY)
index = index_file(fd)
noise = random.Random(7)
cids = [cid_of(noise.randbytes(460)) for _ in range(1000)]
assert sum(len(index.get(cid)) for cid in cids) == 1000 * 460
print(len(index), (peak() - before) // 1024)
"""
    found = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, path], env=found, capture_output=True, text=True, check=True)
    blocks, megabytes = map(int, done.stdout.split())
    assert blocks == 300_000
    assert 8 < megabytes < 30  # less would mean that the measurement is broken


@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from([b"\x55", b"\x71"])), max_size=60),
    st.data(),
)
def test_places_are_found_by_the_whole_of_codec_and_digest(
    keys: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """What shares a bucket, or a part of the digest, is told apart."""
    cids = [b"\x01" + codec + b"\x12\x20" + digest for digest, codec in keys]
    cids += [cid[:6] + bytes(at % 2 for at in range(30)) for cid in cids] + [cid[:18] + cid[4:18] for cid in cids]
    distinct = list(dict.fromkeys(cid[:18] for cid in cids if len(cid) == 36))
    places = BlockOffsets()
    for number, prefix in enumerate(distinct):
        places.add(prefix + bytes(18), number << 20, number)
    for number, prefix in enumerate(distinct):
        assert places.find(prefix + bytes(18)) == (number << 20, number)
    other = data.draw(st.binary(min_size=36, max_size=36))
    assert (places.find(other) is not None) <= (other[:18] in distinct)
    assert places.find(b"\x01\x71\x13\x40" + bytes(64)) is None
    assert len(places) == len(distinct)


def test_small_chunks_of_a_large_block_are_not_joined_again_and_again() -> None:
    """G9: a slow trickle of a 2 MB block costs as much as one read, not the square of it."""
    block = bytes(2_000_000)
    data = car(cid_of(block), {cid_of(block): block})
    index = CarIndex()
    started = time.process_time()
    for at in range(0, len(data), 64):
        index.feed(data[at : at + 64])
    index.finish()
    assert index.get(cid_of(block)) == block
    assert time.process_time() - started < 1
