"""String formats of lexicons: any JSON value → None if it has the format, else the reason. Never raises.

The rules are those of the published validator: an AT-URI may have a handle as authority, a query, a JSON pointer as fragment and
a slash at the end; a datetime may lack its zone (`protocol.lexicon.datetimes`).
"""

import re
from collections.abc import Callable
from typing import Any

import libipld

from protocol.lexicon.datetimes import is_datetime
from protocol.syntax import is_did, is_handle, is_nsid, is_rkey, is_tid

MAX_AT_URI = 8192

# fast check of the usual form: DID, collection, key; `_is_other_at_uri` checks all others
_record_uri = re.compile(
    r"at://did:[a-z]{1,20}:[a-zA-Z0-9._:-]{1,255}(?<!:)/[a-zA-Z]{1,63}(?:\.[a-zA-Z0-9]{1,63}){1,7}\.[a-zA-Z][a-zA-Z0-9]{0,62}/[a-zA-Z0-9_~.:-]+"
).fullmatch
_any_uri = re.compile(
    r"at://(?P<authority>[^/?#\s]+)(?:/(?P<collection>[^/?#\s]+)(?:/[^/?#\s]+)?)?/?(?:\?[^#\s]*)?(?:#(?P<pointer>\S*))?"
).fullmatch
_uri_alphabet = re.compile(r"[a-zA-Z0-9._~:@!$&'()*+,;=%/\\\[\]#?-]*").fullmatch
_pointer = re.compile(r"/[a-zA-Z0-9._~:@!$&')(*+,;=%\[\]/-]*").fullmatch
_uri = re.compile(r"[a-zA-Z0-9_]+:(?://)?[^\s/]\S*").fullmatch
# base32 of version 1, dag-cbor or raw, SHA-256, 32 bytes: the last letter carries three bits of them
_our_cid = re.compile(r"baf(?:y|k)rei[a-z2-7]{51}[aeimquy4]").fullmatch
_base32 = re.compile(r"b[a-z2-7]+").fullmatch
_base58 = re.compile(r"[1-9A-HJ-NP-Za-km-z]+").fullmatch
_language = re.compile(
    r"(?:en-GB-oed|i-ami|i-bnn|i-default|i-enochian|i-hak|i-klingon|i-lux|i-mingo|i-navajo|i-pwn|i-tao|i-tay|i-tsu"
    r"|sgn-BE-FR|sgn-BE-NL|sgn-CH-DE|art-lojban|cel-gaulish|no-bok|no-nyn|zh-guoyu|zh-hakka|zh-min|zh-min-nan|zh-xiang"
    r"|(?:[A-Za-z]{2,3}(?:-[A-Za-z]{3}(?:-[A-Za-z]{3}){0,2})?|[A-Za-z]{4,8})(?:-[A-Za-z]{4})?(?:-(?:[A-Za-z]{2}|[0-9]{3}))?"
    r"(?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*(?:-[0-9A-WYZa-wyz](?:-[A-Za-z0-9]{2,8})+)*(?:-x(?:-[A-Za-z0-9]{1,8})+)?"
    r"|x(?:-[A-Za-z0-9]{1,8})+)"
).fullmatch


def at_uri_parts(uri: str) -> tuple[str, str, str]:
    """(authority, collection, rkey) of a valid AT-URI; missing parts are empty."""
    path = uri[5:].partition("#")[0].partition("?")[0]
    authority, _, rest = path.partition("/")
    collection, _, rkey = rest.partition("/")
    return authority, collection, rkey.rstrip("/")


def is_cid(text: str) -> bool:
    """Whether the text is a CID in base32 or base58, of version 0 or 1."""
    return _our_cid(text) is not None or _is_other_cid(text)


def _is_other_cid(text: str) -> bool:
    if text[:2] == "Qm":  # version 0
        return len(text) == 46 and _base58(text) is not None
    if not (_base32(text) or (text[:1] == "z" and _base58(text))):
        return False
    try:
        libipld.decode_cid(text)
    except ValueError:
        return False
    return True


def _at_uri(value: Any) -> str | None:
    if type(value) is str and len(value) <= MAX_AT_URI and (_record_uri(value) or _is_other_at_uri(value)):
        return None
    return ": is not a valid AT-URI"


def _is_other_at_uri(text: str) -> bool:
    match = _any_uri(text)
    if match is None or _uri_alphabet(text) is None:
        return False
    authority, collection, pointer = match["authority"], match["collection"], match["pointer"]
    if not (is_did(authority) or (not authority.startswith("did:") and is_handle(authority))):
        return False
    return (collection is None or is_nsid(collection)) and (pointer is None or _pointer(pointer) is not None)


def _form(name: str, test: Callable[[str], object]) -> Callable[[Any], str | None]:
    why = f": is not a valid {name}"

    def check(value: Any) -> str | None:
        return None if type(value) is str and test(value) else why

    return check


FORMATS: dict[str, Callable[[Any], str | None]] = {
    "at-uri": _at_uri,
    "at-identifier": _form("DID or handle", lambda text: is_did(text) or (text[:4] != "did:" and is_handle(text))),
    "cid": _form("CID", is_cid),
    "datetime": _form("datetime", is_datetime),
    "did": _form("DID", is_did),
    "handle": _form("handle", is_handle),
    "language": _form("language tag", _language),
    "nsid": _form("NSID", is_nsid),
    "record-key": _form("record key", is_rkey),
    "tid": _form("TID", is_tid),
    "uri": _form("URI", _uri),
}
"""Format of a lexicon's string → check function."""
