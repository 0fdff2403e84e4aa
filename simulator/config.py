"""The configuration of a simulated network."""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar


class ImpossibleConfigError(Exception):
    """An option has an impossible value. The message is one line and names the option."""


PORTS = 1 << 16
_SHARES = ("churn", "inactive_share")
_ANY = ("seed", "epoch_micros")

_T = TypeVar("_T")


def _option(default: _T, text: str) -> _T:
    """A field with the help text of its command-line option."""
    return field(default=default, metadata={"help": text})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """All inputs of a simulated network: the same values give the same accounts, keys and records.

    Raises ImpossibleConfigError if a value is out of range.
    """

    seed: int = _option(1, "seed of all random draws")
    repos: int = _option(200, "number of accounts")
    records_per_repo: int = _option(30, "mean number of records in a repository (log-normal distribution)")
    pdses: int = _option(3, "number of PDSes")
    relays: int = _option(1, "number of relays")
    labelers: int = _option(1, "number of labelers")
    labels: int = _option(100, "label batches per labeler, published before the start")
    writer_rate: float = _option(0.0, "steps per second; 0 = the writer pauses")
    writer_repos: int = _option(
        2000, "maximum number of accounts that the writer changes; their repositories are kept in memory"
    )
    churn: float = _option(0.01, "share of the writer's steps that change an account, not its records")
    window: int = _option(20_000, "number of events that a stream keeps")
    big_repos: int = _option(0, "number of accounts with big repositories, the first ones")
    big_repo_records: int = _option(50_000, "number of records in a big repository")
    big_record_bytes: int = _option(0, "padding of each record in a big repository, bytes")
    web_accounts: int = _option(0, "number of did:web accounts, the last ones; each has its own host")
    inactive_share: float = _option(0.03, "share of accounts that are deactivated or taken down at the start")
    hostile: bool = _option(False, "add records that break careless decoders")
    pds_limit: int = _option(0, "requests per PDS and window, above it 429; 0 = no limit")
    pds_limit_seconds: float = _option(300.0, "window of --pds-limit, seconds")
    prebuild: bool = _option(False, "generate all repositories before the start")
    prebuilt_commits: int = _option(0, "commits to publish before the start")
    epoch_micros: int | None = _option(
        None,
        "the network's time at the start, microseconds since 1970; by default the real time, with other revs in each run",
    )
    port: int = _option(0, "first of consecutive ports; 0 = any free ports")
    faults: dict[str, Any] = field(default_factory=dict, metadata={"help": "faults to switch on, see below"})

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if name in _SHARES and not 0 <= value <= 1:
                raise ImpossibleConfigError(f"{_flag(name)} {value}: give a share from 0 to 1")
            least = 1 if name == "pdses" else 0
            if isinstance(value, int | float) and name not in _ANY and not value >= least:
                raise ImpossibleConfigError(f"{_flag(name)} {value}: give {least} or more")
        if self.web_accounts > self.repos:
            raise ImpossibleConfigError(f"--web-accounts {self.web_accounts}: give {self.repos} or less, as --repos")
        ports = 3 + self.pdses + self.relays + self.labelers + self.web_accounts  # PLC, control, DNS
        if self.port and self.port + ports > PORTS:
            raise ImpossibleConfigError(
                f"--port {self.port}: the network needs {ports} consecutive ports from there; give {PORTS - ports} or less"
            )
