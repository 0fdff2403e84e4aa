"""The pages of docs/topics are generated from the models and are up to date (U2)."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from cli.main import app
from tools import topic_docs
from tools.json_schemas import schemas


def test_pages_match_the_models() -> None:
    """U2: after a change of schemas/events.py or topics.yml, run `python -m tools.topic_docs`."""
    assert {path.name: path.read_text("utf-8") for path in topic_docs.FOLDER.glob("*.md")} == topic_docs.pages()


def test_every_field_of_every_message_is_on_its_topics_page() -> None:
    pages = topic_docs.pages("mine-")
    for topic, schema in schemas().items():
        text = pages[f"mine-{topic}.md"]
        assert text.startswith(f"# mine-{topic}\n")
        for kind in [schema, *schema.get("$defs", {}).values()]:
            for field in kind.get("properties", {}):
                assert f"| `{field}` |" in text


def test_the_command_prints_a_page_or_the_names() -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["topics", "docs", *arguments], prog_name="sluice")

    assert run("label_live").stdout == topic_docs.pages()["label_live.md"]
    assert run().stdout.split() == list(schemas())
    unknown = run("labels")
    assert unknown.exit_code == 2
    assert "label_live" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
