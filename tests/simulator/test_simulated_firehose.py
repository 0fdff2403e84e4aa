"""The simulated firehose: frames that invert, cursors and windows, two relays, labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import libipld
import pytest
from atproto_crypto.verify import verify_signature
from cbrrr import encode_dag_cbor

from simulator.repo import mst
from tests.simulator.read_simulated import SimulatedReader, commit_signed_by, read_car, text

Frame = tuple[dict[str, Any], dict[str, Any]]


async def frames(url: str, cursor: int | None = 0) -> AsyncIterator[Frame]:
    """Decoded frames until the socket closes."""
    query = "" if cursor is None else f"?cursor={cursor}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url + query, max_msg_size=0) as socket:
        async for message in socket:
            header, body = libipld.decode_dag_cbor_multi(message.data)
            yield header, body


def collect(url: str, cursor: int | None = 0, *, until: Callable[[Frame], bool]) -> list[Frame]:
    """Frames up to and including the first that satisfies `until`, or until the socket closes."""

    async def run() -> list[Frame]:
        found: list[Frame] = []
        async with asyncio.timeout(120):
            async for frame in frames(url, cursor):
                found.append(frame)
                if until(frame):
                    break
        return found

    return asyncio.run(run())


def repos_url(base: str) -> str:
    return f"{base}/xrpc/com.atproto.sync.subscribeRepos"


def up_to(seq: int) -> Callable[[Frame], bool]:
    return lambda frame: frame[1].get("seq", 0) >= seq


class Unknown(mst.TreeNode):
    """A node with a known CID and no content: reading it fails the test."""

    def __init__(self, cid: bytes) -> None:
        self.cid = cid  # the other slots stay unset, so that a read raises AttributeError


def partial_tree(blocks: dict[bytes, bytes], cid: bytes) -> mst.TreeNode:
    """The part of the tree whose blocks are given."""
    if cid not in blocks:
        return Unknown(cid)
    node = libipld.decode_dag_cbor(blocks[cid])
    keys: list[bytes] = []
    for entry in node["e"]:
        keys.append((keys[-1] if keys else b"")[: entry["p"]] + entry["k"])
    links = [node["l"], *(entry["t"] for entry in node["e"])]
    trees = [partial_tree(blocks, link) if link else None for link in links]
    depth = mst.key_layer(keys[0]) if keys else next((tree.layer + 1 for tree in trees if tree is not None), 0)
    made = mst.TreeNode(depth, tuple(keys), tuple(entry["v"] for entry in node["e"]), tuple(trees))
    made.cid, made.block = cid, blocks[cid]
    return made


def inverted(body: dict[str, Any]) -> bytes:
    """The data CID before the commit, computed from its frame."""
    root, blocks = read_car(body["blocks"])
    tree = partial_tree(blocks, libipld.decode_dag_cbor(blocks[root])["data"])
    for op in sorted(body["ops"], key=lambda op: op["action"] != "delete"):
        key = op["path"].encode()
        tree = mst.remove(tree, key) if op["action"] == "create" else mst.put(tree, key, op["prev"])
    mst.seal(tree)
    return tree.cid


@pytest.mark.parametrize("seed", [1, 2])
def test_every_commit_inverts_from_its_own_blocks_and_chains_to_the_next(simulator: Any, seed: int) -> None:
    simulation = simulator(seed=seed, repos=12, records_per_repo=60, inactive_share=0.0, churn=0.0)
    reader = SimulatedReader(simulation)
    before = simulation.state()
    simulation.writer(prebuild=600)
    last = simulation.summary()["seqs"][0]
    seen = collect(repos_url(simulation.relays[0]), until=up_to(last))
    assert len(seen) == 600
    data = {did: truth.data for did, truth in before.items()}
    rev = {did: truth.rev for did, truth in before.items()}
    keys = {did: reader.key(did) for did in before}
    records = {did: dict(truth.records) for did, truth in before.items()}
    for header, body in seen:
        assert header == {"op": 1, "t": "#commit"}
        did = body["repo"]
        root, blocks = read_car(body["blocks"])
        assert root == body["commit"]
        commit = libipld.decode_dag_cbor(blocks[root])
        assert (commit["did"], commit["rev"]) == (did, body["rev"])
        assert commit_signed_by(blocks[root], keys[did])
        assert text(body["prevData"]) == data[did]
        assert body["since"] == rev[did] < body["rev"]
        assert inverted(body) == body["prevData"]
        data[did], rev[did] = text(commit["data"]), body["rev"]
        for op in body["ops"]:
            if op["action"] == "delete":
                assert text(op["prev"]) == records[did].pop(op["path"])
            else:
                assert op["cid"] in blocks
                assert (op["action"] == "create") == (op["path"] not in records[did])
                records[did][op["path"]] = text(op["cid"])
    assert any(not body["ops"] for _, body in seen)
    assert {op["action"] for _, body in seen for op in body["ops"]} == {"create", "update", "delete"}
    after = simulation.state()
    assert records == {did: truth.records for did, truth in after.items()}
    for did, truth in after.items():
        assert reader.repo(did).records == truth.records


def test_cursor_absent_zero_old_and_future(simulator: Any) -> None:
    simulation = simulator(repos=10, inactive_share=0.0, churn=0.0, window=50)
    url = repos_url(simulation.relays[0])
    simulation.writer(prebuild=30)
    last = simulation.summary()["seqs"][0]

    def seqs(cursor: int | None) -> list[int]:
        return [body["seq"] for _, body in collect(url, cursor, until=up_to(last))]

    assert seqs(0) == list(range(1000, last + 1))
    assert seqs(last - 3) == [last - 2, last - 1, last]
    assert seqs(5) == list(range(1000, last + 1))  # older than every event, but no event has left the window
    (future,) = collect(url, last + 1, until=lambda _frame: False)
    assert future == ({"op": -1}, {"error": "FutureCursor", "message": future[1]["message"]})

    simulation.writer(prebuild=40)  # 70 events; the window keeps 50
    last = simulation.summary()["seqs"][0]
    header, body = collect(url, 1005, until=up_to(last))[0]
    assert (header, body["name"]) == ({"op": 1, "t": "#info"}, "OutdatedCursor")
    assert seqs(0) == list(range(last - 49, last + 1))
    simulation.streams(outdated=False, future=False)
    assert seqs(1005) == list(range(last - 49, last + 1))

    async def tip() -> int:
        async for _, body in frames(url, last + 1000):  # with future=False, handled like an absent cursor
            return int(body["seq"])
        raise AssertionError("closed")

    async def tip_and_commit() -> int:
        while (await asyncio.to_thread(simulation.streams))[0]["readers"]:  # the readers above
            await asyncio.sleep(0.01)
        task = asyncio.create_task(tip())
        while not (await asyncio.to_thread(simulation.streams))[0]["readers"]:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(simulation.writer, prebuild=1)
        return await asyncio.wait_for(task, 60)

    assert asyncio.run(tip_and_commit()) == last + 1


def test_held_frames_are_sent_together_on_release(simulator: Any) -> None:
    simulation = simulator(repos=10, churn=0.0, prebuilt_commits=5)
    url = repos_url(simulation.relays[0])
    simulation.streams(held=True)
    simulation.writer(prebuild=40)
    assert simulation.streams()[0]["last_seq"] == 1044

    async def run() -> list[int]:
        found: list[int] = []
        async for _, body in frames(url):
            found.append(body["seq"])
            if len(found) == 5:
                await asyncio.to_thread(simulation.streams, held=False)
            if body["seq"] == 1044:
                break
        return found

    assert asyncio.run(run()) == list(range(1000, 1045))


def test_a_reader_that_leaves_the_window_gets_consumer_too_slow(simulator: Any) -> None:
    simulation = simulator(repos=10, records_per_repo=50, churn=0.0, window=20)
    url = repos_url(simulation.relays[0])

    async def run() -> list[Frame]:
        found: list[Frame] = []
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            # far more bytes than the sockets buffer; the client does not read
            for _ in range(6):
                await asyncio.to_thread(simulation.writer, prebuild=1000)
            async for message in socket:
                header, body = libipld.decode_dag_cbor_multi(message.data)
                found.append((header, body))
        return found

    header, body = asyncio.run(run())[-1]
    assert (header, body["error"]) == ({"op": -1}, "ConsumerTooSlow")


def test_a_pds_streams_its_own_accounts_only(simulator: Any) -> None:
    simulation = simulator(repos=20, churn=0.0)
    simulation.writer(prebuild=60)
    total = 0
    for number, pds in enumerate(simulation.pdses):
        mine = {did for did, truth in simulation.state().items() if truth.pds == number}
        simulation.op("commit", did=next(did for did in mine if simulation.state()[did].active))
        seen = collect(repos_url(pds), until=lambda frame: not frame[1]["ops"] and frame[1]["seq"] > 5)
        assert {body["repo"] for _, body in seen} <= mine
        assert [body["seq"] for _, body in seen] == list(range(1, len(seen) + 1))
        total += len(seen)
    assert 0 < total <= 63


def test_two_relays_carry_the_same_events_in_their_own_order(simulator: Any) -> None:
    simulation = simulator(repos=15, relays=2, churn=0.1)
    simulation.writer(steps=400)
    simulation.quiesce()
    first, second = simulation.summary()["seqs"]
    streams = [
        collect(repos_url(relay), until=up_to(last))
        for relay, last in zip(simulation.relays, (first, second), strict=True)
    ]

    def per_repo(stream: list[Frame]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for header, body in stream:
            did = body.get("repo") or body["did"]
            found.setdefault(did, []).append((header["t"], body.get("rev"), body.get("active"), body["time"]))
        return found

    assert per_repo(streams[0]) == per_repo(streams[1])
    orders = [[body.get("rev") for _, body in stream] for stream in streams]
    assert orders[0] != orders[1]
    kinds = {header["t"] for header, _ in streams[0]}
    assert kinds == {"#commit", "#sync", "#identity", "#account"}


def test_live_writer_ends_in_the_expected_state(simulator: Any) -> None:
    simulation = simulator(repos=40, records_per_repo=10, churn=0.1)
    simulation.writer(400)
    url = repos_url(simulation.relays[0])
    collect(url, until=up_to(1600))
    simulation.quiesce()
    reader = SimulatedReader(simulation)
    state = simulation.state()
    assert len(state) > 40
    for did, truth in state.items():
        if truth.active:
            repo = reader.repo(did)
            assert (repo.rev, repo.data, repo.records) == (truth.rev, truth.data, truth.records)


def test_labels_are_signed_and_end_in_the_expected_state(simulator: Any) -> None:
    simulation = simulator(repos=10, labelers=2, labels=60)
    simulation.op("label", uri=next(iter(simulation.state())), val="rude", neg=True)
    reader = SimulatedReader(simulation)
    newest: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for url, did in zip(simulation.labelers, simulation.labeler_dids, strict=True):
        key = reader.key(did, "atproto_label")
        last = 61 if did == simulation.labeler_dids[0] else 60
        for header, body in collect(f"{url}/xrpc/com.atproto.label.subscribeLabels", until=up_to(last)):
            assert header["t"] == "#labels"
            for label in body["labels"]:
                unsigned = {name: value for name, value in label.items() if name != "sig"}
                assert verify_signature(key, encode_dag_cbor(unsigned), label["sig"])
                assert label["src"] == did
                newest[did, label["uri"], label["val"], label.get("cid", "")] = unsigned
    stated = simulation.labels()
    assert len(stated) == len(newest)
    for label in stated:
        unsigned = {name: value for name, value in label.items() if name != "sig"}
        assert newest[label["src"], label["uri"], label["val"], label.get("cid", "")] == unsigned
    assert any(label.get("neg") for label in stated)
    assert any(label.get("exp") for label in stated)
