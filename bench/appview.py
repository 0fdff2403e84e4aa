"""Benchmark: the index with the AppView's projection on and off. Records per second, log → PostgreSQL.

    .venv/bin/python -m bench.appview [--records 120000] [--workers 1]

Mix: likes 45 %, follows 25 %, posts 15 % (half of them replies), reposts 10 %, rest 5 %. Every repo likes one hot post; other
subjects are posts of other repos, mostly indexed later. `fold`: notes left to reconcile at the end of the log.
"""

import argparse
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

import msgspec
import psycopg

from appview.rebuild import check
from bench.support.load import CID, TEXT, Record, random_did, send_all, snapshot
from bench.support.stack import Stack, report, stack, until

PER_REPO = 60
HOT = f"at://{random_did('a', 0)}/app.bsky.feed.post/3kaaaaaaapost0"
MIX = ("like",) * 27 + ("follow",) * 15 + ("post",) * 9 + ("repost",) * 6 + ("block", "profile", "list")


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=120_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    repos = options.records // PER_REPO
    with stack() as running:
        off = _index(running, "b", repos, options.workers, "false")
        on = _index(running, "a", repos, options.workers, "true")
        likes = running.sql('select "likeCount" from bsky.post_agg where uri = %s', HOT)
        assert likes == [(repos,)], likes
        with psycopg.connect(running.settings.database, autocommit=True) as db:
            drift = check(db).found
        # records indexed while it was off are missing
        assert not any(drift[kind][0] for kind in ("posts", "profiles")), drift
    ratio = round(on["records_per_second"] / off["records_per_second"], 3)
    report("appview", records=repos * PER_REPO, workers=options.workers, on=on, off=off, ratio=ratio)


def _index(running: Stack, family: str, repos: int, workers: int, appview: str) -> dict[str, Any]:
    """One load from the first transaction to the last."""
    ((before,),) = running.sql("select coalesce(sum(next), 0)::bigint from sluice.stream_offset")
    messages = before + _produce(running, family, repos)
    with ExitStack() as processes, psycopg.connect(running.settings.database, autocommit=True) as db:

        def at() -> int:
            row = db.execute("select coalesce(sum(next), 0)::bigint from sluice.stream_offset").fetchone()
            return int(row[0]) if row else 0

        pids = [processes.enter_context(running.process("index", SLUICE_APPVIEW=appview)).pid for _ in range(workers)]
        until(lambda: at() > before, every=0.01)
        first, begin = at(), time.monotonic()
        usage = running.usage(**{f"index{number}": pid for number, pid in enumerate(pids)})
        until(lambda: at() >= messages)
        rate = (messages - first) / (time.monotonic() - begin)
        left = running.sql("select count(*) from sluice.appview_dirty")[0][0]
        reconciling = until(lambda: running.sql("select not exists (select from sluice.appview_dirty)")[0][0])
        figures = usage.stop()
    share = PER_REPO / (PER_REPO + 1)
    return {
        "records_per_second": round(rate * share),
        "fold": {"left": left, "seconds": round(reconciling, 1)},
        **figures,
    }


def _produce(running: Stack, family: str, repos: int) -> int:
    """Write snapshots, each with its outcome; returns the number of messages."""
    chance = random.Random(family)  # the same load in every run
    snapshots = (snapshot(random_did(family, n), _records(family, n, repos, chance)) for n in range(repos))
    return send_all(running.settings, chain.from_iterable(snapshots))


def _records(family: str, number: int, repos: int, chance: random.Random) -> Iterator[Record]:
    """Every record of a repo."""
    for collection, rkey, body in _bodies(family, number, repos, chance):
        yield collection, rkey, msgspec.json.encode({"$type": collection, **body})


def _bodies(family: str, number: int, repos: int, chance: random.Random) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Collection, key and body of every record, without its type."""

    def ref(uri: str) -> dict[str, str]:
        return {"uri": uri, "cid": CID}

    def somebody() -> int:
        return chance.randrange(repos)

    def some_post() -> str:
        return f"at://{random_did(family, somebody())}/app.bsky.feed.post/3kaaaaaaapost{chance.randrange(9)}"

    used: dict[str, int] = {}
    for kind in MIX:
        n = used[kind] = used.get(kind, -1) + 1
        created = {"createdAt": f"2025-{1 + chance.randrange(12):02d}-{1 + n:02d}T00:00:{n:02d}.{number % 1000:03d}Z"}
        rkey = f"3kaaaaaaa{kind[:4]:x<4}{n}"
        if kind in ("like", "repost"):
            subject = HOT if kind == "like" and n == 0 else some_post()
            yield f"app.bsky.feed.{kind}", rkey, {"subject": ref(subject), **created}
        elif kind in ("follow", "block"):
            yield f"app.bsky.graph.{kind}", rkey, {"subject": random_did(family, somebody()), **created}
        elif kind == "post":
            parent = ref(some_post())
            reply = {"reply": {"root": parent, "parent": parent}} if n % 2 else {}
            yield "app.bsky.feed.post", rkey, {"text": f"{TEXT}{number} {n}", "langs": ["en"], **reply, **created}
        elif kind == "profile":
            yield "app.bsky.actor.profile", "self", {"displayName": f"Bench {number}", "description": TEXT, **created}
        else:
            purpose = "app.bsky.graph.defs#curatelist"
            yield "app.bsky.graph.list", rkey, {"name": f"List {number}", "purpose": purpose, **created}


if __name__ == "__main__":
    main()
