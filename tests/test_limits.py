"""docs/limits.md says the truth: every bound it names has this value in the code, and a test that meets it (G6, H2)."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from schemas.settings import Settings
from schemas.tuning import Tuning
from tests.test_docs import functions

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "limits.md").read_text("utf-8")
PACKAGES = ("protocol", "steps", "connectors", "appview", "flows", "serve", "control", "local", "ops", "cli")
CONSTANT = re.compile(
    r"`((?:protocol|schemas|steps|connectors|appview|flows|serve|control|local|ops|cli)/[\w/]+\.py):(\w+) = ([^`]+)`"
)
SETTING = re.compile(r"`SLUICE_(\w+) = ([^`]+)`")
TEST = re.compile(r"`(test_\w+)::(test_\w+)`")
COLLECTIONS = {"deque", "Queue", "SimpleQueue", "LifoQueue", "OrderedDict", "TTLCache", "LRUCache", "Handover"}
"""Calls that make a queue or a cache: each module that has one has a row."""


def rows() -> list[list[str]]:
    bounds = PAGE.partition("## Loops that ask")[0]
    lines = [line for line in bounds.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "what"]


ROWS = rows()


def test_the_page_has_the_columns_that_it_promises() -> None:
    assert len(ROWS) > 60
    assert [row[0] for row in ROWS if len(row) != 6] == []
    assert len({row[0] for row in ROWS}) == len(ROWS), "a name stands twice"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_bound_is_the_code_s_own_and_is_met_by_a_test(row: list[str]) -> None:
    """Bytes or count, time, place, consequence, test: none is missing, and the place holds the value."""
    what, size, seconds, place, beyond, test = row
    assert all((size, seconds, beyond)), what
    constants, settings = CONSTANT.findall(place), SETTING.findall(place)
    assert constants or settings, f"{what}: names no constant and no setting"
    for path, name, text in constants:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        holder = Tuning() if path == "schemas/tuning.py" else module
        assert repr(getattr(holder, name)) == text, f"{path}:{name}"
    for name, text in settings:
        assert repr(Settings.model_fields[name.lower()].default) == text, name
    named = TEST.findall(test)
    assert named, f"{what}: names no test"
    for module, name in named:
        found = [path for path in (ROOT / "tests").rglob(f"{module}.py") if name in functions(path)]
        assert found, f"{what}: no test {module}::{name}"


def test_every_queue_and_cache_has_a_row() -> None:
    """A new one without a bound on the page is found here."""
    named = {path for row in ROWS for path, _, _ in CONSTANT.findall(row[3])} | set(re.findall(r"`([\w/]+\.py)`", PAGE))
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            calls = {
                getattr(node.func, "id", getattr(node.func, "attr", ""))
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Call)
            }
            if calls & COLLECTIONS:
                found.add(str(path.relative_to(ROOT)))
    assert sorted(found - named) == []
