"""A small, slow, independent writer of repos for the tests of steps/: trees, commits, CARs.

It shares no code with steps/: the tree is built top-down by recursion (protocol.mst.tree builds bottom-up), encoding is cbrrr's.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count

import cbrrr
import coincurve
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
REV = "3kznmn7xqxl22"
N = {
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
_NUMBERS = count()
_B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def cid_of(block: bytes) -> bytes:
    return b"\x01\x71\x12\x20" + sha256(block).digest()


def base58(raw: bytes) -> str:
    value, text = int.from_bytes(raw), ""
    while value:
        value, digit = divmod(value, 58)
        text = _B58[digit] + text
    return "z" + "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def layer(key: bytes) -> int:
    bits = "".join(f"{byte:08b}" for byte in sha256(key).digest())
    return (len(bits) - len(bits.lstrip("0"))) // 2


def secret() -> int:
    """Another number for every key, and the same ones in every run: what a fuzzer makes of a signature can be made again."""
    return int.from_bytes(sha256(b"key %d" % next(_NUMBERS)).digest()) >> 1


class Key:
    """A signing key of either curve."""

    def __init__(self, curve: str = "secp256k1") -> None:
        self.curve = curve
        if curve == "secp256k1":
            self._secp = coincurve.PrivateKey.from_int(secret())
            self.point = self._secp.public_key.format()
            self.long_point = self._secp.public_key.format(compressed=False)
            prefix = b"\xe7\x01"
        else:
            self._p256 = ec.derive_private_key(secret(), ec.SECP256R1())
            public = self._p256.public_key()
            self.point = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
            self.long_point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            prefix = b"\x80\x24"
        self.multibase = base58(prefix + self.point)
        self.did_key = "did:key:" + self.multibase

    def sign(self, message: bytes, *, high_s: bool = False) -> bytes:
        if self.curve == "secp256k1":
            r_s = self._secp.sign_recoverable(message)[:64]
            r, s = int.from_bytes(r_s[:32]), int.from_bytes(r_s[32:])
        else:
            r, s = decode_dss_signature(self._p256.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
        s = min(s, N[self.curve] - s)
        return r.to_bytes(32) + (N[self.curve] - s if high_s else s).to_bytes(32)


def tree(leaves: dict[str, bytes], blocks: dict[bytes, bytes]) -> bytes:
    """Write the nodes of the MST of path → record CID; returns the root."""
    keys = sorted(path.encode() for path in leaves)
    by_key = {path.encode(): cid for path, cid in leaves.items()}
    top = max((layer(key) for key in keys), default=0)
    return _subtree(keys, by_key, top, blocks, is_root=True)


def _subtree(
    keys: list[bytes], values: dict[bytes, bytes], height: int, blocks: dict, *, is_root: bool = False
) -> bytes:
    groups: list[list[bytes]] = [[]]
    here: list[bytes] = []
    for key in keys:
        if layer(key) == height:
            here.append(key)
            groups.append([])
        else:
            groups[-1].append(key)
    links = [cbrrr.CID(_subtree(g, values, height - 1, blocks)) if g else None for g in groups]
    entries, previous = [], b""
    for key, link in zip(here, links[1:], strict=True):
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        entries.append({"k": key[shared:], "p": shared, "t": link, "v": cbrrr.CID(values[key])})
        previous = key
    return put({"e": entries, "l": links[0]}, blocks)


def put(value: object, blocks: dict[bytes, bytes]) -> bytes:
    block = cbrrr.encode_dag_cbor(value)
    blocks[cid_of(block)] = block
    return cid_of(block)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def car(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
    header = cbrrr.encode_dag_cbor({"version": 1, "roots": [cbrrr.CID(root)]})
    parts = [varint(len(header)), header]
    for cid, block in blocks.items():
        parts += (varint(len(cid) + len(block)), cid, block)
    return b"".join(parts)


@dataclass
class Repo:
    """A signed repo: `records` is path → value; blocks in the order tree, records, commit (so that the root is last).

    `extra`: path → (CID, block or none), leaves that are no ordinary records.
    """

    records: dict[str, object]
    key: Key = field(default_factory=Key)
    did: str = DID
    rev: str = REV
    overrides: dict[str, object] = field(default_factory=dict)
    high_s: bool = False
    extra: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        record_blocks: dict[bytes, bytes] = {}
        self.leaves = {path: put(value, record_blocks) for path, value in self.records.items()}
        self.leaves |= {path: cid for path, (cid, _) in self.extra.items()}
        record_blocks |= {cid: block for cid, block in self.extra.values() if block is not None}
        self.data = tree(self.leaves, self.blocks)
        self.nodes = list(self.blocks)
        self.blocks |= record_blocks
        commit = {"did": self.did, "version": 3, "data": cbrrr.CID(self.data), "rev": self.rev, "prev": None}
        commit |= self.overrides
        commit["sig"] = self.key.sign(cbrrr.encode_dag_cbor(commit), high_s=self.high_s)
        self.commit = put(commit, self.blocks)

    def car(self) -> bytes:
        return car(self.commit, self.blocks)


def sample(count: int, **fields: object) -> Repo:
    """A repo of posts and likes."""
    records: dict[str, object] = {}
    for at in range(count):
        collection = "app.bsky.feed.post" if at % 3 else "app.bsky.feed.like"
        records[
            f"{collection}/3k{at:011d}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d")
            + str(at)
        ] = {
            "$type": collection,
            "text": f"number {at}",
            "createdAt": "2026-01-01T00:00:00.000Z",
        }
    return Repo(records, **fields)
