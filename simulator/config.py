"""The configuration of a simulated network."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


class ImpossibleConfigError(Exception):
    """An option has an impossible value. The message is one line and names the option."""


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """All inputs of a simulated network: the same values give the same accounts, keys and records.

    Raises ImpossibleConfigError if a value is out of range.
    """

    seed: int = 1
    repos: int = 200
    records_per_repo: int = 30  # mean of a log-normal distribution
    pdses: int = 3
    relays: int = 1
    labelers: int = 1
    labels: int = 100  # per labeler, published before the start
    writer_rate: float = 0.0  # steps per second; 0 = the writer pauses
    writer_repos: int = (
        2000  # maximum number of accounts that the writer changes; their repositories are kept in memory
    )
    churn: float = 0.01  # share of the writer's steps that change an account, not its records
    window: int = 20_000  # number of events that a stream keeps
    big_repos: int = 0  # number of accounts with big repositories, the first ones
    big_repo_records: int = 50_000
    big_record_bytes: int = 0  # padding of each record in a big repository, bytes
    web_accounts: int = 0  # number of did:web accounts, the last ones; each has its own host
    inactive_share: float = 0.03  # share of accounts that are deactivated or taken down at the start
    hostile: bool = False  # add records that break decoders
    pds_limit: int = 0  # requests per PDS and window, above it 429; 0 = no limit
    pds_limit_seconds: float = 300.0
    prebuild: bool = False  # generate all repositories before the start
    prebuilt_commits: int = 0  # commits to publish before the start
    epoch_micros: int | None = None  # the network's time at the start; None = real time (revs then differ between runs)
    port: int = 0  # first of consecutive ports; 0 = any free ports
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
                f"--port {self.port}: the network needs {ports} consecutive ports from there; give {PORTS - ports} or less"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


PORTS = 1 << 16
_SHARES = ("churn", "inactive_share")
_ANY = ("seed", "epoch_micros")
