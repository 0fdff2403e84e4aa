"""Text from outside → text that is safe in a terminal, a log line and a text column, of bounded length. Pure."""

import re

MAX_TEXT = 300

_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# C0, DEL and C1 controls; marks that change the direction of text, or are invisible; lone surrogates; tag characters
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """The text on one line, without control, direction and invisible characters, cut to `limit` characters.

    Line breaks become spaces and every other such character U+FFFD: a reader sees that something was removed.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    cut = text[: limit + 1]
    shown = _UNPRINTABLE.sub("\ufffd", _BREAKS.sub(" ", cut))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def is_printable(text: str) -> bool:
    """Whether `printable` would only shorten it."""
    return _BREAKS.search(text) is None and _UNPRINTABLE.search(text) is None
