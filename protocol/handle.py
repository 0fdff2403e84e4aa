"""Handles, both ways: what a DID document claims, what the handle's domain says → Verdict. Pure; never raises on wire input.

A domain speaks by a DNS TXT record of `_atproto.<handle>` and by `https://<handle>/.well-known/atproto-did`; DNS goes first.
A handle is verified while document and domain name each other. Silence is no verdict: a directory, a DNS server or a web
host that does not answer leaves everything as it was. Source: the specification page `handle`.
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
"""Top-level domains whose names nobody can own; `test` is for own networks."""


class Answer(StrEnum):
    """How a domain answered. `SILENT`: its DNS did not, `HOST_SILENT`: only its web host did not."""

    FOUND = "found"
    NOTHING = "nothing"
    AMBIGUOUS = "ambiguous"
    SILENT = "silent"
    HOST_SILENT = "host_silent"


@dataclass(frozen=True, slots=True)
class Said:
    """What one of the two ways said; `did` where it was found, `detail` why not."""

    answer: Answer
    did: str | None = None
    detail: str = ""


class Standing(StrEnum):
    """How a handle stands after a check. The silent ones are no verdict."""

    VERIFIED = "verified"
    NO_HANDLE = "no_handle"
    NO_IDENTITY = "no_identity"
    NOT_RESOLVED = "not_resolved"
    AMBIGUOUS = "ambiguous"
    ELSEWHERE = "elsewhere"
    HOST_SILENT = "host_silent"
    SILENT = "silent"
    DIRECTORY_SILENT = "directory_silent"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`owner`: the DID that the domain names, where that is another one."""

    standing: Standing
    owner: str | None = None
    detail: str = ""


def is_resolvable(handle: str, *, own_network: bool) -> bool:
    """May the domain be asked at all? `own_network`: `.test` is a name too."""
    top = handle.rpartition(".")[2].lower()
    return top not in _NEVER and (own_network or top != "test")


def from_txt(records: Sequence[str]) -> Said:
    """TXT records of `_atproto.<handle>`; several different DIDs are no answer."""
    dids = {text.removeprefix(TXT_PREFIX) for text in records if text.startswith(TXT_PREFIX)}
    valid = sorted(did for did in dids if is_did(did))
    if len(valid) > 1:
        return Said(Answer.AMBIGUOUS, detail=f"DNS names {len(valid)} DIDs")
    if not valid:
        return Said(Answer.NOTHING, detail="DNS has no record of a DID")
    return Said(Answer.FOUND, valid[0])


def from_well_known(status: int, body: bytes) -> Said:
    """The answer of `/.well-known/atproto-did`: a DID, and white space at most."""
    if status == 429 or status >= 500:
        return Said(Answer.HOST_SILENT, detail=f"its web host answered {status}")
    if status != 200 or len(body) > MAX_WELL_KNOWN:
        return Said(Answer.NOTHING, detail=f"its web host answered {status}")
    did = body.decode("utf-8", "replace").strip()
    return Said(Answer.FOUND, did) if is_did(did) else Said(Answer.NOTHING, detail="its web host names no DID")


def joined(dns: Said, web: Said | None) -> Said:
    """Both ways as one. DNS goes first; `web` is None where it was not asked because DNS had decided."""
    if dns.answer in (Answer.FOUND, Answer.AMBIGUOUS) or web is None:
        return dns
    if web.answer is Answer.FOUND:
        return web
    if dns.answer is Answer.SILENT:
        return dns
    if web.answer is Answer.HOST_SILENT:
        return web
    return Said(Answer.NOTHING, detail=f"{dns.detail}; {web.detail}")


def next_check(standing: Standing, failures: int, did: str, *, recheck: float, retry: float) -> float:
    """Seconds until the next check. `failures`: checks in a row that verified nothing, before this one.

    Silence is asked again soon; a handle that is not verified at growing intervals; spread by up to a quarter.
    """
    if standing is Standing.VERIFIED:
        full = recheck
    elif standing in (Standing.SILENT, Standing.HOST_SILENT, Standing.DIRECTORY_SILENT):
        full = min(recheck, retry / 12 * 2 ** min(failures, 10))
    else:
        full = min(recheck, retry * 2 ** min(failures, 10))
    return full * (1.0 - 0.25 * int.from_bytes(sha256(did.encode()).digest()[:4]) / 2**32)


def judge(did: str, handle: str | None, said: Said | None) -> Verdict:
    """Does the domain of the claimed handle name the DID that claims it? `said`: None where there was nothing to ask."""
    if handle is None or handle == NO_HANDLE or said is None:
        return Verdict(Standing.NO_HANDLE)
    match said.answer:
        case Answer.SILENT:
            return Verdict(Standing.SILENT, detail=said.detail)
        case Answer.HOST_SILENT:
            return Verdict(Standing.HOST_SILENT, detail=said.detail)
        case Answer.AMBIGUOUS:
            return Verdict(Standing.AMBIGUOUS, detail=said.detail)
        case Answer.NOTHING:
            return Verdict(Standing.NOT_RESOLVED, detail=said.detail)
        case Answer.FOUND:
            if said.did == did:
                return Verdict(Standing.VERIFIED)
            return Verdict(Standing.ELSEWHERE, said.did, f"the domain names {said.did}")
