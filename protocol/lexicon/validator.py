"""Lexicon definitions → check functions: a JSON value → None if it is valid, else the reason. Never raises, whatever the value.

The rules are those of the published validator (`@atproto/lexicon`): additional properties are allowed; a union is open unless
its definition closes it; string lengths count UTF-8 bytes or graphemes; blobs may have the form of 2022 ({cid, mimeType}), and
their size and type are not checked. A CID is {"$link": …} and bytes are {"$bytes": …}, as `record_json` writes them. A reason is a
path and a text: `/embed/images/0: lacks alt`.
"""

from collections.abc import Callable
from typing import Any

import regex

from protocol.lexicon.formats import FORMATS, is_cid

Definition = dict[str, Any]
Check = Callable[[Any], str | None]

_graphemes = regex.compile(r"\X")
_TYPED_BLOB = {"$type", "ref", "mimeType", "size"}
_OLD_BLOB = {"cid", "mimeType"}
_ABSENT: Any = object()
_MAX_UTF8 = 4  # bytes per code point


class Lexicon:
    """Compiles checks of `definitions` on first use (see `appview.lexicons`)."""

    def __init__(self, definitions: dict[str, Definition]) -> None:
        self._definitions = definitions
        self._checks: dict[str, Check] = {}

    def check(self, ref: str) -> Check:
        """The check of a definition. Raises KeyError for an unknown one."""
        found = self._checks.get(ref)
        if found is None:

            def deferred(value: Any) -> str | None:  # for a definition that refers to itself
                return self._checks[ref](value)

            self._checks[ref] = deferred
            found = self._checks[ref] = self._compile(self._definitions[ref])
        return found

    def _compile(self, definition: Definition) -> Check:
        match definition["type"]:
            case "object":
                return self._object(definition)
            case "array":
                return self._array(definition)
            case "union":
                return self._union(definition)
            case "ref":
                return self.check(definition["ref"])
            case "string":
                return _string(definition)
            case "integer":
                return _integer(definition)
            case kind:
                return _PLAIN[kind]

    def _object(self, definition: Definition) -> Check:
        required = set(definition.get("required", ()))
        nullable = set(definition.get("nullable", ()))
        fields = [
            (key, self._compile(of), key in required and "default" not in of, key in nullable)
            for key, of in definition.get("properties", {}).items()
        ]

        def check(value: Any) -> str | None:
            if type(value) is not dict:
                return ": is not an object"
            for key, inner, needed, may_be_null in fields:
                item = value.get(key, _ABSENT)
                if item is _ABSENT:
                    if needed:
                        return f": lacks {key}"
                elif (item is not None or not may_be_null) and (why := inner(item)) is not None:
                    return f"/{key}{why}"
            return None

        return check

    def _array(self, definition: Definition) -> Check:
        inner = self._compile(definition["items"])
        least, most = definition.get("minLength", 0), definition.get("maxLength", float("inf"))

        def check(value: Any) -> str | None:
            if type(value) is not list:
                return ": is not an array"
            if not least <= len(value) <= most:
                return f": has {len(value)} items"
            for at, item in enumerate(value):
                if (why := inner(item)) is not None:
                    return f"/{at}{why}"
            return None

        return check

    def _union(self, definition: Definition) -> Check:
        members: dict[str, Check] = {}
        for ref in definition["refs"]:
            members[ref] = self.check(ref)
            if "#" not in ref:
                members[f"{ref}#main"] = members[ref]
        closed = definition.get("closed", False)

        def check(value: Any) -> str | None:
            kind = value.get("$type") if type(value) is dict else None
            if type(kind) is not str:
                return ": is not an object with a $type"
            inner = members.get(kind)
            if inner is not None:
                return inner(value)
            return ": has an unknown $type" if closed else None

        return check


def _string(definition: Definition) -> Check:
    if set(definition) == {"type", "format"}:  # most strings in records
        return FORMATS[definition["format"]]
    form = FORMATS[definition["format"]] if "format" in definition else None
    allowed = set(definition.get("enum", ())) | ({definition["const"]} if "const" in definition else set())
    bytes_least, bytes_most = definition.get("minLength", 0), definition.get("maxLength", float("inf"))
    least, most = definition.get("minGraphemes", 0), definition.get("maxGraphemes", float("inf"))

    def check(value: Any) -> str | None:
        if type(value) is not str:
            return ": is not a string"
        if allowed and value not in allowed:
            return ": is not one of the allowed values"
        length = len(value)
        if length * _MAX_UTF8 > bytes_most or bytes_least:
            size = len(value.encode())
            if not bytes_least <= size <= bytes_most:
                return f": has {size} bytes"
        # a grapheme has at least one code point, so short strings need not be counted
        if (length > most or least) and not least <= (count := len(_graphemes.findall(value))) <= most:
            return f": has {count} graphemes"
        return form(value) if form is not None else None

    return check


def _integer(definition: Definition) -> Check:
    least, most = definition.get("minimum", float("-inf")), definition.get("maximum", float("inf"))
    allowed = set(definition.get("enum", ())) | ({definition["const"]} if "const" in definition else set())

    def check(value: Any) -> str | None:
        # JavaScript does not distinguish 1 and 1.0
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            return ": is not an integer"
        if not least <= value <= most or (allowed and value not in allowed):
            return f": {value} is out of range"
        return None

    return check


def _boolean(value: Any) -> str | None:
    return None if type(value) is bool else ": is not a boolean"


def _bytes(value: Any) -> str | None:
    if type(value) is dict and len(value) == 1 and type(value.get("$bytes")) is str:
        return None
    return ": is not a byte string"


def _link(value: Any) -> str | None:
    if type(value) is dict and len(value) == 1 and type(value.get("$link")) is str and is_cid(value["$link"]):
        return None
    return ": is not a link"


def _blob(value: Any) -> str | None:
    if type(value) is dict and type(value.get("mimeType")) is str:
        if value.get("$type") == "blob":
            if value.keys() == _TYPED_BLOB and type(value["size"]) in {int, float} and _link(value["ref"]) is None:
                return None
        elif value.keys() == _OLD_BLOB and type(value["cid"]) is str and is_cid(value["cid"]):
            return None
    return ": is not a blob"


def _unknown(value: Any) -> str | None:
    return None if type(value) in {dict, list} else ": is not an object"


_PLAIN: dict[str, Check] = {
    "boolean": _boolean,
    "bytes": _bytes,
    "cid-link": _link,
    "blob": _blob,
    "unknown": _unknown,
}
