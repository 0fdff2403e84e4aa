"""Lexicon definitions of the records that the AppView indexes, and of all that they refer to.

`lexicons.json` is made by `tests/appview/projection/recorded/lexicons.mjs` out of the published lexicons: `{"nsid" or "nsid#name":
definition}`, a record's definition being its object; refs are full; descriptions and known values are left out.
"""

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec


@cache
def definitions() -> dict[str, dict[str, Any]]:
    """All definitions; see the module's contract for their form."""
    text = (files(__package__) / "lexicons.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, dict[str, Any]])
