"""docs/flows.md shows the dataflows as they run: each picture is drawn again, and each step has a line of text."""

import re

import pytest

from tools.flow_pictures import FLOWS, PAGE, page, picture, steps


def test_the_page_has_todays_pictures() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "run .venv/bin/python -m tools.flow_pictures"
    assert page(text.replace("decode --> cursor", "cursor --> decode", 1)) == text, "a wrong edge is found"


@pytest.mark.parametrize("name", FLOWS)
def test_each_step_has_its_line(name: str) -> None:
    section = PAGE.read_text("utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == steps(name)


def test_a_picture_shows_all_steps_and_no_other() -> None:
    drawn = set(re.findall(r"\w+", picture("firehose"))) - {"mermaid", "flowchart", "LR"}
    assert drawn == set(steps("firehose"))
