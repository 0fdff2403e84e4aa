"""Jobs as a state machine: states, the table of transitions, and the identity of a job. Pure.

    pending ──▶ running ──▶ completed            paused               by an operator, until `resume`
                   │  ▲                          paused_quota_limit   until the time that the host named
                   ▼  │                          retry                until a back-off is over
        paused, paused_quota_limit, retry        failed, cancelled    ended; `retry` restarts them at their checkpoint

`sluice.job_may_become` in the database has the same table; a test compares them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from protocol.syntax import is_did, is_nsid
from schemas.job_spec import JobSpec, JobStatus

S = JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    S.PENDING: frozenset({S.RUNNING, S.PAUSED, S.FAILED, S.CANCELLED}),
    S.RUNNING: frozenset({S.PAUSED, S.PAUSED_QUOTA_LIMIT, S.RETRY, S.COMPLETED, S.FAILED, S.CANCELLED}),
    S.PAUSED: frozenset({S.PENDING, S.RUNNING, S.CANCELLED}),
    S.PAUSED_QUOTA_LIMIT: frozenset({S.RUNNING, S.PAUSED, S.CANCELLED}),
    S.RETRY: frozenset({S.RUNNING, S.PAUSED, S.FAILED, S.CANCELLED}),
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset({S.RETRY}),
    S.CANCELLED: frozenset({S.RETRY}),
}
FINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED})
WAITING = frozenset({S.PAUSED_QUOTA_LIMIT, S.RETRY})  # these continue automatically at `next_retry_at`

AHEAD_BATCHES = 10  # unfinished batches that a DID list may have
RATE_MEMORY = 0.7  # share of the old rate in a new one


class SpecRefused(Exception):
    """An invalid specification of a job; the message is one line that names the part and the remedy."""


def sources_of(new: JobStatus) -> list[str]:
    """States that may change to `new`."""
    return sorted(old.value for old, following in TRANSITIONS.items() if new in following)


@dataclass(frozen=True, slots=True)
class JobSource:
    """What a job covers: columns of `sluice.backfill_job`."""

    kind: str  # relay, pds (a permanent listing), hosts, dids, collection
    relay: str | None = None
    hosts: Sequence[str] | None = None
    collection: str | None = None
    first_dids: Sequence[str] | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """A job's unique name, its source, and its list of DIDs (hosts are in the source)."""

    name: str
    source: JobSource
    total: int | None = None
    dids: Sequence[str] = ()


def identify(spec: JobSpec, default_relay: str | None) -> JobIdentity:
    """The identity of the specified job. Order and repetition in lists do not matter. Raises SpecRefused."""
    if spec.source == "dids":
        dids = list(dict.fromkeys(spec.dids))
        wrong = next((did for did in dids if not (is_did(did) and _can_be(did))), None)
        if wrong is not None:
            raise SpecRefused(
                f"dids: {wrong[:100]!r} is not a DID; write did:plc: and 24 of a-z and 2-7, or did:web:HOST"
            )
        mark = _mark(dids)
        name = f"dids {len(dids)} {mark}{' again' if spec.again else ''}"
        return JobIdentity(name, JobSource("dids", first_dids=dids[:5], again=spec.again), len(dids), dids)
    if spec.source == "hosts":
        hosts = sorted({service_url(host, "hosts") for host in spec.hosts})
        more = f" and {len(hosts) - 1} more {_mark(hosts)}" if len(hosts) > 1 else ""
        return JobIdentity(f"hosts {hosts[0]}{more}", JobSource("hosts", hosts=hosts), len(hosts))
    if spec.collection is not None and not is_nsid(spec.collection):
        raise SpecRefused(f"collection: {spec.collection[:100]!r} is not an NSID; write it as app.bsky.actor.profile")
    relay = spec.relay or default_relay
    if relay is None:
        raise SpecRefused("relay: none is given and SLUICE_RELAYS is not set; give the URL of a relay")
    relay = service_url(relay, "relay")
    if spec.source == "relay":
        return JobIdentity(f"list {relay}", JobSource("relay", relay))
    return JobIdentity(
        f"collection {spec.collection} {relay}", JobSource("collection", relay, collection=spec.collection)
    )


def spec_of(source: JobSource, batch_size: int, priority: int) -> JobSpec:
    """A stored source as a specification."""
    asked: dict[str, Any] = {"source": "hosts" if source.kind == "pds" else source.kind}
    return JobSpec(
        **asked,
        relay=source.relay,
        hosts=list(source.hosts or ()),
        collection=source.collection,
        dids=list(source.first_dids or ()),
        again=source.again,
        batch_size=batch_size,
        priority=priority,
    )


def split(spec: JobSpec, size: int) -> list[JobSpec]:
    """Split a range of hosts or DIDs into jobs of `size` each (T4); other sources are one job."""
    field = spec.source
    if field not in ("hosts", "dids"):
        return [spec]
    items: list[str] = list(dict.fromkeys(getattr(spec, field)))
    return [spec.model_copy(update={field: items[at : at + size]}) for at in range(0, len(items), size)]


def service_url(text: str, part: str) -> str:
    """https://HOST of a URL or a bare name. Raises SpecRefused."""
    url = (text if "://" in text else f"https://{text}").rstrip("/")
    try:
        pieces = urlsplit(url)
        fine = pieces.scheme in ("http", "https") and pieces.hostname and pieces.port != 0
    except ValueError:
        fine = False
    if not fine or pieces.path or pieces.query or pieces.fragment or pieces.username or " " in url or not url.isascii():
        raise SpecRefused(f"{part}: {text[:100]!r} is not a server; write https://HOST")
    return url.lower()


def eta(*, rate: float | None, pending: int, listed: int, total: int | None, done: bool) -> float | None:
    """Seconds left; None without a rate, or if the number of repos still to be listed is unknown."""
    if not rate or rate <= 0 or not (done or total is not None):
        return None
    left = pending + (0 if done or total is None else max(0, total - listed))
    return left / rate


def scaled(sample: dict[str, int], total: int) -> dict[str, int]:
    """Scale the counts of a sample to `total`. If the sample is empty, all count as pending."""
    found = sum(sample.values())
    if not found:
        return {"pending": total}
    return {phase: round(total * count / found) for phase, count in sample.items()}


def _can_be(did: str) -> bool:
    """Whether the DID can exist: a did:plc of another form would be requested for ever."""
    return not did.startswith("did:plc:") or _PLC.fullmatch(did) is not None


_PLC = re.compile(r"did:plc:[a-z2-7]{24}")


def _mark(items: Sequence[str]) -> str:
    return sha256("\n".join(sorted(items)).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Target:
    """One list that a flow pages through. `key`: its full upstream URL, with the job's id if it belongs to a job."""

    key: str
    url: str
    relay: bool = False  # it lists repos of other hosts, with numeric cursors
    collection: str | None = None
    job: int | None = None  # it ends with this job; None: a permanent listing
    page_size: int = 1000

    @property
    def host(self) -> str | None:
        """The PDS whose own list this is."""
        return None if self.relay or self.collection else self.url

    @property
    def label(self) -> str:
        """A metric's label; jobs share one."""
        return "job" if self.job else self.url if self.relay else "pds"


def targets(source: JobSource, job: int, batch_size: int) -> list[Target]:
    """The lists of a listing job; empty for a job over DIDs."""
    match source:
        case JobSource(kind="relay", relay=str(relay)):
            return [Target(relay, relay, relay=True, job=job, page_size=batch_size)]
        case JobSource(kind="hosts", hosts=[*hosts]):
            return [Target(f"{host}#job={job}", host, job=job, page_size=batch_size) for host in hosts]
        case JobSource(kind="collection", collection=str(collection), relay=str(relay)):
            return [Target(f"{relay}#job={job}", relay, collection=collection, job=job, page_size=batch_size)]
    return []
