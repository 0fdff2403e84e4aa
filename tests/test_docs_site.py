"""The documents as a site: `make docs` is clean, has every page, and loads nothing from elsewhere."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from schemas.settings import PREFIX, PUBLIC
from tests.local.test_wrong_things import COMMANDS
from tests.support import ROOT

SITE = ROOT / ".sluice" / "site"
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?(https?:)?//""")


def build(*, config: Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / ".venv" / "bin" / "mkdocs", "build", "--config-file", config]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(900)
def test_the_site_is_built_and_needs_no_network() -> None:
    made = subprocess.run(
        ["make", "--silent", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    pages = {path.relative_to(SITE).as_posix(): path.read_text("utf-8") for path in SITE.rglob("*.html")}
    assert {"index.html", "design.html", "topics/firehose_live.html", "reference/api.html"} <= pages.keys()
    assert [name for name, page in pages.items() if LOADED.search(page)] == []
    assert "stateDiagram" in pages["design.html"]
    assert (SITE / "assets" / "mermaid.min.js").stat().st_size > 1_000_000
    assert [name for name in COMMANDS if f"sluice {name}" not in pages["reference/commands.html"]] == []
    assert [name for name in PUBLIC if PREFIX + name.upper() not in pages["reference/settings.html"]] == []
    assert "/api/v1/filters/add" in pages["reference/api.html"]
    assert "indexed_at" in pages["reference/tables.html"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[a](nowhere.md)", "'nowhere.md'"),
        ("[a](limits.md#nothing-like-this)", "nothing-like-this"),
    ],
)
def test_a_broken_link_is_an_error(text: str, error: str, tmp_path: Path) -> None:
    """Also one to a heading that is no more."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# A page\n\n{text}\n")
    (docs / "limits.md").write_text("# Bounds\n")
    settings = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), yaml.BaseLoader)
    checked = {"site_name": "a", "docs_dir": str(docs), "site_dir": str(tmp_path / "site"), "strict": True}
    config = tmp_path / "mkdocs.yml"
    config.write_text(yaml.safe_dump(checked | {"validation": settings["validation"]}))
    ended = build(config=config)
    assert ended.returncode != 0
    assert error in ended.stderr
