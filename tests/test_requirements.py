"""docs/requirements.md and the tests name each other: every requirement has a proof, every id in a docstring is on the page."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "requirements.md"
ID = re.compile(r"\b[PCTRBUNHSVG][1-9]\d?\b")
NOT_YET = {"S2", "S3", "S4", "S5"}
"""Goals without a test. Remove an id here when its proof is on the page."""


def entries() -> dict[str, str]:
    """Id → its sentence and its proofs, as the page has them."""
    parts = re.split(r"^- \*\*([A-Z]\d+)\*\* ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    ids = parts[1::2]
    assert len(ids) == len(set(ids)), "an id comes twice"
    return dict(zip(ids, parts[2::2], strict=True))


def proofs(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)


@cache
def docstrings(path: Path) -> dict[str, str]:
    """Function or class (module: "") → docstring, for all that have one."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {node.name: ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)}
    return found | {"": ast.get_docstring(tree) or ""}


def test_every_requirement_has_a_test_that_names_it() -> None:
    missing = []
    for one, text in entries().items():
        named = proofs(text)
        if not named and one not in NOT_YET:
            missing.append(f"{one}: no proof")
        for path, name in named:
            known = docstrings(ROOT / path) if (ROOT / path).exists() else {}
            if name not in known:
                missing.append(f"{one}: {path}::{name} does not exist")
            elif one not in ID.findall(known[name]):
                missing.append(f"{one}: the docstring of {path}::{name} does not name it")
    assert missing == []


def test_every_id_in_a_docstring_is_a_requirement() -> None:
    known = set(entries())
    wrong = [
        f"{path.relative_to(ROOT)}::{name}: {one}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name, text in docstrings(path).items()
        for one in ID.findall(text)
        if one not in known
    ]
    assert wrong == []


def test_requirements_not_met_yet_are_marked() -> None:
    texts = entries()
    assert {one for one, text in texts.items() if not proofs(text)} == NOT_YET
    assert {one for one in NOT_YET if "Not yet:" not in texts[one]} == set()
    assert {one for one, text in texts.items() if "Not yet:" in text} == NOT_YET
