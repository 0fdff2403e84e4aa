"""Benchmark: reads of `serve`. Records per CPU second of getRepo, and getRecord requests per second.

    .venv/bin/python -m bench.serve_reads [--repos 3] [--records 10000] [--requests 5000]

Simulated repos of this size are mirrored first, by every process but the firehose; these have ended before the measurement.
`per_core_second`: records per CPU second of `serve` alone; `with_postgres`: of both. Floor of getRepo: the blocks of the same CARs,
hashed, the tree made from the records, and the sections written, in a plain loop.
"""

import argparse
import asyncio
import time
import urllib.request
from hashlib import sha256
from typing import Any, NamedTuple

import aiohttp
import psutil

from bench.audit import dids, mirror
from bench.serve import serving
from bench.support.simulated import simulated
from bench.support.stack import Floor, Stack, floor, report, stack
from protocol.car import index_bytes
from protocol.car_format import write_section
from protocol.commit import CommitObject, parse_commit
from protocol.mst.tree import TreeBuilder, walk

CONNECTIONS = 8
EACH = 3
"""Requests of each repo."""


class Leaves(NamedTuple):
    """A repo's (path, CID) in the order of its tree, and its blocks."""

    did: str
    paths: list[tuple[str, bytes]]
    blocks: dict[bytes, bytes]


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=3)
    parser.add_argument("--records", type=int, default=10_000, help="of each repo")
    parser.add_argument("--requests", type=int, default=5000, help="of getRecord")
    options = parser.parse_args()
    network: dict[str, Any] = {
        "repos": options.repos,
        "big_repos": options.repos,
        "big_repo_records": options.records,
        "churn": 0.0,
    }
    with simulated(**network, labelers=0, inactive_share=0.0, prebuild=True) as sim:
        overrides = {"relays": sim.urls["relays"], "plc": sim.urls["plc"], "serve_address_requests": 1e9}
        with stack(**overrides) as running:
            records = mirror(running, sim, options.repos)
            with serving(running) as (port, process):
                figures, repos = get_repos(running, port, process, records)
                one = asyncio.run(get_records(running, port, process, repos, options.requests))
    report("serve_reads", records_per_repo=options.records, get_record=one, **figures)


def get_repos(running: Stack, port: int, process: psutil.Process, records: int) -> tuple[dict[str, Any], list[Leaves]]:
    """Read every repo EACH times, one after the other; the figures, and the leaves of each repo."""
    url = f"http://127.0.0.1:{port}/xrpc/com.atproto.sync.getRepo?did="
    cars = {did: read(url + did) for did in dids(running)}
    usage, begin = running.usage(serve=process.pid), time.monotonic()
    for did in [*cars] * EACH:
        assert len(read(url + did)) == len(cars[did])
    seconds, cost = time.monotonic() - begin, usage.stop()
    parsed = [leaves_of(did, car) for did, car in cars.items()]
    assert sum(len(one.paths) for one in parsed) == records
    bottom = car_floor(parsed)
    own, postgres = cost["cpu_seconds"]["serve"], cost["cpu_seconds"]["postgres"]
    figures = {
        "records": records * EACH,
        "car_bytes": sum(map(len, cars.values())) * EACH,
        "records_per_second": round(records * EACH / seconds),
        "per_core_second": round(records * EACH / own),
        "with_postgres": round(records * EACH / (own + postgres)),
        **bottom.figures(records * EACH / seconds),
        **cost,
    }
    return figures, parsed


def read(url: str) -> bytes:
    """The body of an answer."""
    with urllib.request.urlopen(url, timeout=600) as answer:
        body: bytes = answer.read()
    return body


def leaves_of(did: str, car: bytes) -> Leaves:
    """Parse a CAR."""
    index = index_bytes(car)
    assert index.root is not None
    commit = parse_commit(index.blocks[index.root])
    assert isinstance(commit, CommitObject)
    return Leaves(did, list(walk(commit.data, index.blocks.get)), index.blocks)


def car_floor(repos: list[Leaves]) -> Floor:
    """The tree, the hashes and the sections of all repos."""
    with floor(EACH * sum(len(one.paths) for one in repos)) as measured:
        for one in repos * EACH:
            builder = TreeBuilder(lambda _layer, cid, block: write_section(cid, block))
            for path, cid in one.paths:
                builder.add(path.encode(), cid)
                assert sha256(one.blocks[cid]).digest() == cid[4:]
                write_section(cid, one.blocks[cid])
            builder.root()
    return measured


async def get_records(
    running: Stack, port: int, process: psutil.Process, repos: list[Leaves], count: int
) -> dict[str, Any]:
    """com.atproto.repo.getRecord of records all over the repos, by CONNECTIONS clients."""
    url = f"http://127.0.0.1:{port}/xrpc/com.atproto.repo.getRecord"
    every = [(one.did, *path.split("/")) for one in repos for path, _ in one.paths]
    chosen = iter([every[(number * 7919) % len(every)] for number in range(count)])

    async def ask() -> None:
        for did, collection, rkey in chosen:
            async with session.get(url, params={"repo": did, "collection": collection, "rkey": rkey}) as answer:
                assert (answer.status, bool(await answer.read())) == (200, True)

    usage, begin = running.usage(serve=process.pid), time.monotonic()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    seconds, cost = time.monotonic() - begin, usage.stop()
    micros = {kind: round(1e6 * cpu / count) for kind, cpu in cost["cpu_seconds"].items()}
    return {"requests_per_second": round(count / seconds), "cpu_micros": micros, **cost}


if __name__ == "__main__":
    main()
