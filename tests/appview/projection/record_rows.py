"""Asks the official indexers what they store of `row_cases`, and writes it beside the tests.

    python -m tests.appview.projection.record_rows

Takes both versions' packages from where `appview` installs them. Needed again when the cases change.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from appview.projection.rows import COLUMNS
from local.embedded.embedded_database import EmbeddedDatabase
from tests.appview.projection.row_cases import CASES, CID, DID, INDEXED
from tests.support.official.appview_servers import VERSIONS, release

HERE = Path(__file__).resolve().parent

NOTICE = ("did", "reason", "reasonSubject", "sortAt")


def official(version: str, url: str, schema: str) -> list[dict[str, Any]]:
    """{table: rows} of every case, only columns of ours; `record` is there if it is indexed at all."""
    packages = release(version)
    lines = [json.dumps([DID, collection, rkey, CID, record, INDEXED]) for collection, rkey, record in CASES]
    command = [
        packages.node,
        str(HERE / "recorded" / "rows.mjs"),
        str(packages.modules),
        url,
        schema,
    ]
    ran = subprocess.run(command, input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True)
    kept = COLUMNS | {"notification": NOTICE, "record": ("uri",)}
    return [
        {
            table: sorted(([row[column] for column in kept[table]] for row in rows), key=str)
            for table, rows in json.loads(line).items()
            if table in kept
        }
        for line in ran.stdout.split("\n")[:-1]
    ]


def main() -> None:
    """Write rows.jsonl: what the newest stores; `older` where only that one takes the record; {} where none does."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server's processes are another user's
        with EmbeddedDatabase(Path(folder) / "postgres") as server:
            with psycopg.connect(server.url, autocommit=True) as admin:
                admin.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            older, newest = (
                official(version, server.url, schema)
                for version, schema in zip(VERSIONS, ("older", "newest"), strict=True)
            )
    lines = [new or ({"older": old} if old else {}) for old, new in zip(older, newest, strict=True)]
    (HERE / "recorded" / "rows.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )


if __name__ == "__main__":
    main()
