"""The verification of snapshots against the simulator, which shares no code with it: its repos pass, its faults do not."""

import asyncio
import json
import time
import urllib.request
from typing import Any

import aiohttp
import pytest

from protocol.car import CarIndex
from protocol.car_format import CarError
from protocol.cid import cid_bytes, cid_str
from protocol.did_document import ResolvedIdentity, document_url, parse_document
from protocol.encoding.record_json import body_cid, leaf_body, record_body
from protocol.event_stream import Commit, decode
from protocol.mst.tree import build
from protocol.snapshot import Snapshot, SnapshotReason, SnapshotRejected, from_car_error
from protocol.verify_commit import Verified, verify
from simulator.repo.odd_leaves import KINDS as ODD_LEAVES
from tests.support.opened_snapshot import open_snapshot
from tests.support.simulation import RepoTruth, Simulation


def identity_of(simulation: Simulation, did: str) -> ResolvedIdentity:
    url = document_url(did, simulation.plc)
    assert url is not None
    with urllib.request.urlopen(url, timeout=30) as answer:
        identity = parse_document(did, json.load(answer))
    assert isinstance(identity, ResolvedIdentity)
    return identity


def fetch(simulation: Simulation, truth: RepoTruth) -> Snapshot:
    """As the backfill does it: document, getRepo in chunks, verification."""
    identity = identity_of(simulation, truth.did)
    assert identity.pds is not None
    index = CarIndex()
    try:
        with urllib.request.urlopen(
            f"{identity.pds}/xrpc/com.atproto.sync.getRepo?did={truth.did}", timeout=60
        ) as answer:
            while chunk := answer.read(8192):
                index.feed(chunk)
        index.finish()
    except CarError as err:
        raise from_car_error(err) from err
    return open_snapshot(index, truth.did, identity.signing_key, truth.rev)


def test_every_simulated_repo_passes_and_is_the_truth(simulator: Any) -> None:
    """Hostile records included: JSON → DAG-CBOR → the same CID, and the tree rebuilt from the records is the signed one (G3)."""
    simulation = simulator(repos=40, records_per_repo=30, hostile=True, big_repos=1, big_repo_records=3000)
    active = [truth for truth in simulation.state().values() if truth.active]
    assert len(active) > 20
    for truth in active:
        got = fetch(simulation, truth)
        assert (got.head.rev, got.head.commit, got.head.data) == (truth.rev, truth.commit, truth.data)
        assert got.bad_paths == 0
        records = {f"{collection}/{rkey}": (cid_str(cid), block) for collection, rkey, cid, block, _ in got.records()}
        assert {path: cid for path, (cid, _) in records.items()} == truth.records
        assert got.count == len(truth.records)
        assert cid_str(build((path, cid_bytes(cid)) for path, (cid, _) in records.items())) == truth.data
        for cid, block in records.values():
            body = record_body(block)
            assert body_cid(body.json, body.raw) == cid


@pytest.mark.parametrize(
    ("fault", "parameters", "reason", "transient"),
    [
        ("pds_truncate", {"mode": "mid"}, SnapshotReason.TRUNCATED, True),
        ("pds_truncate", {"mode": "boundary"}, SnapshotReason.MISSING_BLOCK, True),
        ("pds_wrong_did", {}, SnapshotReason.WRONG_DID, False),
        ("pds_tamper", {}, SnapshotReason.BAD_CAR, False),
        ("pds_bad_sig", {}, SnapshotReason.BAD_SIGNATURE, False),
    ],
)
def test_every_fault_of_a_pds_has_its_reason(
    simulator: Any, fault: str, parameters: dict[str, str], reason: SnapshotReason, transient: bool
) -> None:
    simulation = simulator(repos=6, records_per_repo=20)
    truth = next(truth for truth in simulation.state().values() if truth.active)
    simulation.set_faults(**{fault: {"p": 1, **parameters}})
    with pytest.raises(SnapshotRejected) as caught:
        fetch(simulation, truth)
    assert (caught.value.reason, caught.value.transient) == (reason, transient)
    assert simulation.fired(fault) == 1


def test_a_stale_snapshot_is_refused_and_transient(simulator: Any) -> None:
    simulation = simulator(repos=3, records_per_repo=10)
    did = next(truth.did for truth in simulation.state().values() if truth.active)
    simulation.op("create", did=did)
    simulation.set_faults(pds_stale=1)
    with pytest.raises(SnapshotRejected) as caught:
        fetch(simulation, simulation.state()[did])
    assert (caught.value.reason, caught.value.transient) == (SnapshotReason.STALE, True)
    assert simulation.fired("pds_stale") == 1


def test_repos_with_odd_leaves_among_others_are_the_truth(simulator: Any) -> None:
    """G3: created, replaced and deleted at random beside ordinary records."""
    faults = {kind: {"p": 0.05, "bytes": 2000} for kind in ODD_LEAVES}
    simulation = simulator(repos=12, records_per_repo=10, inactive_share=0.0, churn=0.0, faults=faults)
    simulation.writer(steps=400)
    assert set(ODD_LEAVES) == set(simulation.faults()["fired"])
    reasons = set()
    for truth in simulation.state().values():
        got = fetch(simulation, truth)
        rows = {f"{collection}/{rkey}": (cid, block, why) for collection, rkey, cid, block, why in got.records()}
        assert {path: cid_str(cid) for path, (cid, *_) in rows.items()} == truth.records
        assert cid_str(build((path, cid) for path, (cid, *_) in sorted(rows.items()))) == truth.data
        for cid, block, why in rows.values():
            body = leaf_body(cid, block, why)
            reasons.add(body.reason)
            if body.json is not None or body.raw is not None:
                assert body_cid(body.json, body.raw, cid_str(cid)) == cid_str(cid)
    assert reasons == {None, "raw_block", "foreign_cid", "not_canonical"}
    commits = [event for event in map(decode, asyncio.run(read(simulation.relays[0]))) if isinstance(event, Commit)]
    assert len(commits) == 400
    for event in commits:
        verified = verify(event, time.time_ns() // 1000)
        assert isinstance(verified, Verified), verified
        assert (verified.problem, verified.ops is None) == (None, False), "each is inverted, whatever its leaves name"


async def read(relay: str) -> list[bytes]:
    """Every frame from the first on, until nothing comes any more."""
    frames: list[bytes] = []
    url = f"{relay}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        while True:
            try:
                frames.append(await asyncio.wait_for(socket.receive_bytes(), 1.0))
            except TimeoutError:
                return frames
