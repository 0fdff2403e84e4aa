"""The documents name tests and files that exist."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORRECTNESS = ROOT / "docs" / "correctness.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
OUTSIDE = re.compile(r"\.\./shared|\bDESIGN\b|(?<![\w/-])notes/|\b[Ii]ssues? #?\d+")  # files and threads kept elsewhere


def texts() -> dict[str, str]:
    """Every tracked text file but this one: its path → its text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found = {}
    for name in listed.split("\0"):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            raw = path.read_bytes()
            found[name] = "" if b"\0" in raw else raw.decode("utf-8", "replace")
    return found


def functions(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kinds)}


def test_every_test_that_the_page_of_correctness_names_exists() -> None:
    known: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        known.setdefault(path.stem, set()).update(functions(path))
    named = re.findall(r"`(test_\w+)::(test_\w+)`", CORRECTNESS.read_text("utf-8"))
    assert len(named) > 80
    assert [f"{module}::{name}" for module, name in named if name not in known.get(module, set())] == []


def test_every_path_that_a_page_names_exists() -> None:
    folders = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0].isalpha()))
    named = {
        (page.name, path)
        for page in PAGES
        for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text("utf-8"))
        if page.name != "CHANGELOG.md"  # it names what was there then
    }
    assert len(named) > 100
    assert sorted((page, path) for page, path in named if not (ROOT / path).exists()) == []


def test_every_line_of_the_page_is_handled_by_a_test_or_refused_in_a_sentence() -> None:
    rows = [line for line in CORRECTNESS.read_text("utf-8").splitlines() if line.startswith("| ")]
    lines = [row for row in rows if not row.startswith(("| trap ", "| ---"))]
    assert len(lines) > 60
    assert [line for line in lines if "::test_" not in line and "**Refused:**" not in line] == []


def test_every_section_of_the_design_that_code_cites_exists() -> None:
    sections = set(re.findall(r"^#{2,3} (\d(?:\.\d)?)", (ROOT / "docs" / "design.md").read_text("utf-8"), re.MULTILINE))
    cited = [
        (name, one) for name, text in texts().items() for one in re.findall(r"\b[Dd]esign(?:\.md\))? §([\d.]*\d)", text)
    ]
    assert len(cited) > 10
    assert [f"{name}: §{one}" for name, one in cited if one not in sections] == []


def test_every_name_in_the_design_is_in_the_code() -> None:
    """Columns, topics, settings and reasons, so that a renamed one is renamed here as well."""
    code = "\n".join(
        text for name, text in texts().items() if name.endswith((".py", ".sql", ".yml")) and "tests/" not in name
    )
    known = set(re.findall(r"\w+", code))
    used = re.findall(r"`(?:sluice\.)?([A-Za-z_]+)(?:=\w+)?`", (ROOT / "docs" / "design.md").read_text("utf-8"))
    assert len(used) > 60
    assert [name for name in used if name not in known] == []


def test_no_file_refers_to_a_document_outside_of_the_repository() -> None:
    assert [f"{name}: {found}" for name, text in texts().items() for found in OUTSIDE.findall(text)] == []


def test_every_page_is_linked_and_every_link_of_a_page_leads_to_a_file() -> None:
    broken, linked = [], set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                path = (page.parent / target).resolve()
                linked.add(path)
                broken += [] if path.exists() else [f"{page.name}: {target}"]
    assert broken == []
    assert [page.name for page in PAGES if page.parent.name == "docs" and page not in linked] == []


def test_each_question_of_where_it_is_decided_has_one_or_two_files() -> None:
    text = (ROOT / "docs" / "where-is-it-decided.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.split(" | ") for line in lines if not line.startswith(("| question ", "| ---"))]
    assert len(rows) >= 30
    for question, answer, files in rows:
        named = re.findall(r"`([\w./-]+)`(?: \(([\w, ]+)\))?", files)
        assert 1 <= len(named) <= 2, question
        assert [name for name, _ in named if not (ROOT / name).is_file()] == [], question
        texts = {name: (ROOT / name).read_text("utf-8") for name, _ in named}
        sought = [(name, word) for name, words in named for word in words.split(", ") if word]
        assert [(name, word) for name, word in sought if not re.search(rf"\b{word}\b", texts[name])] == [], question
        assert len(f"{question} {answer}".split()) <= 60, question
