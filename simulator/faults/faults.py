"""Faults that can be switched on, and a count of how often each fired.

A fault has a name and parameters. Common parameters: `p` (probability, default 1), `every` (fire at each n-th chance instead),
`times` (maximum number of times, 0 = no limit), `host` (index of one server), `hosts` (indexes of several) and `did`. The
getRepo faults have `per_did`: the maximum number of getRepo faults for one account (default 2, 0 = no limit), so that a mirror
with a limited number of attempts can finish.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulator.repo.odd_leaves import KINDS as ODD_LEAVES

Parameters = dict[str, Any]

NAMES: dict[str, str] = {
    "relay_list_500": "a relay's listRepos answers 500 if the page contains accounts number `from` to `to` (the first account is 1)",
    "relay_list_429": "a relay's listRepos and listReposByCollection answer 429 to pages that start at account `from` (default 0, the first) or later; retry_after (seconds, default 1)",
    "relay_empty_head": "a relay's listRepos returns a row with an empty rev and head",
    "pds_list_500": "a PDS's listRepos answers 500 if the page contains accounts number `from` to `to` of that host",
    "list_malformed": "listRepos of a relay or PDS returns a malformed page; kind = long_cursor, invalid_utf8, null, huge, deep, escapes or no_json (default: each in turn)",
    "list_cycle": "listRepos of a relay or PDS returns cursors that form a cycle",
    "list_short": "a relay's listRepos returns at most `most` repos per page (default 20), whatever the limit argument is",
    "hosts_malformed": "a relay's listHosts returns a malformed page; kind as for list_malformed",
    "hosts_cycle": "a relay's listHosts returns cursors that form a cycle",
    "list_slow": "listRepos answers `seconds` (default 0.1) late; a relay with what was true at the request",
    "pds_429": "getRepo answers 429; retry_after (seconds, default 1, null = no header); html = true for an HTML body",
    "pds_500": "getRepo answers 500",
    "pds_truncate": "getRepo returns a truncated CAR; mode = mid (cut inside a block) or boundary (cut between blocks, the default)",
    "pds_html": "getRepo returns an HTML page with status 200",
    "pds_hang": "getRepo sends nothing for `seconds` (default 3600), then answers 503",
    "pds_trickle": "getRepo sends `chunk` bytes (default 100) every `interval` seconds (default 0.1)",
    "pds_slow": "getRepo answers after `seconds` (default 1); not limited by per_did",
    "pds_stale": "getRepo returns an earlier head of the repository, if there is one",
    "pds_wrong_did": "getRepo returns the repository of another account",
    "pds_tamper": "getRepo returns a CAR with one byte of a record block changed",
    "pds_bad_sig": "getRepo returns a commit with an invalid signature",
    "pds_escapes": "getRepo answers 500 with terminal escapes and line breaks in the error fields",
    "repo_redirect": "getRepo redirects to the PDS with index `to` (default 0)",
    **ODD_LEAVES,
    "drop": "a relay cuts the connection before a frame",
    "garbage": "a relay sends a frame of invalid DAG-CBOR before a frame",
    "unknown_type": "a relay sends a frame of unknown type before a frame",
    "error_frame": "a relay sends an error frame, then closes the connection",
    "hostile": "a relay sends a frame with 996 levels of nesting or a million empty lists before a frame",
    "silence": "a relay's stream sends no frames for `seconds` (default 3600); it still answers pings",
    "lost_commit": "a relay never sends a commit",
    "duplicate": "a relay sends a frame twice",
    "delay": "a relay delays an event until `hold` events (default 20) of other repositories have passed, for at most a second",
    "seq_gap": "a relay's sequence numbers skip `gap` (default 100)",
    "relay_bad_sig": "a relay sends a copy of a commit with an invalid signature before the commit itself",
    "relay_old_account": "after an #account event, a relay repeats the account's previous one with its original time and a new seq",
    "pds_clock_ahead": "the clock of a PDS is `seconds` (default 240) ahead; its #account and #identity events carry that time",
    "plc_500": "the PLC directory answers 500",
    "plc_429": "the PLC directory serves `rate` requests per second (default 0) and answers 429 to the rest; retry_after (seconds, default no header)",
    "plc_plain_404": "the PLC directory answers 404 as plain text; status = 410 for 410",
    "plc_other_did": "the PLC directory returns the document of another DID",
    "plc_slow": "the PLC directory answers after `seconds` (default 2)",
    "did_web_hang": "the host of a did:web account sends nothing for `seconds` (default 3600)",
    "did_web_429": "the host of a did:web account answers 429; retry_after (seconds, default 1)",
    "stream_429": "a relay or labeler rejects a websocket with `status` (default 429); retry_after (seconds, default 1)",
    "dns_servfail": "the DNS server answers SERVFAIL",
    "dns_silent": "the DNS server does not answer",
    "handle_false": "an account claims a handle whose DNS record does not name it",
    "handle_contended": "an account claims the handle of another; in a share `take` of the cases (default 0.5) the DNS record then names the new claimant",
    "label_bad_sig": "a labeler sends an additional label with an invalid signature",
    "label_foreign_src": "a labeler sends an additional label that names another labeler as its source",
    "label_drop": "a labeler cuts the connection before a frame",
    "label_garbage": "a labeler sends a frame of invalid DAG-CBOR before a frame",
    "label_unknown_type": "a labeler sends a frame of unknown type before a frame",
    "label_error_frame": "a labeler sends an error frame, then closes the connection",
    "label_hostile": "a labeler sends a frame with 996 levels of nesting or a million empty lists before a frame",
    "label_giant": "a labeler sends an additional, validly signed label whose URI (8,000 characters) is too large for a database index",
    "label_silence": "a labeler's stream sends no frames for `seconds` (default 3600); it still answers pings",
}

_NO_REPO_FAULTS = {"pds_list_500", "pds_slow", "pds_clock_ahead"}
_REPO_FAULTS = frozenset(name for name in NAMES if name.startswith("pds_")) - _NO_REPO_FAULTS
_STREAM = ("drop", "garbage", "hostile", "unknown_type", "error_frame", "silence")
STREAM_FAULTS = frozenset({*_STREAM, *(f"label_{name}" for name in _STREAM)})


class UnknownFaultError(ValueError):
    """No fault has this name."""


@dataclass(slots=True)
class _Switched:
    parameters: Parameters
    rng: random.Random
    chances: int = 0
    fired: int = 0


@dataclass(slots=True)
class Faults:
    """Decides whether a fault fires, and counts. Each fault draws from its own random generator, seeded from `seed`."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    _on: dict[str, _Switched] = field(default_factory=dict)
    _per_did: Counter[str] = field(default_factory=Counter)

    def switch(self, faults: dict[str, Parameters | float | bool | None]) -> None:
        """Switch faults on (parameters, or a probability) or off (None, False, 0). Raises UnknownFaultError."""
        for name, value in faults.items():
            if name not in NAMES:
                raise UnknownFaultError(f"unknown fault {name!r}; known: {', '.join(NAMES)}")
            if value is None or value is False or value == 0:
                self._on.pop(name, None)
                continue
            parameters = {"p": 1.0} | value if isinstance(value, dict) else {"p": float(value)}
            self._on[name] = _Switched(parameters, random.Random(f"{self.seed}/fault/{name}"))

    def clear(self) -> None:
        """Switch every fault off. The counts stay."""
        self._on.clear()

    def any_on(self, names: frozenset[str]) -> bool:
        """Whether one of these faults is on."""
        return not names.isdisjoint(self._on)

    def active(self) -> dict[str, Parameters]:
        """The faults that are on, with their parameters."""
        return {name: switched.parameters for name, switched in self._on.items()}

    def parameters(self, name: str) -> Parameters | None:
        """The parameters of a fault, without firing it; None if it is off."""
        switched = self._on.get(name)
        return switched.parameters if switched else None

    def fire(self, name: str, *, host: int | None = None, did: str | None = None) -> Parameters | None:
        """Take one chance to fire. Returns the fault's parameters if it fires, else None."""
        switched = self._on.get(name)
        if switched is None:
            return None
        wanted = switched.parameters
        if wanted.get("host", host) != host or wanted.get("did", did) != did:
            return None
        if "hosts" in wanted and host not in wanted["hosts"]:
            return None
        if wanted.get("times") and switched.fired >= wanted["times"]:
            return None
        if name in _REPO_FAULTS and did is not None:
            limit = wanted.get("per_did", 2)
            if limit and self._per_did[did] >= limit:
                return None
        switched.chances += 1
        if "every" in wanted:
            hit = switched.chances % int(wanted["every"]) == 0
        else:
            hit = switched.rng.random() < wanted.get("p", 1.0)
        if not hit:
            return None
        switched.fired += 1
        self.counts[name] += 1
        if name in _REPO_FAULTS and did is not None:
            self._per_did[did] += 1
        return wanted

    def undo(self, name: str) -> None:
        """Uncount a fault that fired but had nothing to act on."""
        self.counts[name] -= 1
        self._on[name].fired -= 1
