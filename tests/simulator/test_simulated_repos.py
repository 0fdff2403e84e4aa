"""PDSes, relays and the PLC directory serve the state that the control API reports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from tests.simulator.read_simulated import SimulatedReader, get, read_car, refused
from tests.support import ROOT
from tests.support.flow_process import is_running


def every_page(url: str, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = get(f"{url}/xrpc/com.atproto.sync.listRepos?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        rows += page["repos"]
        if "cursor" not in page:
            return rows
        assert page["cursor"] != cursor
        cursor = page["cursor"]


def test_every_served_repository_has_the_expected_state(simulator: Any) -> None:
    simulation = simulator(repos=60, records_per_repo=25, hostile=True, big_repos=1, big_repo_records=4000)
    reader = SimulatedReader(simulation)
    state = simulation.state()
    assert len(state) == 60
    for did, truth in state.items():
        if not truth.active:
            url = f"{reader.pds(did)}/xrpc/com.atproto.sync.getRepo?did={did}"
            assert refused(url) == (400, {"takendown": "RepoTakendown", "deactivated": "RepoDeactivated"}[truth.status])
            continue
        repo = reader.repo(did)
        assert (repo.rev, repo.commit, repo.data, repo.records) == (truth.rev, truth.commit, truth.data, truth.records)
    assert max(len(truth.records) for truth in state.values()) >= 4000
    assert any("com.example.hostile/links" in truth.records for truth in state.values())


def test_listings_name_every_account_once_with_its_head(simulator: Any) -> None:
    simulation = simulator(repos=75, records_per_repo=5, relays=2)
    state = simulation.state()
    for relay in simulation.relays:
        rows = every_page(relay, 20)
        assert [row["did"] for row in rows] == list(state)
        for row in rows:
            truth = state[row["did"]]
            assert (row["head"], row["rev"], row["active"], row.get("status")) == (
                truth.commit,
                truth.rev,
                truth.active,
                truth.status,
            )
    hosts = get(f"{simulation.relays[0]}/xrpc/com.atproto.sync.listHosts")["hosts"]
    assert [f"http://{host['hostname']}" for host in hosts] == simulation.pdses
    by_pds = [{row["did"] for row in every_page(pds, 7)} for pds in simulation.pdses]
    assert sum(map(len, by_pds)) == 75
    assert by_pds == [{did for did, truth in state.items() if truth.pds == number} for number in range(3)]


def test_the_same_seed_gives_the_same_network(simulator: Any) -> None:
    config = {"repos": 30, "records_per_repo": 15, "epoch_micros": 1_790_000_000_000_000, "hostile": True, "churn": 0.2}
    first, second = simulator(seed=5, **config), simulator(seed=5, **config)
    other = simulator(seed=6, **config)
    assert first.state() == second.state()
    assert not set(first.state()) & set(other.state())
    for simulation in (first, second):
        simulation.writer(steps=300)
        simulation.op("create", did=next(iter(simulation.state())))
    assert first.state() == second.state()
    assert first.labels() == second.labels()


def test_single_operations_are_visible_on_every_server(simulator: Any) -> None:
    simulation = simulator(repos=20, records_per_repo=5, inactive_share=0.0)
    reader = SimulatedReader(simulation)
    did = next(iter(simulation.state()))

    made = simulation.op("create", did=did, collection="com.example.note", record={"text": "hello"})
    assert made["path"] in reader.repo(did).records
    simulation.op("update", did=did, path=made["path"], record={"text": "changed"})
    link = {"$link": simulation.state()[did].commit}
    ops = [{"action": "create", "path": f"com.example.note/{n}", "record": {"n": n, "link": link}} for n in range(3)]
    simulation.op("commit", did=did, ops=ops)
    before = reader.repo(did)
    assert {"com.example.note/0", "com.example.note/2"} <= before.records.keys()
    simulation.op("delete", did=did, path=made["path"])
    assert before.records.keys() - reader.repo(did).records.keys() == {made["path"]}

    handle = simulation.op("handle", did=did, handle="renamed.test")["handle"]
    assert reader.document(did)["alsoKnownAs"] == [f"at://{handle}"]
    assert get(f"{reader.pds(did)}/xrpc/com.atproto.identity.resolveHandle?handle={handle}") == {"did": did}

    old_pds, old_key = reader.pds(did), reader.key(did)
    simulation.op("migrate", did=did, noisy=True)
    assert reader.pds(did) != old_pds
    assert reader.key(did) != old_key
    assert reader.repo(did).rev > before.rev
    assert refused(f"{old_pds}/xrpc/com.atproto.sync.getRepo?did={did}") == (400, "RepoDeactivated")

    for operation, error in (
        ("deactivate", "RepoDeactivated"),
        ("takedown", "RepoTakendown"),
        ("suspend", "RepoSuspended"),
        ("delete_account", "RepoNotFound"),
    ):
        simulation.op(operation, did=did)
        assert refused(f"{reader.pds(did)}/xrpc/com.atproto.sync.getRepo?did={did}") == (400, error)
        if operation != "delete_account":
            simulation.op("activate", did=did)
    assert simulation.state()[did].records == {}
    with pytest.raises(AssertionError, match="deleted"):
        simulation.op("create", did=did)

    new = simulation.op("new_account")["did"]
    assert list(reader.repo(new).records) == ["app.bsky.actor.profile/self"]
    assert simulation.state()[new].records == reader.repo(new).records


def test_big_repositories_are_spooled_and_whole(simulator: Any) -> None:
    simulation = simulator(repos=2, big_repos=1, big_repo_records=300, big_record_bytes=20_000, inactive_share=0.0)
    did = next(iter(simulation.state()))
    car = SimulatedReader(simulation).car(did)
    assert len(car) > 300 * 20_000
    assert len(read_car(car)[1]) > 300


def test_the_process_stops_cleanly_and_rejects_a_port_in_use(simulator: Any) -> None:
    simulation = simulator(repos=2)
    port = int(simulation.control.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="exit code 2"):
        simulator(repos=2, port=port)
    assert simulation.stop() == 0


def test_the_process_ends_with_its_parent() -> None:
    child = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'simulator', '--repos', '1']); p.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    url = json.loads(parent.stdout.readline())["control"]
    assert get(f"{url}/state/summary")["accounts"] == 1
    (pid,) = (process.pid for process in psutil.Process(parent.pid).children())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "the simulator outlived its parent"
        time.sleep(0.05)
