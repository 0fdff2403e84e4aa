"""Text from outside, made safe to print: bounded in length, on one line, without control characters. Pure.

`printable` is for text, `shown` for any value that an error message quotes. `repr` is not used on containers: what a peer
sends can make it recurse and allocate without limit. Every rejection, log line and error that quotes an outside value uses one
of the two.
"""

import re
from traceback import extract_tb

MAX_TEXT = 300
_MAX_INT = 1 << 64

_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# C0, DEL and C1 controls; bidirectional and invisible characters; lone surrogates; tag characters
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """The text on one line, cut to `limit` characters.

    A line break becomes a space. Every other control, direction or invisible character becomes U+FFFD, so that a reader sees
    that something was removed.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    cut = text[: limit + 1]
    cleaned = _UNPRINTABLE.sub("\ufffd", _BREAKS.sub(" ", cut))
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def is_printable(text: str) -> bool:
    """Whether `printable` would change nothing but the length."""
    return _BREAKS.search(text) is None and _UNPRINTABLE.search(text) is None


def shown(value: object, most: int = 200) -> str:
    """A scalar as Python writes it, cut to about `most` characters; of any other value only its type."""
    if type(value) is str:
        return repr(value[:most])[: most + 2]  # escapes make it longer
    if type(value) is bytes:
        return f"{len(value)} bytes"
    if value is None or type(value) is bool or type(value) is float:
        return str(value)
    if type(value) is int:
        return str(value) if -_MAX_INT < value < _MAX_INT else "an integer of more than 64 bits"
    return f"a value of type {type(value).__name__}"


def failure(err: BaseException) -> str:
    """Type and line of an exception that an outside value caused. Not its message, which may quote that value."""
    frames = extract_tb(err.__traceback__, limit=-1)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(err).__name__}{where}"
