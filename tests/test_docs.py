"""The documents name tests and files that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORRECTNESS = ROOT / "docs" / "correctness.md"


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_of_correctness_names_exists() -> None:
    known: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        known[path.stem] = functions(path)
    named = re.findall(r"`(test_\w+)::(test_\w+)`", CORRECTNESS.read_text("utf-8"))
    assert len(named) > 80
    assert [f"{module}::{name}" for module, name in named if name not in known.get(module, set())] == []


def test_every_module_that_the_page_of_correctness_names_exists() -> None:
    text = CORRECTNESS.read_text("utf-8")
    named = set(re.findall(r"`((?:flows|steps|connectors|schemas|control)/[\w./]+)`", text))
    assert len(named) > 15
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_line_of_the_page_is_handled_by_a_test_or_refused_in_a_sentence() -> None:
    rows = [line for line in CORRECTNESS.read_text("utf-8").splitlines() if line.startswith("| ")]
    lines = [row for row in rows if not row.startswith(("| what ", "| ---"))]
    assert len(lines) > 60
    assert [line for line in lines if "::test_" not in line and "**Refused:**" not in line] == []
