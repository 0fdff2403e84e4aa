"""Handle verification: the claim of a DID document and the answer of the handle's domain → HandleVerdict.

A domain names its DID in a DNS TXT record of `_atproto.<handle>` or at `https://<handle>/.well-known/atproto-did`; DNS has
priority. A handle is verified if document and domain name each other. Without an answer from the directory or DNS the previous
result stays; without one from the web host, only for a time (`HandleStatus`). Source: the specification page `handle`. Pure;
never raises on wire input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from protocol.syntax import is_did

MAX_WELL_KNOWN = 2048
TXT_PREFIX = "did="
NO_HANDLE = "handle.invalid"
_NEVER = frozenset({"alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion"})
"""Top-level domains whose names cannot be owned. `test` is for private networks."""


class DomainResult(StrEnum):
    """The result of querying a domain. `DNS_SILENT`: its DNS did not answer; `WEB_SILENT`: only its web host did not."""

    FOUND = "found"
    NOTHING = "nothing"
    AMBIGUOUS = "ambiguous"
    DNS_SILENT = "dns_silent"
    WEB_SILENT = "web_silent"


@dataclass(frozen=True, slots=True)
class DomainAnswer:
    """The answer of DNS or of the web host. `did`: if found; `detail`: why not."""

    result: DomainResult
    did: str | None = None
    detail: str = ""


class HandleStatus(StrEnum):
    """The status after a check. The three SILENT ones keep a previous VERIFIED, WEB_SILENT for two recheck intervals only."""

    VERIFIED = "verified"
    NO_HANDLE = "no_handle"
    NO_IDENTITY = "no_identity"
    NOT_RESOLVED = "not_resolved"
    AMBIGUOUS = "ambiguous"
    ELSEWHERE = "elsewhere"
    DNS_SILENT = "dns_silent"
    WEB_SILENT = "web_silent"
    DIRECTORY_SILENT = "directory_silent"


@dataclass(frozen=True, slots=True)
class HandleVerdict:
    """The result of a check. `owner`: the DID that the domain names, if it is another one."""

    status: HandleStatus
    owner: str | None = None
    detail: str = ""


def is_resolvable(handle: str, *, own_network: bool) -> bool:
    """Whether the domain may be queried. `own_network`: `.test` is allowed too."""
    top = handle.rpartition(".")[2].lower()
    return top not in _NEVER and (own_network or top != "test")


def from_txt(records: Sequence[str]) -> DomainAnswer:
    """Read the TXT records of `_atproto.<handle>`. Several different DIDs are AMBIGUOUS."""
    dids = {text.removeprefix(TXT_PREFIX) for text in records if text.startswith(TXT_PREFIX)}
    valid = sorted(did for did in dids if is_did(did))
    if len(valid) > 1:
        return DomainAnswer(DomainResult.AMBIGUOUS, detail=f"DNS names {len(valid)} DIDs")
    if not valid:
        return DomainAnswer(DomainResult.NOTHING, detail="DNS has no record of a DID")
    return DomainAnswer(DomainResult.FOUND, valid[0])


def from_well_known(status: int, body: bytes) -> DomainAnswer:
    """Read the answer of `/.well-known/atproto-did`: a DID, with white space around it at most."""
    if status == 429 or status >= 500:
        return DomainAnswer(DomainResult.WEB_SILENT, detail=f"its web host answered {status}")
    if status != 200 or len(body) > MAX_WELL_KNOWN:
        return DomainAnswer(DomainResult.NOTHING, detail=f"its web host answered {status}")
    did = body.decode("utf-8", "replace").strip()
    return (
        DomainAnswer(DomainResult.FOUND, did)
        if is_did(did)
        else DomainAnswer(DomainResult.NOTHING, detail="its web host names no DID")
    )


def joined(dns: DomainAnswer, web: DomainAnswer | None) -> DomainAnswer:
    """Combine both answers; DNS has priority. `web`: None if it was not queried because DNS had an answer."""
    if dns.result in (DomainResult.FOUND, DomainResult.AMBIGUOUS) or web is None:
        return dns
    if web.result is DomainResult.FOUND:
        return web
    if dns.result is DomainResult.DNS_SILENT:
        return dns
    if web.result is DomainResult.WEB_SILENT:
        return web
    return DomainAnswer(DomainResult.NOTHING, detail=f"{dns.detail}; {web.detail}")


def next_check(status: HandleStatus, failures: int, did: str, *, recheck: float, retry: float) -> float:
    """Seconds until the next check. `failures`: checks in a row that verified nothing, before this one.

    After VERIFIED: `recheck`. After a failed check: `retry`, doubled with each further one, at most `recheck`. Without an answer: the
    same, from a twelfth of `retry`. Jitter shortens each wait by up to a quarter.
    """
    if status is HandleStatus.VERIFIED:
        full = recheck
    elif status in (HandleStatus.DNS_SILENT, HandleStatus.WEB_SILENT, HandleStatus.DIRECTORY_SILENT):
        full = min(recheck, retry / 12 * 2 ** min(failures, 10))
    else:
        full = min(recheck, retry * 2 ** min(failures, 10))
    return full * (1.0 - 0.25 * int.from_bytes(sha256(did.encode()).digest()[:4]) / 2**32)


def judge(did: str, handle: str | None, answer: DomainAnswer | None) -> HandleVerdict:
    """Compare the claimed handle with its domain's answer (None if there was no name to query)."""
    if handle is None or handle == NO_HANDLE or answer is None:
        return HandleVerdict(HandleStatus.NO_HANDLE)
    match answer.result:
        case DomainResult.DNS_SILENT:
            return HandleVerdict(HandleStatus.DNS_SILENT, detail=answer.detail)
        case DomainResult.WEB_SILENT:
            return HandleVerdict(HandleStatus.WEB_SILENT, detail=answer.detail)
        case DomainResult.AMBIGUOUS:
            return HandleVerdict(HandleStatus.AMBIGUOUS, detail=answer.detail)
        case DomainResult.NOTHING:
            return HandleVerdict(HandleStatus.NOT_RESOLVED, detail=answer.detail)
        case DomainResult.FOUND:
            if answer.did == did:
                return HandleVerdict(HandleStatus.VERIFIED)
            return HandleVerdict(HandleStatus.ELSEWHERE, answer.did, f"the domain names {answer.did}")
