"""MkDocs' hooks of `make docs`: pages that lie elsewhere or are made from the code, and links that fit the site.

A link to a file of the repository that is no page becomes its text. Everything that MkDocs warns about is an error.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

from cli.main import app
from tools import reference_pages

ROOT = Path(__file__).resolve().parent.parent.parent
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
MERMAID = ROOT / ".sluice" / "docs" / "package" / "dist" / "mermaid.min.js"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)#\s]+)\)")

logger = logging.getLogger("mkdocs.hooks.sluice")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    made = {page: (ROOT / name).read_text("utf-8") for name, page in MOVED.items()}
    made |= {
        "reference/commands.md": reference_pages.commands(get_command(app)),
        "reference/settings.md": reference_pages.settings(),
        "reference/api.md": reference_pages.api(),
        "reference/tables.md": reference_pages.tables(),
    }
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    if MERMAID.exists():
        files.append(File.generated(config, "assets/mermaid.min.js", abs_src_path=str(MERMAID)))
    else:
        logger.warning("%s is missing; `make docs` brings it", MERMAID)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links relative to the page as it lies in the site; take out those to files that are no pages."""
    here = page.file.src_uri
    folder = "" if here in MOVED.values() else posixpath.join("docs", posixpath.dirname(here))

    def moved(target: str) -> str:
        path = posixpath.normpath(posixpath.join(folder, target))
        place = MOVED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        return posixpath.relpath(place, posixpath.dirname(here) or ".") if place else ""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if "://" in target or here.startswith("reference/"):
            return found.group()
        place = moved(target)
        if place.endswith("topics"):
            place += "/firehose_live.md"
        return f"[{text}]({place}{anchor or ''})" if place.endswith(".md") else text

    def image(found: re.Match[str]) -> str:
        return f"![{found.group(1)}]({moved(found.group(2))})"

    return IMAGE.sub(image, LINK.sub(link, markdown))
