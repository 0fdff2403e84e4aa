"""A command loads what it needs: most of its time is imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVERS = {"aiohttp", "bytewax", "fastapi", "rich", "uvicorn", "uvloop"}
CLIENTS = {"confluent_kafka", "psycopg", "pydantic", "pydantic_settings"}


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [("cli.main", SERVERS | CLIENTS), ("cli.main, cli.status_text, control.repo_details", SERVERS)],
)
def test_a_command_loads_what_it_needs(modules: str, unwanted: set[str]) -> None:
    """`sluice status` loaded aiohttp and rich: 0.2 s; `sluice help` all clients: five sixths of its time."""
    script = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "cli" in loaded
    assert not loaded & unwanted
