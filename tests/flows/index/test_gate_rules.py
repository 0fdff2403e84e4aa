"""The gate's limits come from the settings in one place."""

from __future__ import annotations

import ast
from dataclasses import fields

import pytest

from flows.index.apply import rules_of
from schemas.settings import PUBLIC, Settings
from steps.gate.model import Rules
from tests.support import ROOT

OF_SETTING = {
    "buffered_events_per_repo": "max_buffered",
    "buffered_bytes_per_repo": "max_buffered_bytes",
    "backfill_max_attempts": "max_attempts",
    "retry_first_seconds": "retry_first_seconds",
    "retry_max_seconds": "retry_max_seconds",
}
NOT_SET = {"desync_quiet_seconds", "filter", "replayed"}  # constants, and what the transaction or its caller knows


def test_each_limit_of_the_gate_follows_its_setting() -> None:
    """G6."""
    assert {field.name for field in fields(Rules)} == {*OF_SETTING.values(), *NOT_SET}
    settings = Settings()
    for name, limit in OF_SETTING.items():
        more = getattr(settings if name in PUBLIC else settings.tuning, name) + 1
        changed = settings.replaced(**{name: more})
        before, after = rules_of(settings), rules_of(changed)
        assert getattr(after, limit) == more
        assert {one.name for one in fields(Rules) if getattr(before, one.name) != getattr(after, one.name)} == {limit}


@pytest.mark.parametrize("folder", ["connectors", "appview", "flows", "control", "local", "ops", "cli"])
def test_the_limits_are_made_in_one_place(folder: str) -> None:
    """G2: an index, a retried dead letter, a replay and a rebuild decide alike."""
    made = [
        path.name
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Rules"
    ]
    assert made == (["apply.py"] if folder == "flows" else [])
