"""The options of a simulated network."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


class ImpossibleConfigError(Exception):
    """A value that no network can have; the message is one line that names the option."""


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Everything that a simulated network depends on: the same values give the same accounts, keys and records.

    Raises ImpossibleConfigError for a value that no network can have.
    """

    seed: int = 1
    repos: int = 200
    records_per_repo: int = 30  # mean of a log-normal distribution
    pdses: int = 3
    relays: int = 1
    labelers: int = 1
    labels: int = 100  # per labeler, at the start
    writer_rate: float = 0.0  # commits a second; 0 = the writer rests
    writer_repos: int = 2000  # the writer touches at most so many accounts: they live in memory
    churn: float = 0.01  # share of the writer's steps that change an account instead of its records
    window: int = 20_000  # events that a stream keeps
    big_repos: int = 0  # the first accounts are big
    big_repo_records: int = 50_000
    big_record_bytes: int = 0  # padding in every record of a big repository
    web_accounts: int = 0  # the last accounts are did:web, each with a host of its own
    inactive_share: float = 0.03  # accounts that are deactivated or taken down from the start
    hostile: bool = False  # add records that break decoders
    pds_limit: int = 0  # requests per PDS and window; more are answered 429; 0 = counted, not limited
    pds_limit_seconds: float = 300.0
    prebuild: bool = False  # generate all repositories before the network is ready
    prebuilt_commits: int = 0  # commits in the relays' windows before the network is ready
    epoch_micros: int | None = None  # the network's present; None = the real one (revs then differ from run to run)
    port: int = 0  # first of consecutive ports; 0 = free ones
    faults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if name in _SHARES and not 0 <= value <= 1:
                raise ImpossibleConfigError(f"{_option(name)} {value}: give a share from 0 to 1")
            least = 1 if name == "pdses" else 0
            if isinstance(value, int | float) and name not in _ANY and not value >= least:
                raise ImpossibleConfigError(f"{_option(name)} {value}: give {least} or more")
        if self.web_accounts > self.repos:
            raise ImpossibleConfigError(f"--web-accounts {self.web_accounts}: give {self.repos} or less, as --repos")
        ports = 3 + self.pdses + self.relays + self.labelers + self.web_accounts  # PLC, control, DNS
        if self.port and self.port + ports > PORTS:
            raise ImpossibleConfigError(
                f"--port {self.port}: {ports} ports are taken from there on; give {PORTS - ports} or less"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


PORTS = 1 << 16
_SHARES = ("churn", "inactive_share")
_ANY = ("seed", "epoch_micros")
