"""JSON from outside: bytes → value, with limits on size, items and depth. Pure.

All JSON from outside is decoded here. `decode` raises `BadJson`, and nothing else, on any bytes. It counts the items before it
builds a value, which bounds time and memory: 40,000 items take about 4 ms. The last of duplicate keys wins.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_DEPTH = 32


class BadJson(Exception):
    """The bytes are not JSON, or exceed a limit. The message quotes nothing of them."""


class TooMuchJson(BadJson):
    """The JSON exceeds the limit of bytes or items. A smaller page may fit."""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """`size` in bytes; `items`: members of all arrays and objects together."""

    size: int
    items: int


def decode(body: bytes, limits: JsonLimits) -> Any:
    """Decode a JSON text. Raises BadJson."""
    if len(body) > limits.size:
        raise TooMuchJson(f"more than {limits.size} bytes of JSON")
    # an upper bound: separators within strings count too
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.items:
        raise TooMuchJson(f"more than {limits.items} items of JSON")
    try:
        value = msgspec.json.decode(body)
    except RecursionError as deep:
        raise BadJson(f"JSON nested deeper than {MAX_DEPTH}") from deep
    except UnicodeDecodeError as wrong:
        raise BadJson("JSON with invalid UTF-8") from wrong
    except (msgspec.MsgspecError, ValueError, OverflowError) as err:
        raise BadJson("not JSON") from err
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Raise BadJson above MAX_DEPTH. Iterative: recursion could overflow the stack."""
    level: list[Collection[Any]] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child.values() if type(child) is dict else child
            for members in level
            for child in members
            if type(child) is list or type(child) is dict
        ]
        if not level:
            return
    raise BadJson(f"JSON nested deeper than {MAX_DEPTH}")
