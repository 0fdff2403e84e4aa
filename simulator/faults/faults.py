"""Faults that can be switched on, each counted when it fires.

A fault is a name and parameters. Common to all: `p` (probability, default 1), `every` (fires at each n-th chance instead),
`times` (fires at most so often, 0 = no limit), `host` (index of the server), `hosts` (several), `did`. getRepo faults share `per_did`: how often one
account may be hit by any of them (default 2, 0 = no limit), so that a mirror with a limited number of attempts can finish.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulator.repo.odd_leaves import KINDS as ODD_LEAVES

Parameters = dict[str, Any]

NAMES: dict[str, str] = {
    "relay_list_500": "relay listRepos answers 500 where the page touches uids from..to (1-based; from=1 is the first page)",
    "relay_list_429": "a relay's lists answer 429 from position `from` on; retry_after (seconds, default 1)",
    "relay_empty_head": "relay listRepos gives a row without rev and head",
    "pds_list_500": "PDS listRepos answers 500 where the page touches positions from..to of that host",
    "list_malformed": "listRepos of a relay or a PDS answers no page; kind=long_cursor, invalid_utf8, null, huge, deep, escapes, no_json (all in turn)",
    "list_cycle": "listRepos of a relay or a PDS gives cursors that go round",
    "list_short": "relay listRepos gives at most `most` repos a page (default 20), whatever was asked for",
    "hosts_malformed": "relay listHosts answers no page; kind as of list_malformed",
    "hosts_cycle": "relay listHosts gives cursors that go round",
    "list_slow": "listRepos of a PDS or a relay answers after seconds (default 0.1)",
    "pds_429": "getRepo answers 429; retry_after (seconds, None = no header), html=true for an HTML body",
    "pds_500": "getRepo answers 500",
    "pds_truncate": "getRepo ends early; mode=mid (inside a block) or boundary (between blocks)",
    "pds_html": "getRepo answers an HTML page with status 200",
    "pds_hang": "getRepo accepts and sends nothing; seconds (default 3600)",
    "pds_trickle": "getRepo sends chunk bytes (100) every interval seconds (0.1)",
    "pds_slow": "getRepo answers after seconds (default 1); not limited by per_did",
    "pds_stale": "getRepo serves an earlier head, where there is one",
    "pds_wrong_did": "getRepo serves another account's repository",
    "pds_tamper": "getRepo flips a byte of a record block",
    "pds_bad_sig": "getRepo serves a commit whose signature does not verify",
    "pds_escapes": "getRepo answers 500 with terminal escapes and line breaks in its error",
    "repo_redirect": "getRepo redirects to the PDS with index `to` (default 0)",
    **ODD_LEAVES,
    "drop": "the stream's socket is cut before a frame",
    "garbage": "a frame that is no DAG-CBOR goes out before a frame",
    "unknown_type": "a frame of an unknown type goes out before a frame",
    "error_frame": "an error frame goes out, then the socket closes",
    "hostile": "a frame nested 996 deep, or of a million empty lists, goes out before a frame",
    "silence": "the stream falls silent for seconds (default 3600); pings are answered",
    "lost_commit": "a commit that a relay never sends",
    "duplicate": "a frame that goes out twice",
    "delay": "an event held back while hold (default 20) events of other repositories pass",
    "seq_gap": "a jump of the sequence by gap (default 100)",
    "relay_bad_sig": "a commit whose signature does not verify, beside the true one",
    "relay_old_account": "after an #account a relay repeats the one before it of that account, with its old time and a new seq",
    "pds_clock_ahead": "the clock of a PDS (`host`) is seconds (default 240) ahead: #account and #identity carry its time",
    "plc_500": "the PLC directory answers 500",
    "plc_429": "the PLC directory answers rate requests a second (default 0) and the others with 429; retry_after (seconds, None = no header)",
    "plc_plain_404": "the PLC directory answers 404 in plain text; status=410 for 410",
    "plc_other_did": "the PLC directory answers with another DID's document",
    "plc_slow": "the PLC directory answers after seconds (default 2)",
    "did_web_hang": "the host of a did:web account accepts and sends nothing for seconds (default 3600)",
    "did_web_429": "the host of a did:web account answers 429; retry_after (seconds, default 1)",
    "stream_429": "a relay or labeler refuses a websocket with 429; status (429), retry_after (seconds, default 1)",
    "dns_servfail": "the DNS server answers SERVFAIL",
    "dns_silent": "the DNS server does not answer",
    "handle_false": "an account claims a handle whose domain does not name it",
    "handle_contended": "an account claims another's handle; take = share of those whose domain names the newcomer (0.5)",
    "label_bad_sig": "a label whose signature does not verify, beside the true ones",
    "label_foreign_src": "a label that names another labeler as its source, beside the true ones",
    "label_drop": "the labeler's socket is cut before a frame",
    "label_garbage": "a frame that is no DAG-CBOR goes out before a frame of labels",
    "label_unknown_type": "a frame of an unknown type goes out before a frame of labels",
    "label_error_frame": "an error frame goes out on the labeler's stream, then it closes",
    "label_hostile": "a frame nested 996 deep, or of a million empty lists, goes out before a frame of labels",
    "label_giant": "a signed label whose key is too large for an index (URI of 8,000 characters), beside the true ones",
    "label_silence": "the labeler's stream falls silent for seconds (default 3600)",
}

_NO_REPO_FAULTS = {"pds_list_500", "pds_slow", "pds_clock_ahead"}
_REPO_FAULTS = frozenset(name for name in NAMES if name.startswith("pds_")) - _NO_REPO_FAULTS
_STREAM = ("drop", "garbage", "hostile", "unknown_type", "error_frame", "silence")
STREAM_FAULTS = frozenset({*_STREAM, *(f"label_{name}" for name in _STREAM)})


class UnknownFaultError(ValueError):
    """A fault was named that does not exist."""


@dataclass(slots=True)
class _Switched:
    parameters: Parameters
    rng: random.Random
    chances: int = 0
    fired: int = 0


@dataclass(slots=True)
class Faults:
    """The switchboard: decides whether a fault fires now, and counts."""

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
        """Switch everything off; the counts stay."""
        self._on.clear()

    def any_on(self, names: frozenset[str]) -> bool:
        """True where one of these is switched on: the fast path of the streams asks."""
        return not names.isdisjoint(self._on)

    def active(self) -> dict[str, Parameters]:
        """What is switched on, with its parameters."""
        return {name: switched.parameters for name, switched in self._on.items()}

    def parameters(self, name: str) -> Parameters | None:
        """The parameters of a fault that is on, without firing it."""
        switched = self._on.get(name)
        return switched.parameters if switched else None

    def fire(self, name: str, *, host: int | None = None, did: str | None = None) -> Parameters | None:
        """The fault's parameters if it fires at this chance, else None."""
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
        """Take back a count: the fault was drawn but had nothing to act on."""
        self.counts[name] -= 1
        self._on[name].fired -= 1
