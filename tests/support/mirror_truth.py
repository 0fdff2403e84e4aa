"""Tables against truth: `difference(database, simulation)` → sentences, none where the mirror is right.

Every repo of the simulated network: an active one is in `sync` with the network's rev, MST root and records (path → CID); a
deleted one has no rows; any other is inactive. Labels are the newest state of each (src, uri, val, cid). A sentence about a
repo is followed by its row of `sluice.repo`, so that a failure can be read without the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import psycopg

from tests.support.simulation import RepoTruth, Simulation

SHOWN = 6
LABEL = ("neg", "cts", "exp")


def difference(databases: str | Sequence[str], simulation: Simulation) -> list[str]:
    """What is wrong, the first few repos in full. Empty: the mirror equals the network. `databases`: one, or its shards."""
    truth, labels = simulation.state(), simulation.labels()
    records: dict[str, dict[str, str]] = defaultdict(dict)
    repos, stored, buffered = {}, {}, []
    for database in [databases] if isinstance(databases, str) else databases:
        with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as db, db.transaction():
            db.execute("set transaction isolation level repeatable read read only")
            repos |= {row["did"]: row for row in db.execute("select * from sluice.repo")}
            for row in db.execute("select did, collection || '/' || rkey as path, cid from sluice.record"):
                records[row["did"]][row["path"]] = row["cid"]
            stored |= {_key(row): row for row in db.execute("select * from sluice.label")}
            buffered += db.execute("select did, count(*) from sluice.buffered_event group by did").fetchall()
    found: list[str] = []
    wrong = 0
    for did, one in truth.items():
        said = _repo(one, repos.get(did), records.get(did, {}))
        if said and (wrong := wrong + 1) <= SHOWN:
            found += [f"{did}: {sentence}" for sentence in said]
            found.append(f"    its row: {_shown(repos.get(did))}")
    if wrong:
        found.append(f"{wrong} of {len(truth)} repos are wrong; phases {_phases(repos)}")
    found += [f"{did} is in the tables, but not in the network" for did in [*(repos.keys() - truth.keys())][:SHOWN]]
    found += [f"{row['did']}: {row['count']} buffered events are left" for row in buffered[:SHOWN]]
    return found + _labels({_key(label): label for label in labels}, stored)


def _repo(one: RepoTruth, row: dict[str, Any] | None, records: dict[str, str]) -> list[str]:
    if not one.active:
        # an account that was gone before anybody heard of it needs no row
        found = [f"active in the tables, {one.status} in truth"] if row is not None and row["active"] else []
        if row is not None and row["phase"] != "unavailable":
            found.append(f"phase {row['phase']}, {one.status} in truth")
        if one.status == "deleted" and records:
            found.append(f"deleted, with {len(records)} rows left")
        return found
    if row is None:
        return ["no row of sluice.repo"]
    found = [] if row["phase"] == "sync" and row["active"] else [f"phase {row['phase']}, active {row['active']}"]
    found += [
        f"{name} {row[name]}, in truth {getattr(one, name)}"
        for name in ("rev", "data", "commit")
        if row[name] != getattr(one, name)
    ]
    if records != one.records:
        missing = sorted(one.records.keys() - records.keys())
        surplus = sorted(records.keys() - one.records.keys())
        other = sorted(path for path in one.records.keys() & records.keys() if records[path] != one.records[path])
        found.append(
            f"{len(missing)} rows missing {missing[:3]}, {len(surplus)} too many {surplus[:3]},"
            f" {len(other)} with another CID {other[:3]}; {len(one.records)} in truth"
        )
    return found


def _labels(truth: dict[tuple[str, ...], dict[str, Any]], stored: dict[tuple[str, ...], dict[str, Any]]) -> list[str]:
    found = [f"label missing: {truth[key]}" for key in [*(truth.keys() - stored.keys())][:SHOWN]]
    found += [f"label too many: {stored[key]}" for key in [*(stored.keys() - truth.keys())][:SHOWN]]
    for key in truth.keys() & stored.keys():
        wanted = {name: truth[key].get(name) for name in LABEL} | {"neg": bool(truth[key].get("neg"))}
        if wanted != {name: stored[key][name] for name in LABEL} and len(found) < 3 * SHOWN:
            found.append(f"label {key}: {stored[key]}, in truth {wanted}")
    return found


def _key(label: dict[str, Any]) -> tuple[str, ...]:
    return label["src"], label["uri"], label["val"], label.get("cid") or ""


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return "none"
    left_out = ("did", "commit_block", "signing_key", "handle", "job")
    return " ".join(f"{name}={value}" for name, value in row.items() if value is not None and name not in left_out)


def _phases(repos: dict[str, dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in repos.values():
        counts[row["phase"]] += 1
    return dict(counts)


GATE = (
    "did, phase, reason, active, status, attempt, rev, seen_rev, from_snapshot, data, commit, commit_block, account_time,"
    " account_seq, first_attempt, buffered, buffered_rev, desyncs, retry_count, handle, host, signing_key, queued_at, completed_at"
)
TABLES = {
    "record": ("*", "did, collection, rkey"),
    "repo": (GATE, "did"),
    "label": ("*", "src, uri, val, cid"),
    "buffered_event": ("*", "did, log_offset"),
}

Contents = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def contents(database: str) -> Contents:
    """Table → key → row: every row and column of the tables, of `repo` the columns that the gate writes."""
    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as db:
        return {
            table: {
                tuple(row[name] for name in key.split(", ")): row
                for row in db.execute(f"select {columns} from sluice.{table}")
            }
            for table, (columns, key) in TABLES.items()
        }


def changes(before: Contents, after: Contents) -> list[str]:
    """What differs, column by column; the first few."""
    found = []
    for table, rows in before.items():
        now = after[table]
        found += [f"{table} {key}: gone" for key in rows.keys() - now.keys()]
        found += [f"{table} {key}: new, {now[key]}" for key in now.keys() - rows.keys()]
        for key in rows.keys() & now.keys():
            old, new = rows[key], now[key]
            differ = [f"{name} {old[name]!r} -> {new[name]!r}" for name in old if old[name] != new[name]]
            if differ:
                found.append(f"{table} {key}: {'; '.join(differ)}; row {_shown(new) if table == 'repo' else ''}")
    return found[: 3 * SHOWN] + ([f"{len(found)} changes"] if found else [])
