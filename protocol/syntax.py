"""Identifier syntax of the AT Protocol: DID, handle, NSID, record key, TID, repo path, AT-URI.

Lengths are in characters; all alphabets are ASCII. Never raises on wire input, except where stated.
Source: the specification pages did, handle, nsid, record-key, tid and at-uri-scheme.
"""

import re
from functools import lru_cache
from typing import Final

MAX_DID: Final = 2048
MAX_HANDLE: Final = 253
MAX_NSID: Final = 317

# fullmatch, because `$` would accept a trailing newline
_did = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]").fullmatch
_label = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_nsid = re.compile(
    rf"[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?(?:\.{_label})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}"
).fullmatch
_handle = re.compile(rf"(?:{_label}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?").fullmatch
_rkey = re.compile(r"[a-zA-Z0-9._:~-]{1,512}").fullmatch
_tid = re.compile(r"[2-7a-j][2-7a-z]{12}").fullmatch

_SORTABLE: Final = "234567abcdefghijklmnopqrstuvwxyz"
_TO_BASE32HEX: Final = str.maketrans(_SORTABLE, "0123456789abcdefghijklmnopqrstuv")
_CLOCK_BITS: Final = 10
_TID_BITS: Final = 63  # the top bit stays zero, so that a TID fits a signed 64-bit integer


def is_did(text: str) -> bool:
    return len(text) <= MAX_DID and _did(text) is not None


def is_handle(text: str) -> bool:
    """A domain name of at least two labels. `handle.invalid` is one too."""
    return len(text) <= MAX_HANDLE and _handle(text) is not None


@lru_cache(maxsize=4096)  # a network has few collections
def is_nsid(text: str) -> bool:
    """At least three segments: reversed domain and a name."""
    return len(text) <= MAX_NSID and _nsid(text) is not None


def is_rkey(text: str) -> bool:
    """1 to 512 characters of the record-key alphabet, never "." or ".."."""
    return _rkey(text) is not None and text != "." and text != ".."  # noqa: PLR1714 (a tuple costs a hash on the hot path)


def is_tid(text: str) -> bool:
    return _tid(text) is not None


def tid_number(tid: str) -> int:
    """A TID as a signed 64-bit integer; in the order of the texts, as long as the highest bit is zero. Raises ValueError."""
    if _tid(tid) is None:
        raise ValueError(f"not a TID: {tid!r}")
    value = int(tid.translate(_TO_BASE32HEX), 32)
    return value if not value >> _TID_BITS else value - (2 << _TID_BITS)


def tid_micros(tid: str) -> int:
    """Microseconds since 1970 of a TID. Raises ValueError if it is not a TID."""
    if _tid(tid) is None:
        raise ValueError(f"not a TID: {tid!r}")
    return int(tid.translate(_TO_BASE32HEX), 32) >> _CLOCK_BITS


FUTURE_MICROS: Final = 300 * 1_000_000
"""How far a rev may be ahead of our clock, in microseconds. A later one is refused."""


def tid_from_micros(micros: int, clock: int = 0) -> str:
    """The TID of a time (microseconds since 1970, below 2**53) and a clock id (below 1024). Raises ValueError outside these."""
    if not 0 <= micros < 1 << (_TID_BITS - _CLOCK_BITS) or not 0 <= clock < 1 << _CLOCK_BITS:
        raise ValueError(f"out of a TID's range: {micros} µs, clock {clock}")
    value = micros << _CLOCK_BITS | clock
    return "".join([_SORTABLE[value >> shift & 31] for shift in range(60, -1, -5)])


def split_path(path: str) -> tuple[str, str] | None:
    """(collection, rkey) of a repo path with valid syntax, else None."""
    collection, _, rkey = path.partition("/")
    if is_rkey(rkey) and is_nsid(collection):
        return collection, rkey
    return None
