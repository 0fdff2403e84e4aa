"""A reader of the simulated servers, built on other libraries than the simulator."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import libipld
import pytest
from atproto_crypto.verify import verify_signature
from cbrrr import CID, decode_dag_cbor, encode_dag_cbor

from tests.support.simulation import Simulation

CONFIG = {"repos": 12, "records_per_repo": 12, "inactive_share": 0.0, "churn": 0.0}


def list_url(base: str, limit: int, cursor: str = "") -> str:
    return f"{base}/xrpc/com.atproto.sync.listRepos?limit={limit}" + (f"&cursor={cursor}" if cursor else "")


def only(simulation: Simulation, name: str, **parameters: Any) -> None:
    simulation.set_faults(clear=True, **{name: {"per_did": 0, **parameters}})


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def get_bytes(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: bytes = answer.read()
        return body


def refused(url: str) -> tuple[int, str]:
    """(status, error) of a request that must fail."""
    try:
        urllib.request.urlopen(url, timeout=60)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]
    raise AssertionError(f"did not fail: {url}")


def refused_plain(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    return caught.value.code


def text(cid: bytes) -> str:
    return CID(cid).encode()


class SimulatedReader:
    """Resolves DIDs and fetches repositories as a mirror does."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def document(self, did: str) -> dict[str, Any]:
        found: dict[str, Any] = get(f"{self.simulation.plc}/{did}")
        return found

    def pds(self, did: str) -> str:
        return str(next(one["serviceEndpoint"] for one in self.document(did)["service"] if one["id"] == "#atproto_pds"))

    def key(self, did: str, fragment: str = "atproto") -> str:
        methods = self.document(did)["verificationMethod"]
        return "did:key:" + str(
            next(one["publicKeyMultibase"] for one in methods if one["id"].endswith(f"#{fragment}"))
        )

    def car(self, did: str) -> bytes:
        return get_bytes(f"{self.pds(did)}/xrpc/com.atproto.sync.getRepo?did={did}")

    def repo(self, did: str) -> CheckedRepo:
        return check_car(self.car(did), did, self.key(did))


@dataclass(frozen=True, slots=True)
class CheckedRepo:
    rev: str
    commit: str
    data: str
    records: dict[str, str]
    size: int


def read_car(car: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """(root, blocks) of a CAR. Checks the hash of every block; raises EOFError if the CAR ends inside a block."""
    stream = io.BytesIO(car)
    header = libipld.decode_dag_cbor(_section(stream))
    blocks: dict[bytes, bytes] = {}
    while stream.tell() < len(car):
        section = _section(stream)
        cid, block = section[:36], section[36:]
        assert cid == b"\x01\x71\x12\x20" + hashlib.sha256(block).digest(), "a block does not hash to its CID"
        blocks[cid] = block
    (root,) = header["roots"]
    return root, blocks


def _section(stream: io.BytesIO) -> bytes:
    size = shift = 0
    while True:
        byte = stream.read(1)[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    section = stream.read(size)
    if len(section) < size:
        raise EOFError("a block is cut")
    return section


def layer(key: bytes) -> int:
    bits = f"{int.from_bytes(hashlib.sha256(key).digest(), 'big'):0256b}"
    return (len(bits) - len(bits.lstrip("0"))) // 2


def walk(blocks: dict[bytes, bytes], cid: bytes, expected: int | None = None) -> Iterator[tuple[str, bytes]]:
    """(path, record CID) of a tree, in key order. Checks the layer of every node; raises KeyError if a block is missing."""
    node = libipld.decode_dag_cbor(blocks[cid])
    keys: list[bytes] = []
    for entry in node["e"]:
        keys.append((keys[-1] if keys else b"")[: entry["p"]] + entry["k"])
    here = expected
    for key in keys:
        here = layer(key) if here is None else here
        assert layer(key) == here, f"{key!r} is on the wrong layer"
    below = None if here is None else here - 1
    if node["l"]:
        yield from walk(blocks, node["l"], below)
    for key, entry in zip(keys, node["e"], strict=True):
        assert blocks[entry["v"]]
        yield key.decode(), entry["v"]
        if entry["t"]:
            yield from walk(blocks, entry["t"], below)


def commit_signed_by(block: bytes, key: str) -> bool:
    commit: Any = decode_dag_cbor(block)
    signature = commit.pop("sig")
    return verify_signature(key, encode_dag_cbor(commit), signature)


def check_car(car: bytes, did: str, key: str) -> CheckedRepo:
    """The content of a CAR. Raises if a hash, the tree, the DID or the signature is wrong."""
    root, blocks = read_car(car)
    commit = libipld.decode_dag_cbor(blocks[root])
    assert commit["did"] == did, "another account's repository"
    assert (commit["version"], commit["prev"]) == (3, None)
    assert commit_signed_by(blocks[root], key), "the signature does not verify"
    entries = list(walk(blocks, commit["data"]))
    paths = [path.encode() for path, _ in entries]
    assert paths == sorted(set(paths))
    records = {path: text(cid) for path, cid in entries}
    return CheckedRepo(commit["rev"], text(root), text(commit["data"]), records, len(car))
