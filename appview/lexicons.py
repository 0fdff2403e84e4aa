"""Lexicon definitions of the records that the AppView indexes, and of everything they refer to.

`tests/appview/projection/recorded/lexicons.mjs` generates `lexicons.json` from the published lexicons: `{"nsid" or "nsid#name":
definition}`. The definition of a record is its object; refs are absolute; descriptions and known values are left out.
"""

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec


@cache
def definitions() -> dict[str, dict[str, Any]]:
    """All definitions, in the form above."""
    text = (files(__package__) / "lexicons.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, dict[str, Any]])
