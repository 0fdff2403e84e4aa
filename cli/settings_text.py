"""`sluice settings`: each setting with its variable, value, default and meaning."""

import json

from pydantic_core import PydanticUndefined

from connectors.runtime.logs import without_secrets
from schemas.settings import PREFIX, PUBLIC, SECRETS, Settings, spell
from schemas.shard_ranges import shard_ranges


def rows(settings: Settings) -> list[tuple[str, str, str, str]]:
    """(variable, value, default, meaning) of each setting, in order. Passwords are hidden."""
    found = []
    for name in PUBLIC:
        field = Settings.model_fields[name]
        default = field.get_default(call_default_factory=True)
        value = getattr(settings, name)
        shown = without_secrets(value) if name == "database" else spell(value)
        if name == "shards":
            shown = " ".join(f"{one.name}={without_secrets(one.url)}" for one in shard_ranges(value))
        if name in SECRETS and value:
            shown = "***"
        found.append(
            (
                PREFIX + name.upper(),
                shown,
                "" if default is PydanticUndefined else spell(default),
                field.description or "",
            )
        )
    return found


def page(settings: Settings) -> str:
    """The list as text: two lines per setting; `*` marks a value that differs from its default."""
    lines = []
    for variable, value, default, meaning in rows(settings):
        mark = "*" if value != default else " "
        shown = f"{value}   (default: {default or 'empty'})" if value != default else value or "(empty)"
        lines += [f"{mark} {variable} = {shown}", f"      {meaning}"]
    return "\n".join(lines)


def as_json(settings: Settings) -> str:
    """The list as a JSON array of objects."""
    return json.dumps(
        [dict(zip(("variable", "value", "default", "meaning"), row, strict=True)) for row in rows(settings)]
    )
