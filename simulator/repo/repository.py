"""A repository: commits over a Merkle search tree.

`generate` makes the initial repository of an account; the bytes depend on its inputs alone. `SimulatedRepo` applies live
commits in memory, in O(log n) per write, and returns what a firehose event carries.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from cbrrr import CID, encode_dag_cbor

from simulator.repo import mst
from simulator.repo.car import CID_PREFIX, Block, cid_of, write_car
from simulator.repo.keys import SigningKey
from simulator.repo.records import Subjects, bulk, hostile_records
from simulator.repo.tid import tid

Action = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class RecordWrite:
    """One record write of a commit. `value` is the record, None for delete. `block`: use this CID and block instead of `value`."""

    action: Action
    path: str
    value: dict[str, Any] | None = None
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class AppliedOp:
    """A record write as a firehose event describes it: `cid` is None for delete, `prev` for create."""

    action: Action
    path: str
    cid: bytes | None
    prev: bytes | None


@dataclass(frozen=True, slots=True)
class RepoHead:
    """One signed state of a repository: the commit, its block and its tree."""

    rev: str
    commit: bytes
    commit_block: bytes
    root: mst.TreeNode


@dataclass(frozen=True, slots=True)
class AppliedCommit:
    """The result of one live commit: the new head, rev and data of the previous one, and the blocks of its event, commit first."""

    head: RepoHead
    since: str | None
    prev_data: bytes | None
    ops: tuple[AppliedOp, ...]
    blocks: tuple[Block, ...]


def sign_commit(did: str, rev: str, data: bytes, key: SigningKey) -> Block:
    """The CID and block of a signed commit object (version 3, prev null)."""
    commit: dict[str, Any] = {"did": did, "rev": rev, "data": CID(data), "prev": None, "version": 3}
    commit["sig"] = key.sign(encode_dag_cbor(commit))
    block = encode_dag_cbor(commit)
    return cid_of(block), block


def record_block(value: dict[str, Any] | None) -> Block:
    """The CID and block of a record."""
    block = encode_dag_cbor(value)
    return cid_of(block), block


class SimulatedRepo:
    """A repository in memory: path → CID, CID → block, the current head and up to three earlier ones."""

    __slots__ = ("blocks", "commit_last", "did", "earlier", "head", "paths", "records")

    def __init__(self, did: str) -> None:
        self.did = did
        self.records: dict[str, bytes] = {}
        self.blocks: dict[bytes, bytes] = {}
        self.paths: list[str] = []  # for `random_path`; may contain deleted paths
        self.earlier: deque[RepoHead] = deque(maxlen=3)
        self.head: RepoHead
        self.commit_last = False

    def commit(self, ops: list[RecordWrite], rev: str, key: SigningKey) -> AppliedCommit:
        """Apply the writes in order as one commit.

        Raises KeyError if a created path exists, or an updated or deleted path does not.
        """
        before = self.head
        root = before.root
        applied: list[AppliedOp] = []
        fresh: dict[bytes, bytes] = {}
        for op in ops:
            old = self.records.get(op.path)
            if (op.action == "create") == (old is not None):
                raise KeyError(f"{op.action} {op.path}")
            if op.action == "delete":
                root = mst.remove(root, op.path.encode())
                del self.records[op.path]
                applied.append(AppliedOp("delete", op.path, None, old))
                continue
            cid, block = op.block or record_block(op.value)
            self.blocks[cid] = fresh[cid] = block
            root = mst.put(root, op.path.encode(), cid)
            self.records[op.path] = cid
            if old is None:
                self.paths.append(op.path)
            applied.append(AppliedOp(op.action, op.path, cid, old))
        tree: dict[bytes, bytes] = dict(mst.seal(root))
        tree[root.cid] = root.block
        for op in ops:
            mst.covering_proof(root, op.path.encode(), tree)
        commit_cid, commit_block = sign_commit(self.did, rev, root.cid, key)
        self.earlier.append(before)
        self.head = RepoHead(rev, commit_cid, commit_block, root)
        blocks = ((commit_cid, commit_block), *tree.items(), *fresh.items())
        return AppliedCommit(self.head, before.rev, before.root.cid, tuple(applied), blocks)

    def random_path(self, rng: random.Random) -> str | None:
        """A random existing path; None if the repository is empty."""
        while self.paths:
            at = int(rng.random() * len(self.paths))
            if self.paths[at] in self.records:
                return self.paths[at]
            self.paths[at] = self.paths[-1]
            self.paths.pop()
        return None

    def car(self, head: RepoHead | None = None) -> bytes:
        """The CAR of a head, by default the current one."""
        head = head or self.head
        return write_car(head.commit, self.walk(head))

    def walk(self, head: RepoHead) -> Iterator[Block]:
        """Every block of a head once: the commit, then nodes and records. If `commit_last`, the commit is last."""
        seen: set[bytes] = set()
        if not self.commit_last:
            yield head.commit, head.commit_block
        blocks = self.blocks
        for node in mst.nodes(head.root):
            yield node.cid, node.block
            for value in node.values:
                if value not in seen:
                    seen.add(value)
                    yield value, blocks[value]
        if self.commit_last:
            yield head.commit, head.commit_block


@dataclass(frozen=True, slots=True)
class Recipe:
    """The inputs of an initial repository. `newest_micros`: upper bound of its record times, microseconds since 1970."""

    seed: int
    index: int
    did: str
    records: int
    newest_micros: int
    hostile: bool
    big_record_bytes: int = 0


def generate(recipe: Recipe, key: SigningKey, subjects: Subjects) -> SimulatedRepo:
    """The initial repository. The same recipe, key and subjects give the same bytes."""
    rng = random.Random(f"{recipe.seed}/repo/{recipe.index}")
    repo = SimulatedRepo(recipe.did)
    repo.commit_last = rng.random() < 0.1  # readers must not rely on the commit being first
    records, blocks = repo.records, repo.blocks
    encode = encode_dag_cbor
    for path, value in bulk(rng, recipe.records, recipe.newest_micros, subjects):
        if recipe.big_record_bytes:
            value["padding"] = rng.randbytes(recipe.big_record_bytes // 2).hex()
        block = encode(value)
        cid = CID_PREFIX + sha256(block).digest()
        blocks[cid] = block
        records[path] = cid
    if recipe.hostile:
        _add_hostile(repo, recipe.index)
    paths = sorted(records)
    repo.paths = paths
    root = mst.build([path.encode() for path in paths], [records[path] for path in paths])
    mst.seal(root)
    rev = tid(recipe.newest_micros, recipe.index & 1023)
    commit_cid, commit_block = sign_commit(recipe.did, rev, root.cid, key)
    repo.head = RepoHead(rev, commit_cid, commit_block, root)
    return repo


def _add_hostile(repo: SimulatedRepo, index: int) -> None:
    """Add hostile records: all of them to the first repository, two to each other one."""
    everything = hostile_records()
    chosen = everything if index == 0 else [everything[(index * 2 + n) % len(everything)] for n in range(2)]
    for path, value in chosen:
        block = encode_dag_cbor(value)
        cid = cid_of(block)
        repo.blocks[cid] = block
        repo.records[path] = cid
