"""Every setting of every process, each also an environment variable `SLUICE_<NAME>`.

`load(**overrides) -> Settings` raises `SettingsError` whose message is one line that names the setting and the remedy;
unknown `SLUICE_…` variables are refused as well, because a misspelt setting that is silently ignored is a bad night.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protocol.enforcement import Enforcement
from schemas.endpoints import BROKER, is_address, is_postgresql, service_url
from schemas.errors import OperatorError

PREFIX = "SLUICE_"
SECRETS = ("api_token", "api_read_token", "broker_password")
"""Settings whose value is never shown; of `database` only the password is hidden."""
URLs = Annotated[list[str], NoDecode]


class SettingsError(OperatorError):
    """A setting is unknown or invalid; the message is one line."""


class Settings(BaseSettings):
    """Settings with defaults fit for one machine; see `sluice settings` for the list."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # where things are
    bootstrap: str = Field(
        "", description="Kafka-compatible brokers, HOST:PORT[,HOST:PORT]; empty: `sluice up` embeds one"
    )
    broker_protocol: str = Field(
        "plaintext",
        pattern="^(plaintext|ssl|sasl_plaintext|sasl_ssl)$",
        description="to the brokers: plaintext, ssl, sasl_plaintext or sasl_ssl (ssl: TLS; sasl: with a user)",
    )
    broker_mechanism: str = Field(
        "SCRAM-SHA-256",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="how the user proves itself (SASL): PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    )
    broker_username: str = Field("", description="user at the brokers (SASL)")
    broker_password: str = Field("", repr=False, description="password of that user")
    broker_ca: str = Field(
        "", description="file with the authorities of the brokers' certificates (PEM); empty: the system's"
    )
    broker_certificate: str = Field("", description="file with our certificate, where the brokers ask for one (PEM)")
    broker_key: str = Field("", description="file with its private key, without passphrase (PEM)")
    database: str = Field("", repr=False, description="PostgreSQL URL; empty: `sluice up` embeds one")
    relays: URLs = Field(default_factory=list, description="relay URLs, comma-separated")
    labelers: URLs = Field(default_factory=list, description="labeler URLs, comma-separated")
    plc: str = Field("https://plc.directory", description="PLC directory, or a mirror of it")
    data_dir: Path = Field(Path(".sluice"), description="where `sluice up` keeps the embedded log and database")
    topic_prefix: str = Field("", description="prefix of all topics and consumer groups")

    # network boundary
    allow_private_hosts: bool = Field(
        False, description="may fetch from loopback and private addresses (own networks, tests)"
    )
    user_agent: str = Field("sluice/0.1", description="User-Agent of every request")
    identity_cache_seconds: float = Field(
        3600.0, gt=0, description="how long a resolved DID is trusted before it is resolved again"
    )
    identity_cache_entries: int = Field(50_000, ge=1, description="resolved DIDs kept in memory, per process")

    # listing
    list_page_size: int = Field(1000, ge=1, le=1000, description="repos asked for in one listRepos page")
    list_recheck_seconds: float = Field(
        300.0, gt=0, description="how often a finished listing is continued from its end"
    )
    list_relist_seconds: float = Field(86400.0, gt=0, description="how often a relay is listed anew from the start")
    list_hosts: bool = Field(False, description="also list every PDS that the relays' listHosts names")
    list_hosts_at_once: int = Field(20, ge=1, description="PDSes that are asked for a listRepos page at the same time")
    list_hosts_recheck_seconds: float = Field(
        3600.0, gt=0, description="how often a PDS's finished listing is continued from its end"
    )
    list_host_repos: int = Field(
        5_000_000, ge=1, description="of a PDS's own list at most so many repos are read; a longer one is not believed"
    )
    gap_relist_seconds: float = Field(
        3600.0, gt=0, description="a relay whose stream lost events is listed anew at most this often"
    )
    list_retry_seconds: float = Field(0.5, gt=0, description="first back-off of a listRepos page that failed")
    skip_after_failures: int = Field(5, ge=1, description="failures in a row at one cursor before it is stepped over")
    skip_step: int = Field(1000, ge=1, description="how far a numeric cursor is stepped")
    listed_rev_grace_seconds: float = Field(
        600.0, ge=0, description="a listing's rev above ours for this long is a lost event"
    )

    # firehose and labels
    stream_silence_seconds: float = Field(
        60.0, gt=0, description="a connected stream without data for this long is reconnected"
    )
    stream_queue_frames: int = Field(
        20_000, ge=100, description="frames buffered per flow; one of more than 2 KiB counts as several"
    )
    firehose_start: str = Field(
        "tip", pattern="^(tip|oldest)$", description="where a relay without a cursor begins: tip or oldest"
    )
    dedup_entries: int = Field(
        500_000, ge=1000, description="(did, rev) pairs remembered against duplicates of several relays"
    )

    # verification of live events
    verify_signature: Enforcement = Field(
        Enforcement.ENFORCE, description="signatures of commits and labels by the account's key: enforce, count or off"
    )
    verify_inversion: Enforcement = Field(
        Enforcement.ENFORCE,
        description="a commit's operations prove its tree before (MST inversion): enforce, count or off",
    )
    verify_limits: Enforcement = Field(
        Enforcement.ENFORCE,
        description="the protocol's limits of operations and bytes in an event: enforce, count or off",
    )
    key_cache_entries: int = Field(200_000, ge=100, description="signing keys that the firehose keeps in memory")
    key_cache_seconds: float = Field(
        86_400.0, gt=0, description="how long a signing key is used without an #identity or a bad signature"
    )
    identity_negative_seconds: float = Field(
        60.0,
        ge=0,
        description="how long a DID without a document or an answer is not asked for again; doubled with each failure, up to an hour",
    )
    identity_requests_per_second: float = Field(200.0, gt=0, description="requests to the PLC directory, per process")
    reresolve_seconds: float = Field(
        60.0, ge=0, description="after a bad signature a DID is resolved anew at most this often"
    )

    # handles
    dns: str = Field(
        "", description="DNS server that is asked for handles, HOST or HOST:PORT; empty: those of this machine"
    )
    handle_recheck_seconds: float = Field(86_400.0, gt=0, description="how often a verified handle is checked again")
    handle_retry_seconds: float = Field(
        3600.0, gt=0, description="first wait before a handle that is not verified is checked again"
    )
    handle_checks_per_second: float = Field(
        50.0, gt=0, description="handles that control checks in a second at most, each a question to the PLC directory"
    )

    # backfill
    backfill_concurrency: int = Field(10, ge=1, le=1000, description="getRepo requests at once, per worker")
    host_concurrency: int = Field(
        5,
        ge=1,
        description="getRepo requests at once to one PDS, per worker, fewer to one that is slow; its other repos keep nobody back",
    )
    host_line_seconds: float = Field(
        30.0, gt=0, description="repos that would wait longer for their PDS's answers to others are put off"
    )
    host_requests: int = Field(
        3000, ge=1, description="requests that one PDS may get in a window, from all workers together"
    )
    host_window_seconds: float = Field(300.0, gt=0, description="length of that window")
    fetch_total_seconds: float = Field(3600.0, gt=0, description="total time of one getRepo")
    fetch_idle_seconds: float = Field(300.0, gt=0, description="getRepo without a byte for this long is ended")
    fetch_connect_seconds: float = Field(10.0, gt=0, description="time to connect to a host")
    car_max_bytes: int = Field(2 * 1024**3, ge=1024, description="largest CAR that is accepted")
    car_max_blocks: int = Field(
        4_000_000,
        ge=1,
        description="blocks of a CAR at most, 1.27 a record; one large CAR at a time is indexed per worker, at 25 bytes of memory a block",
    )
    snapshot_max_bytes: int = Field(
        0,
        ge=0,
        description="bytes of the records of one repo, each as often as its tree names it; above it the repo is `too_large`; 0: as car_max_bytes",
    )
    car_memory_bytes: int = Field(8 * 1024**2, ge=0, description="CARs above this are spooled to disk")
    inflight_bytes: int = Field(
        128 * 1024**2, ge=1024**2, description="fetched and not yet produced, in memory, per worker"
    )
    spool_max_bytes: int = Field(
        8 * 1024**3, ge=0, description="CARs spooled to disk at once, per worker; above it repos wait"
    )
    rate_limit_pause_seconds: float = Field(
        60.0, gt=0, description="pause of a host that answers 429 and does not say how long"
    )
    stale_seconds: float = Field(
        600.0, gt=0, description="snapshots older than what was heard: for this long the PDS may be catching up"
    )
    drain_seconds: float = Field(
        10.0, ge=0, description="on SIGTERM, time for downloads that are nearly done; the others are given back"
    )
    lease_seconds: float = Field(
        60.0, gt=1, description="a claim's lease, renewed while its worker lives and its download moves"
    )
    max_attempts: int = Field(5, ge=1, description="failures before a repo is `failed`")
    resyncs_per_repo_hour: int = Field(
        12, ge=1, description="attempts to fetch one repo within an hour at most, whatever events ask for"
    )
    retry_first_seconds: float = Field(5.0, ge=0, description="first back-off of a retry")
    retry_max_seconds: float = Field(3600.0, ge=0, description="longest back-off of a retry")

    # index
    index_batch_messages: int = Field(5000, ge=1, description="messages in one transaction at most")
    index_batch_seconds: float = Field(
        2.0,
        gt=0,
        description="a batch that takes longer is followed by one of half as many messages; rebalances wait for it",
    )
    held_events_per_repo: int = Field(
        10_000, ge=1, description="live events held for one repo before it is fetched again"
    )
    held_bytes_per_repo: int = Field(
        64 * 1024 * 1024, ge=1, description="bytes of live events held for one repo before it is fetched again"
    )
    appview: bool = Field(
        False, description="also keep the tables of the official AppView (schema `bsky`), which needs pg_trgm"
    )
    transport_session_seconds: float = Field(30.0, ge=6, description="consumer group session timeout")

    # back-pressure
    high_water_messages: int = Field(1_000_000, ge=1, description="consumer lag at which a producer pauses")
    live_high_water_fraction: float = Field(
        0.5, gt=0, le=1, description="share of the live topic's retention in lag at which it pauses"
    )

    # control
    queue_batch: int = Field(2000, ge=1, description="repos that control queues in one step")
    control_interval_seconds: float = Field(1.0, gt=0, description="how often control looks for due and expired work")
    requeue_after_seconds: float = Field(
        30.0, gt=0, description="a queued repo whose message does not exist is queued again after this long"
    )
    history_days: float = Field(
        30.0,
        gt=0,
        description="how long resolved losses, recovered listing ranges, ended audits, cached identities and unused hosts are kept",
    )
    schema_registry: str = Field("", description="schema registry URL where the topics' JSON Schemas are registered")
    partitions: int = Field(32, ge=1, description="partitions of every per-repo topic; immutable (`sluice up`: 8)")
    replication: int = Field(3, ge=1, description="replicas of every topic (`sluice up`: 1)")

    # process
    http_host: str = Field("127.0.0.1", description="address of /healthz, /readyz, /metrics and, in control, the API")
    http_names: URLs = Field(
        default_factory=list,
        description="public host names under which these pages are asked for, comma-separated; addresses and local names need none",
    )
    http_port: int = Field(0, ge=0, le=65535, description="port of it; 0: a free one")
    api_token: str = Field(
        "",
        repr=False,
        description="bearer token of the API that allows everything; without it only loopback may change",
    )
    api_read_token: str = Field("", repr=False, description="bearer token of the API that allows reading only")
    epoch_seconds: float = Field(0.5, gt=0, description="how often a flow's position is made durable")
    log_format: str = Field("auto", pattern="^(auto|json|text)$", description="json, text, or auto: text on a terminal")
    watchdog_seconds: float = Field(
        60.0,
        ge=1,
        description="a process whose flow or event loop makes no progress for this long ends, and is started again",
    )
    stalled_seconds: float = Field(
        300.0, gt=0, description="/readyz turns red after this long without progress while work waits"
    )

    @field_validator("relays", "labelers", "http_names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("relays", "labelers")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        return [service_url(part) for part in value]

    @field_validator("database")
    @classmethod
    def _database(cls, value: str) -> str:
        if not is_postgresql(value):
            raise ValueError("this is no URL of a PostgreSQL; correct the URL: write it as postgresql://USER@HOST/NAME")
        return value

    @field_validator("bootstrap")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if value and not all(BROKER.fullmatch(part.strip()) for part in value.split(",")):
            raise ValueError(f"{value!r} is no list of brokers; write it as HOST:PORT[,HOST:PORT]")
        return value

    @field_validator("dns")
    @classmethod
    def _dns(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if value and (not is_address(host if colon else value) or (colon and not port.isdecimal())):
            raise ValueError(f"{value!r} is not the address of a DNS server; write it as 192.0.2.53 or 192.0.2.53:5353")
        return value

    @field_validator("plc")
    @classmethod
    def _plc(cls, value: str) -> str:
        return service_url(value)

    def topic(self, name: str) -> str:
        """Full name of one of our topics."""
        return self.topic_prefix + name

    def group(self, name: str) -> str:
        """Consumer group of a flow."""
        return f"{self.topic_prefix}sluice-{name}"


def load(**overrides: Any) -> Settings:
    """Settings from the environment, overridden by `overrides` (those that are not None)."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    foreign = {"SLUICE_CACHE_DIR", "SLUICE_TEST_CONTAINERS"}
    for name in os.environ:
        if name.startswith(PREFIX) and name.upper() not in known | foreign:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`sluice settings` lists them"
            raise SettingsError(f"{name} is not a setting; {hint}")
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as err:
        first = err.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        said = first["msg"].removeprefix("Value error, ")
        shown = "" if field in {*SECRETS, "database"} else f" (got {first['input']!r})"  # a URL may hold a password
        raise SettingsError(f"{PREFIX}{field.upper()}: {said}{shown}") from err
    _check_broker(settings)
    return settings


def _check_broker(settings: Settings) -> None:
    """What the brokers' settings ask of each other."""
    if settings.broker_protocol.startswith("sasl_"):
        for name in ("broker_username", "broker_password"):
            if not getattr(settings, name):
                raise SettingsError(
                    f"{PREFIX}{name.upper()} is not set; {PREFIX}BROKER_PROTOCOL={settings.broker_protocol} needs it"
                )
    elif settings.broker_username or settings.broker_password:
        raise SettingsError(
            f"{PREFIX}BROKER_PROTOCOL is {settings.broker_protocol}, which sends no user; set it to sasl_ssl (or sasl_plaintext),"
            f" or unset {PREFIX}BROKER_USERNAME and {PREFIX}BROKER_PASSWORD"
        )
    for name in ("broker_ca", "broker_certificate", "broker_key"):
        path = getattr(settings, name)
        if path and not settings.broker_protocol.endswith("ssl"):
            raise SettingsError(
                f"{PREFIX}{name.upper()} is set, but {PREFIX}BROKER_PROTOCOL is {settings.broker_protocol}; set it to ssl or sasl_ssl"
            )
    if bool(settings.broker_certificate) != bool(settings.broker_key):
        raise SettingsError(f"{PREFIX}BROKER_CERTIFICATE and {PREFIX}BROKER_KEY go together; set both or none")


def spell(value: Any) -> str:
    """A setting's value as its environment variable would be written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value)
