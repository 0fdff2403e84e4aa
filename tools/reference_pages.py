"""Pages of reference for the site of the documents, from the code: commands, settings, HTTP API, tables. Each is Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from connectors.runtime.health import Health
from control.api.application import make_app
from control.api.context import Context
from schemas.settings import PREFIX, PUBLIC, Settings, load, spell

MIGRATIONS = Path(__file__).resolve().parent.parent / "schemas" / "sql" / "migrations"
TABLE = re.compile(
    r"((?:^--[^\n]*\n)*)^create (table|view) (?:if not exists )?(\w+\.\w+)(.*?);(?:\s*--[^\n]*)?$", re.M | re.S
)
COLUMN = re.compile(r"^    (\w+)\s+([^,\n]*?),?(?:\s*--\s*(.*))?$")
NO_COLUMNS = ("primary", "unique", "check", "constraint", "foreign", "references")


def settings() -> str:
    """Every public setting."""
    rows = []
    for name in PUBLIC:
        field = Settings.model_fields[name]
        default = field.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined else spell(default)
        rows.append((f"`{PREFIX}{name.upper()}`", f"`{shown}`" if shown else "", field.description or ""))
    head = "# Settings\n\nEach is an environment variable; `sluice settings` prints them with the values that it finds.\n\n"
    return head + _table(("variable", "default", "meaning"), rows)


def commands(root: Any) -> str:
    """Every command with its arguments and options. `root`: the command line as a click group."""
    return "\n".join(["# Commands\n", *_commands(root, "sluice")])


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"## {path} {name}\n\n{(command.help or '').strip()}\n"
            rows = [
                (_option(parameter), getattr(parameter, "help", None) or "")
                for parameter in command.params
                if not getattr(parameter, "hidden", False)
            ]
            yield _table(("argument or option", "meaning"), rows) if rows else ""


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return f"`{' '.join(parameter.opts)}`"


def api() -> str:
    """Every route of the HTTP API."""
    document = make_app(Context(load(), Health("control"))).openapi()
    lines = [
        "# HTTP API\n",
        f"{document['info']['description']}\n",
        "The OpenAPI document is at `/api/openapi.json` of control.\n",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines.append(
                f"## {method.upper()} {path}\n\n{operation.get('description') or operation.get('summary', '')}\n"
            )
            rows = [
                (f"`{one['name']}`", one["in"], one.get("description", "")) for one in operation.get("parameters", ())
            ]
            if body := operation.get("requestBody"):
                rows.append(("body", "JSON", _model(body)))
            lines += [_table(("parameter", "in", "meaning"), rows)] if rows else []
            answers = operation["responses"]
            lines.append(f"Answer: {_model(answers['200'])}. Errors: {', '.join(sorted(answers.keys() - {'200'}))}.\n")
    lines.append("# Objects\n")
    for name, model in document["components"]["schemas"].items():
        lines.append(f"### {name}\n\n{model.get('description', '')}\n")
        fields = [
            (f"`{field}`", _type(one), one.get("description", "")) for field, one in model.get("properties", {}).items()
        ]
        lines.append(_table(("field", "type", "meaning"), fields) if fields else "")
    return "\n".join(lines)


def _model(part: dict[str, Any]) -> str:
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return _type(schema) if schema else ""


def _type(schema: dict[str, Any]) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_type, parts)))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("const") or schema.get("type", "any JSON"))


def tables() -> str:
    """Tables and views of the migrations, with the comments of their columns."""
    lines = ["# Tables\n", "Read the views for the records: they have names where the tables have numbers.\n"]
    for path in sorted(MIGRATIONS.glob("*.sql")):
        for comment, kind, name, body in TABLE.findall(path.read_text("utf-8")):
            about = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
            lines.append(f"## {name}\n\n{kind}. {about}\n" if about else f"## {name}\n\n{kind}\n")
            columns = [found.groups() for line in body.splitlines() for found in [COLUMN.match(line)] if found]
            rows = [(f"`{one}`", kind_of, about or "") for one, kind_of, about in columns if one not in NO_COLUMNS]
            written = f"```sql\ncreate {kind} {name}{body}\n```\n"
            lines.append(_table(("column", "type", "meaning"), rows) if rows and kind == "table" else written)
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: Iterable[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [
        head,
        ("---",) * len(head),
        *(tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
