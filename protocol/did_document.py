"""DID documents: JSON object → ResolvedIdentity | IdentityRejected; DID → the URL of its document. Never raises on wire input.

Missing and malformed parts of a document become None, because an account without a PDS or key still exists. The handle is only
a claim of the account until its domain confirms it (`protocol.handle`).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from protocol.encoding.safe_text import shown
from protocol.keys import method_did_key
from protocol.syntax import MAX_HANDLE, is_did, is_handle

_MAX_ENTRIES = 64  # that are read of a list in a document
_MAX_ENDPOINT = 1024
_host = re.compile(
    r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?)*"
).fullmatch
_port = re.compile(r"[0-9]{1,5}").fullmatch


class IdentityReason(StrEnum):
    NOT_AN_OBJECT = "not_an_object"
    DID_MISMATCH = "did_mismatch"


@dataclass(frozen=True, slots=True)
class ResolvedIdentity:
    """Keys are did:key strings; `pds` and `labeler` are origins, `https://host[:port]`; the handle is in lower case."""

    did: str
    pds: str | None
    handle: str | None
    signing_key: str | None
    label_key: str | None
    labeler: str | None


@dataclass(frozen=True, slots=True)
class IdentityRejected:
    reason: IdentityReason
    detail: str


def parse_document(did: str, doc: object) -> ResolvedIdentity | IdentityRejected:
    """Read a DID document. Its `id` must be the DID that was requested."""
    if not isinstance(doc, dict):
        return IdentityRejected(IdentityReason.NOT_AN_OBJECT, type(doc).__name__)
    if doc.get("id") != did:
        return IdentityRejected(IdentityReason.DID_MISMATCH, f"requested {did}, got {shown(doc.get('id'))}")
    return ResolvedIdentity(
        did=did,
        pds=_service(doc, did, "#atproto_pds", "AtprotoPersonalDataServer"),
        handle=_handle(doc),
        signing_key=_key(doc, did, "#atproto"),
        label_key=_key(doc, did, "#atproto_label"),
        labeler=_service(doc, did, "#atproto_labeler", "AtprotoLabeler"),
    )


def document_url(did: str, plc_url: str) -> str | None:
    """The URL of a DID's document; None for a method or form that the network does not use.

    A did:web names a host, with a port as `%3A`, and no path. Only localhost is requested without TLS. The SSRF guard of the
    connectors decides whether the host may be requested at all.
    """
    if not is_did(did):
        return None
    if did.startswith("did:plc:"):
        return f"{plc_url.rstrip('/')}/{quote(did, safe=':')}"
    if did.startswith("did:web:"):
        host = unquote(did[8:])
        if ":" in did[8:] or not is_host(host):
            return None
        scheme = "http" if host.partition(":")[0] == "localhost" else "https"
        return f"{scheme}://{host}/.well-known/did.json"
    return None


def _objects(doc: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = doc.get(field)
    return [item for item in value[:_MAX_ENTRIES] if isinstance(item, dict)] if isinstance(value, list) else []


def _key(doc: dict[str, Any], did: str, fragment: str) -> str | None:
    """The key of the method with this id."""
    for method in _objects(doc, "verificationMethod"):
        if method.get("id") in (fragment, did + fragment):
            kind, key = method.get("type"), method.get("publicKeyMultibase")
            return method_did_key(kind, key) if isinstance(kind, str) and isinstance(key, str) else None
    return None


def _service(doc: dict[str, Any], did: str, fragment: str, kind: str) -> str | None:
    for service in _objects(doc, "service"):
        if service.get("id") in (fragment, did + fragment) and service.get("type") == kind:
            endpoint = service.get("serviceEndpoint")
            return _origin(endpoint) if isinstance(endpoint, str) else None
    return None


def _handle(doc: dict[str, Any]) -> str | None:
    names = doc.get("alsoKnownAs")
    for name in names[:_MAX_ENTRIES] if isinstance(names, list) else []:
        if isinstance(name, str) and name.startswith("at://") and is_handle(name[5:]):
            return name[5:].lower()
    return None


def _origin(endpoint: str) -> str | None:
    """Scheme, host and port of a URL without userinfo, path, query and fragment; else None."""
    if len(endpoint) > _MAX_ENDPOINT:
        return None
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        return None
    if url.scheme not in ("http", "https") or url.username is not None or url.password is not None:
        return None
    if url.path not in ("", "/") or url.query or url.fragment or not url.hostname or not is_host(url.hostname):
        return None
    return f"{url.scheme}://{url.hostname}{f':{port}' if port is not None else ''}"


def is_host(host: str) -> bool:
    """Whether this is a host name or a dotted IPv4 address, with or without a port. One label is enough, for private networks.

    Other notations of addresses that resolvers accept (`0x7f.1`, `2130706433`) are refused.
    """
    name, colon, port = host.partition(":")
    if colon and not (_port(port) and 0 < int(port) < 65536):
        return False
    if len(name) > MAX_HANDLE or _host(name) is None:
        return False
    return _is_ipv4(name) or name.rpartition(".")[2][0].isalpha()


def _is_ipv4(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 4 and all(part.isdigit() and len(part) <= 3 and int(part) < 256 for part in parts)
