"""A command loads what it needs: most of its time is imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVERS = {"aiohttp", "bytewax", "fastapi", "rich", "uvicorn", "uvloop"}


@pytest.mark.parametrize("modules", ["cli.main", "cli.main, cli.status_text, control.repo_details"])
def test_a_command_loads_no_server_and_no_terminal_view(modules: str) -> None:
    """`sluice status` loaded aiohttp and rich: 0.2 s."""
    script = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "cli" in loaded
    assert not loaded & SERVERS
